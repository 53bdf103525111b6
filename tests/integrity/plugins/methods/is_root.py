"""Tries to become root."""

import os
from dataclasses import dataclass

from cdbench.api import Method, Outcome, Problem


@dataclass(frozen=True)
class IsRoot(Method):
    def run(self, problem: Problem) -> Outcome:
        os.setuid(0)
        return Outcome()
