"""General ability before and after training, of the runs that `cdbench ability` was asked about."""

from typing import Any

from cdbench import ability
from cdbench.report.collect import StudyData

Row = dict[str, Any]


def ability_rows(data: StudyData) -> list[Row]:
    """One row for each run, lm-eval task and metric."""
    rows = []
    for group in data.groups:
        for record, folder in zip(group.records, group.folders, strict=True):
            found = ability.read(folder)
            for score in found.scores if found else ():
                rows.append({"name": f"{group.name}, seed {record.spec.seed}", "run_id": record.run_id, "score": score})
    return rows
