"""Looks for held-out splits everywhere, and returns what it finds."""

import os
from dataclasses import dataclass

from cdbench.api import Method, Outcome, Problem


def looks_heldout(folder: str, name: str) -> bool:
    """Whether a file looks like part of a held-out split or what is computed on it."""
    known = ("test.jsonl", "predictions.jsonl", "metrics.json")
    return "heldout" in folder or name in known or name.startswith("shift_add")


@dataclass(frozen=True)
class ReadsTheTestSplit(Method):
    def run(self, problem: Problem) -> Outcome:
        found = [
            os.path.join(folder, name)
            for folder, _, names in os.walk("/")
            for name in names
            if looks_heldout(folder, name)
        ]
        return Outcome(extras={"found": [path for path in found if not path.startswith(("/proc", "/sys"))]})
