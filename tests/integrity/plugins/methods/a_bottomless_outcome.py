"""Writes an outcome that no parser comes to the end of."""

import os
from dataclasses import dataclass
from pathlib import Path

from cdbench.api import Method, Outcome, Problem


@dataclass(frozen=True)
class ABottomlessOutcome(Method):
    def run(self, problem: Problem) -> Outcome:
        Path("outcome.json").write_text('{"extras":' + "[" * 1_000_000)
        os._exit(0)
