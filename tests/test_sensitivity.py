"""Effects of a factorial whose truth is known."""

from typing import Any

import pytest

from cdbench.report.collect import Group, StudyData
from cdbench.report.context import grid
from cdbench.report.ledger import read_ledger
from cdbench.report.sensitivity import factor_effects
from test_claims import row

KEYS = ("method.alignment_weight", "training.lr")


def factorial(accuracies: dict[tuple[Any, ...], float], keys: tuple[str, ...] = KEYS, **more: Any) -> list[Group]:
    return [row("cka_cd", a, point=dict(zip(keys, point, strict=True)), **more) for point, a in accuracies.items()]


def test_the_factor_that_does_it_is_named_and_the_other_is_not() -> None:
    cells = {(0.01, 1e-4): 0.6, (0.01, 2e-4): 0.7, (0.05, 1e-4): 0.6, (0.05, 2e-4): 0.7}
    weight, lr, both = factor_effects(factorial(cells))
    assert (weight.name, lr.name, both.name) == ("λ 0.01 → 0.05", "LR 0.0001 → 0.0002", "λ × LR")
    assert lr.effect == pytest.approx(0.1, abs=0.01) and lr.reading == "raises the accuracy" and lr.p < 0.01
    assert weight.effect == pytest.approx(0, abs=0.005) and weight.reading == "no effect shown"
    assert both.reading == "no effect shown" and both.seeds == 5


def test_factors_that_only_do_harm_together_are_not_additive() -> None:
    cells = {(0.01, 1e-4): 0.9, (0.01, 2e-4): 0.9, (0.05, 1e-4): 0.9, (0.05, 2e-4): 0.1}
    *_, both = factor_effects(factorial(cells))
    assert both.effect == pytest.approx(-0.4, abs=0.01)
    assert both.reading == "not additive: what one factor does depends on the other"


def test_strings_and_switches_are_factors_too_in_the_studys_order() -> None:
    cells = {("sum", False): 0.5, ("sum", True): 0.5, ("mean", False): 0.8, ("mean", True): 0.8}
    first, second, _ = factor_effects(factorial(cells, ("method.reduction", "method.debiased")))
    assert first.name == "method.reduction sum → mean" and first.effect == pytest.approx(0.3, abs=0.03)
    assert second.name == "method.debiased False → True" and second.reading == "no effect shown"


def test_three_levels_are_two_steps_and_have_no_interaction() -> None:
    cells = {(level, lr): 0.5 + level for level in (0.0, 0.1, 0.2) for lr in (1e-4, 2e-4)}
    found = factor_effects(factorial(cells))
    assert [each.name for each in found] == ["λ 0 → 0.1", "λ 0.1 → 0.2", "LR 0.0001 → 0.0002"]


@pytest.mark.parametrize(
    "lacks", ["a cell", "a common seed", "the same problems", "the same evaluation", "one row a cell"]
)
def test_half_a_factorial_says_nothing(lacks: str) -> None:
    cells = {(0.01, 1e-4): 0.6, (0.01, 2e-4): 0.7, (0.05, 1e-4): 0.6, (0.05, 2e-4): 0.7}
    groups = factorial(cells)
    if lacks == "a cell":
        groups.pop()
    elif lacks == "a common seed":
        groups[0] = row("cka_cd", 0.6, point=groups[0].point, seeds=0)
    elif lacks == "the same problems":
        groups[0] = row("cka_cd", 0.6, point=groups[0].point, n=500)
    elif lacks == "the same evaluation":
        for record in groups[0].records:
            record.code.evaluation = "another"
    else:
        groups.append(row("cka_cd", 0.6, point=groups[0].point))
    assert factor_effects(groups) == []


def test_a_row_that_nothing_trains_has_no_sensitivity() -> None:
    assert factor_effects([row("base", 0.5, point={"training.lr": lr}) for lr in (1e-4, 2e-4)]) == []


def test_the_two_by_two_is_not_drawn_of_what_is_none() -> None:
    failed = read_ledger().failed_run
    cells = {(0.01, 1e-4): 0.6, (0.01, 2e-4): 0.7, (0.05, 1e-4): 0.6, (0.05, 2e-4): 0.7}
    study = lambda groups: StudyData(None, tuple(groups), ())  # type: ignore[arg-type]  # noqa: E731
    assert grid(study(factor(cells)), failed) is None
    assert grid(study([]), failed) is None


def factor(cells: dict[tuple[Any, ...], float]) -> list[Group]:
    """The same with a third factor: two rows would share each cell."""
    return [
        row("cka_cd", a, point=dict(zip((*KEYS, "method.estimator"), (*point, estimator), strict=True)))
        for point, a in cells.items()
        for estimator in ("biased", "debiased")
    ]
