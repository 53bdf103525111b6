"""Says that the machine failed."""

import json
import os
from dataclasses import dataclass
from pathlib import Path

from cdbench.api import Method, Outcome, Problem


@dataclass(frozen=True)
class BlamesTheMachine(Method):
    def run(self, problem: Problem) -> Outcome:
        told = {"status": "infra", "error": "no space left on device", "step": "train", "exit_code": 4}
        Path("failure-train.json").write_text(json.dumps(told))
        os._exit(4)
