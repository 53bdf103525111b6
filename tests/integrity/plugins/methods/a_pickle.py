"""Hands in a pickle under the name of weights."""

import json
import os
import pickle
from dataclasses import dataclass
from pathlib import Path

from cdbench.api import Method, Outcome, Problem


@dataclass(frozen=True)
class APickle(Method):
    def run(self, problem: Problem) -> Outcome:
        forged = {"params": {}, "extras": {}, "cost": {}, "environment": {}, "inputs": {}}
        Path("outcome.json").write_text(json.dumps(forged))

        Path("student.safetensors").write_bytes(pickle.dumps(problem.student.state_dict()))
        os._exit(0)
