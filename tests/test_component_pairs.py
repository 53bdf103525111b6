"""Pairs of components in the report: what a method says is shown if it can be understood."""

from types import SimpleNamespace
from typing import Any

import pytest

from cdbench.report.component_pairs import component_pairs, pair_rows
from cdbench.report.pictures import alike_layers, impact_errors

SHARED = [["mlp.1.out", "mlp.3.out"], ["attn.0.head.1", "attn.2.head.0"], ["mlp.0.out", "mlp.3.out"]]


def run(said: object, run_id: str = "a") -> Any:
    return SimpleNamespace(extras={} if said is None else {"component_pairs": said}, run_id=run_id)


def test_shared_partners_and_runs_that_pair_alike_are_counted() -> None:
    """Of three pairs two have the teacher's MLP 3; the second run has the same ones in another order, the third does not."""
    others = [*SHARED[:2], ["mlp.0.out", "mlp.2.out"]]
    group = SimpleNamespace(
        name="atp_cd", records=(run(SHARED, "a"), run(SHARED[::-1], "b"), run(others, "c"), run(None, "d"))
    )
    (row,) = pair_rows(SimpleNamespace(groups=(group, SimpleNamespace(name="kl", records=(run(None),)))))  # type: ignore[arg-type]
    assert row["pairs"] == ["m1 → m3", "a0.h1 → a2.h0", "m0 → m3"]
    assert (row["count"], row["shared"], row["alike"], row["runs"], row["more"]) == (3, 2, 2, 3, 0)
    assert row["run_ids"] == ["a", "b", "c"]


@pytest.mark.parametrize(
    "said",
    [
        None,
        [],
        "mlp.0.out",
        [["mlp.0.out"]],
        [["mlp.0.out", "<b>"]],
        [["mlp.0.out", 3]],
        {"a": "b"},
        [["logits", "logits"]],
    ],
)
def test_what_is_no_pairs_is_not_shown(said: object) -> None:
    assert component_pairs(run(said)) is None


def test_layers_that_the_problems_do_not_tell_apart_are_named() -> None:
    """By hand: 60 % left of 1,000 after each of two layers, ± 3 points each; the third leaves 10 % and stands alone."""
    circuits = {"n": 1000, "student": {"baseline": 0.9, "impacts": [0.29, 0.8, 0.31]}}
    assert impact_errors(circuits, "student") == pytest.approx([0.01547, 0.00954, 0.01559], abs=1e-4)
    assert alike_layers(circuits, "student") == [[0, 2]]
    assert alike_layers(circuits | {"n": 100_000}, "student") == []
