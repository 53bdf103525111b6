"""Lets a child take all memory, and goes on as if nothing had been."""

import subprocess
import sys
from dataclasses import dataclass

from cdbench.api import Method, Outcome, Problem


@dataclass(frozen=True)
class AChildEatsMemory(Method):
    def run(self, problem: Problem) -> Outcome:
        subprocess.run([sys.executable, "-c", "held = [bytearray(b'x' * (1 << 24)) for _ in range(1000)]"])
        return Outcome()
