"""Takes all memory."""

import os
from dataclasses import dataclass

from cdbench.api import Method, Outcome, Problem


@dataclass(frozen=True)
class EatsMemory(Method):
    def run(self, problem: Problem) -> Outcome:
        held = []
        while True:
            held.append(bytearray(os.urandom(1 << 24)))
