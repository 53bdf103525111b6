"""Prints without end."""

import os
from dataclasses import dataclass

from cdbench.api import Method, Outcome, Problem


@dataclass(frozen=True)
class PrintsWithoutEnd(Method):
    def run(self, problem: Problem) -> Outcome:
        while True:
            os.write(1, bytes(1 << 20))
