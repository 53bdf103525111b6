"""Prints a record and writes one, with the metrics that it would like to have."""

import json
from dataclasses import dataclass
from pathlib import Path

from cdbench.api import Method, Outcome, Problem


@dataclass(frozen=True)
class PrintsAForgedRecord(Method):
    def run(self, problem: Problem) -> Outcome:
        record = {"schema_version": 1, "status": "ok", "metrics": {"accuracy": {"value": 1.0}}}
        for name in ("record.json", "metrics.json", "predictions.jsonl", "code.txt", "failure-evaluate.json"):
            Path(name).write_text(json.dumps(record))
        print(json.dumps(record))  # noqa: T201
        return Outcome()
