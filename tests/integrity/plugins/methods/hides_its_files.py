"""Writes ten gigabytes into a folder that it has made so that nobody may list it."""

import os
import time
from dataclasses import dataclass

from cdbench.api import Method, Outcome, Problem


@dataclass(frozen=True)
class HidesItsFiles(Method):
    def run(self, problem: Problem) -> Outcome:
        os.mkdir("hidden")
        os.chmod("hidden", 0o300)
        for i in range(10 << 10):
            with open(f"hidden/part-{i}", "wb") as file:
                file.write(bytes(1 << 20))
            time.sleep(0.005)
        return Outcome()
