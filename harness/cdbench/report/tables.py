"""Tables of the report for a spreadsheet: a number a cell, and the runs that it is of."""

from collections.abc import Mapping, Sequence
from typing import Any

from cdbench.report.collect import StudyData
from cdbench.report.component_pairs import component_pairs

Row = dict[str, Any]


def carry_table(errors: Sequence[Row]) -> list[Row]:
    """Accuracy by the carries of a problem."""
    return [
        {"row": row["name"], "carries": n, "problems": problems, "accuracy": accuracy, "run_ids": row["run_ids"]}
        for row in errors
        for n, (problems, accuracy) in sorted(row["by_carries"].items())
    ]


def mask_table(rows: Sequence[Row]) -> list[Row]:
    """The masks of each run and model, and how the two models agree beside shuffled classes."""
    found = []
    for row in rows:
        of_run: Row = {"row": row["name"], "seed": row["seed"]}
        agreement: Row = {}
        for kind in ("overlap", "depth"):
            one = getattr(row["agreement"], kind, None)
            for key in ("value", "null_mean", "p"):
                agreement[f"agreement of {kind}: {key}"] = getattr(one, key, None)
        for model, masks in row["masks"].items():
            numbers = {
                key: getattr(masks, key)
                for key in ("classes", "neurons", "sparsity", "mean_value", "overlap", "cosine", "binary")
            }
            found.append(of_run | {"model": model, **numbers, **agreement, "run_ids": [row["run_id"]]})
    return found


def grid_table(grid: Mapping[str, Any] | None) -> list[Row]:
    """The cells of the failed-run study."""
    if grid is None:
        return []
    return [
        {
            "weight": weight,
            "lr": lr,
            "accuracy": cell["mean"],
            "interval": cell["interval"],
            "seeds": cell["seeds"],
            "failed": cell["failed"],
            "share of the gradient": cell["share"],
            "the paper's failed run": cell["marked"],
            "run_ids": cell["run_ids"],
        }
        for (weight, lr), cell in sorted(grid["cells"].items())
    ]


def pair_table(data: StudyData) -> list[Row]:
    """Which components a run aligned: all pairs of each run that tells, the student's most important first."""
    return [
        {
            "row": group.name,
            "seed": record.spec.seed,
            "rank": i,
            "student": one,
            "teacher": other,
            "run_ids": [record.run_id],
        }
        for group in data.groups
        for record in group.records
        for i, (one, other) in enumerate(component_pairs(record) or (), 1)
    ]
