"""Writes an outcome that is no outcome."""

import json
import os
from dataclasses import dataclass
from pathlib import Path

from cdbench.api import Method, Outcome, Problem


@dataclass(frozen=True)
class ForgesItsOutcome(Method):
    def run(self, problem: Problem) -> Outcome:
        Path("outcome.json").write_text(json.dumps({"params": {}, "metrics": {"accuracy": 1.0}}))
        os._exit(0)
