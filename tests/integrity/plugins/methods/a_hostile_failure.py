"""Fails with a failure file that is none, beside an outcome that is none."""

import os
from dataclasses import dataclass
from pathlib import Path

from cdbench.api import Method, Outcome, Problem


@dataclass(frozen=True)
class AHostileFailure(Method):
    def run(self, problem: Problem) -> Outcome:
        Path("failure-train.json").write_text("[" + "1" * 5000)
        Path("outcome.json").write_text('{"notes": 5}')
        os._exit(1)
