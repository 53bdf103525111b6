"""Agreement of two models' masks: numbers that a person can check, and a null that is one."""

from itertools import permutations

import numpy as np
import pytest
import torch
from scipy.stats import wasserstein_distance

from cdbench.circuits.agreement import class_overlaps, depth_agreement, depth_distance, layer_shares, overlap_agreement
from cdbench.evaluate import compare_masks, summarise_masks


def masks(*rows: str) -> np.ndarray:  # type: ignore[type-arg]
    return np.array([[letter == "#" for letter in row] for row in rows])


def test_overlap_is_the_shared_part_of_the_neurons_that_either_class_has() -> None:
    on = masks("##..", ".##.", "....")
    assert class_overlaps(on).tolist() == [[1, 1 / 3, 0], [1 / 3, 1, 0], [0, 0, 0]]


def test_a_classs_neurons_are_counted_layer_by_layer_and_none_says_nothing_of_depth() -> None:
    assert layer_shares(masks("##.#..", "......"), layers=3).tolist() == [[2 / 3, 1 / 3, 0], [1 / 3, 1 / 3, 1 / 3]]


def test_depth_distance_is_worked_out_by_hand_and_agrees_with_scipy() -> None:
    first, last = np.array([[1.0, 0.0]]), np.array([[0.0, 1.0]])
    assert depth_distance(first, last)[0, 0] == pytest.approx(0.5)  # each half moves by half the depth
    assert depth_distance(first, np.array([[0.5, 0.5, 0, 0]]))[0, 0] == pytest.approx(
        0
    )  # the same, told in four layers
    draw = np.random.default_rng(0)
    a, b = draw.dirichlet(np.ones(3), 4), draw.dirichlet(np.ones(5), 6)
    fine = np.linspace(0, 1, 30_001)[:-1] + 0.5 / 30_000
    for i, j in np.ndindex(4, 6):
        dense = [np.repeat(row, 30_000 // len(row)) for row in (a[i], b[j])]
        expected = wasserstein_distance(fine, fine, *dense)
        assert depth_distance(a, b)[i, j] == pytest.approx(expected, abs=1e-4)


def test_the_null_is_every_order_of_the_classes() -> None:
    student, teacher = (
        masks("###...", "##.#..", "....##", ".....#"),
        masks("##......", "#.#.....", ".....#.#", ".....##."),
    )
    found = overlap_agreement(student, teacher)
    assert found is not None
    upper = np.triu_indices(4, 1)
    x, y = class_overlaps(student), class_overlaps(teacher)
    null = [np.corrcoef(x[upper], y[np.ix_(order, order)][upper])[0, 1] for order in permutations(range(4))]
    assert found.shuffles == len(null) == 24
    assert found.value == pytest.approx(null[0])
    assert found.null_mean == pytest.approx(np.mean(null))
    assert found.p == pytest.approx(np.mean([value >= null[0] - 1e-12 for value in null]))


def test_models_whose_classes_lie_alike_agree_beyond_chance_and_others_do_not() -> None:
    draw = np.random.default_rng(1)
    centres = np.arange(8) * 8
    alike = [np.zeros((8, 96), bool) for _ in range(2)]
    for on in alike:
        for k, centre in enumerate(centres):
            on[k, centre : centre + 24] = draw.random(24) < 0.8
    found = overlap_agreement(*alike)
    assert found is not None and found.value > 0.8 and found.p < 0.001
    depth = depth_agreement(*alike, layers=(4, 3))
    assert depth is not None and depth.p < 0.01 and depth.value > depth.null_mean
    # Of models that have nothing to do with each other p is uniform: about one in ten is below 0.1.
    chance = [overlap_agreement(draw.random((6, 60)) < 0.3, draw.random((6, 90)) < 0.3) for _ in range(400)]
    below = np.mean([each.p <= 0.1 for each in chance if each])
    assert 0.05 < below < 0.15


def test_many_classes_are_shuffled_ten_thousand_times_and_twice_the_same() -> None:
    draw = np.random.default_rng(2)
    a, b = draw.random((12, 40)) < 0.3, draw.random((12, 60)) < 0.3
    assert overlap_agreement(a, b) == overlap_agreement(a, b)
    assert overlap_agreement(a, b).shuffles == 10_000  # type: ignore[union-attr]


@pytest.mark.parametrize("student", [masks("#.", ".#"), masks("#.", "#.", "#."), masks("..", "..", "..")])
def test_where_nothing_can_be_said_nothing_is_said(student: np.ndarray) -> None:  # type: ignore[type-arg]
    assert overlap_agreement(student, student) is None


def test_the_evaluator_says_it_of_exported_masks() -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.rand(4, 12, generator=generator), torch.rand(4, 18, generator=generator)
    found = compare_masks(student, teacher, (2, 3))
    assert found is not None and found.overlap is not None and found.depth is not None
    assert found.overlap.above_null == found.overlap.value - found.overlap.null_mean
    assert compare_masks(student, teacher[:3], (2, 3)) is None
    shares = torch.tensor(summarise_masks(student, 2).by_layer)
    assert shares.shape == (4, 2)
    torch.testing.assert_close(shares.sum(1), torch.ones(4))


def test_classes_that_neither_model_uses_are_no_agreement() -> None:
    """Two empty classes would overlap alike in both models, and four of them among eight always come out significant."""
    significant = 0
    for seed in range(60):
        draw = np.random.default_rng(seed)
        student, teacher = np.zeros((8, 60), bool), np.zeros((8, 90), bool)
        student[:4], teacher[:4] = draw.random((4, 60)) < 0.3, draw.random((4, 90)) < 0.3
        found = overlap_agreement(student, teacher)
        assert found is not None and (found.classes, found.shuffles) == (4, 24)
        significant += found.p < 0.05
    assert significant <= 8
