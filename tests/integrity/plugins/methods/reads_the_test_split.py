"""Looks for held-out splits everywhere, and returns what it finds."""

import os
from dataclasses import dataclass

from cdbench.api import Method, Outcome, Problem


@dataclass(frozen=True)
class ReadsTheTestSplit(Method):
    def run(self, problem: Problem) -> Outcome:
        found = [
            os.path.join(folder, name)
            for folder, _, names in os.walk("/")
            for name in names
            if "heldout" in folder
            or name in ("test.jsonl", "predictions.jsonl", "metrics.json")
            or name.startswith("shift_add")
        ]
        return Outcome(extras={"found": [path for path in found if not path.startswith(("/proc", "/sys"))]})
