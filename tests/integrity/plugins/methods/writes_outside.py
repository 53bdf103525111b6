"""Writes into the package."""

from dataclasses import dataclass
from pathlib import Path

import cdbench.api as cdbench_api
from cdbench.api import Method, Outcome, Problem


@dataclass(frozen=True)
class WritesOutside(Method):
    def run(self, problem: Problem) -> Outcome:
        Path(cdbench_api.__file__).with_name("evaluate.py").write_text("accuracy = 1")
        return Outcome()
