"""Latent classes over the operand plane, and what they follow."""

import numpy as np
import pytest

from cdbench.report.mask_classes import followed, plane, problem_classes


def extras(a: list[int], b: list[int], classes: list[int], *, minus: bool = False) -> dict[str, object]:
    answers = [x - y if minus else x + y for x, y in zip(a, b, strict=True)]
    return {
        "problem_classes": {
            "operands": ";".join(f"{x} {y}" for x, y in zip(a, b, strict=True)),
            "answers": " ".join(map(str, answers)),
            "classes": " ".join(map(str, classes)),
        }
    }


def drawn(n: int = 2000) -> tuple[list[int], list[int]]:
    rng = np.random.default_rng(0)
    return rng.integers(0, 100, n).tolist(), rng.integers(0, 100, n).tolist()


@pytest.mark.parametrize("minus", [False, True])
def test_a_class_that_is_a_feature_follows_it_wholly_and_the_others_by_chance(minus: bool) -> None:
    a, b = drawn()
    if minus:
        a, b = [max(p) for p in zip(a, b, strict=True)], [min(p) for p in zip(a, b, strict=True)]
        classes = [int(x % 10 < y % 10) for x, y in zip(a, b, strict=True)]
    else:
        classes = [int(x % 10 + y % 10 >= 10) for x, y in zip(a, b, strict=True)]
    found = problem_classes(extras(a, b, classes, minus=minus))
    assert found is not None
    told = followed(found)
    assert told["a carry or borrow at the units"][0] == pytest.approx(1)
    assert told["tens digit of the first operand"][0] < 0.05


def test_chance_is_what_classes_at_random_have() -> None:
    a, b = drawn(100)
    classes = np.random.default_rng(1).integers(0, 8, 100).tolist()
    found = problem_classes(extras(a, b, classes))
    assert found is not None
    for value, chance in followed(found).values():
        assert abs(value - chance) < 0.1
    assert max(chance for _, chance in followed(found).values()) > 0.15  # many values explain something of anything


def test_the_plane_has_each_problem_in_its_cell() -> None:
    found = problem_classes(extras([0, 3, 3], [1, 2, 2], [4, 5, 5]))
    assert found is not None
    drawn_plane, largest = plane(found)
    assert largest == (3, 2) and drawn_plane.shape == (3, 4)
    assert drawn_plane[1, 0] == 4 and drawn_plane[2, 3] == 5 and np.isnan(drawn_plane).sum() == 10


@pytest.mark.parametrize(
    "told",
    [None, 3, {}, {"operands": "1 2", "answers": "3", "classes": "1 2"}, {"operands": "1 2", "answers": "3", "classes": "99"},
     {"operands": "<b>", "answers": "3", "classes": "1"}, {"operands": "1 2", "classes": "1"}],
)  # fmt: skip
def test_what_is_no_class_a_problem_is_not_drawn(told: object) -> None:
    assert problem_classes({"problem_classes": told}) is None
