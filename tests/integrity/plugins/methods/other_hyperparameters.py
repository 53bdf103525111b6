"""Says that it ran with other hyperparameters than its spec has."""

import json
import os
from dataclasses import dataclass
from pathlib import Path

from cdbench.api import Method, Outcome, Problem


@dataclass(frozen=True)
class OtherHyperparameters(Method):
    steps: int = 10

    def run(self, problem: Problem) -> Outcome:
        forged = {"params": {"steps": 1}, "extras": {}, "cost": {}, "environment": {}, "inputs": {}}
        Path("outcome.json").write_text(json.dumps(forged))
        os._exit(0)
