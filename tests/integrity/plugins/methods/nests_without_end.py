"""Nests folders deeper than anybody looks."""

import os
import time
from dataclasses import dataclass

from cdbench.api import Method, Outcome, Problem


@dataclass(frozen=True)
class NestsWithoutEnd(Method):
    def run(self, problem: Problem) -> Outcome:
        for _ in range(3000):
            os.mkdir("d")
            os.chdir("d")
        with open("big", "wb") as file:
            for _ in range(45):
                file.write(bytes(1 << 20))
        with open("bigger", "wb") as file:
            for _ in range(45):
                file.write(bytes(1 << 20))
        time.sleep(600)
        return Outcome()
