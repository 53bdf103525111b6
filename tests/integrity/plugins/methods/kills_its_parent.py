"""Kills whatever it can reach but itself."""

import contextlib
import os
import signal
from dataclasses import dataclass

from cdbench.api import Method, Outcome, Problem


@dataclass(frozen=True)
class KillsItsParent(Method):
    def run(self, problem: Problem) -> Outcome:
        for target in (os.getppid(), 1, -1):
            with contextlib.suppress(OSError):
                os.kill(target, signal.SIGKILL)
        return Outcome()
