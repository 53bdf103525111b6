"""Forks without end."""

import os
import time
from dataclasses import dataclass

from cdbench.api import Method, Outcome, Problem


@dataclass(frozen=True)
class ForksWithoutEnd(Method):
    def run(self, problem: Problem) -> Outcome:
        parent = os.getpid()
        while True:
            try:
                os.fork()
            except BlockingIOError:
                if os.getpid() == parent:
                    raise
                time.sleep(60)
