"""Writes ten gigabytes into many files."""

import time
from dataclasses import dataclass

from cdbench.api import Method, Outcome, Problem


@dataclass(frozen=True)
class ManyFiles(Method):
    def run(self, problem: Problem) -> Outcome:
        for i in range(10 << 10):
            with open(f"part-{i}", "wb") as file:
                file.write(bytes(1 << 20))
            time.sleep(0.005)
        return Outcome()
