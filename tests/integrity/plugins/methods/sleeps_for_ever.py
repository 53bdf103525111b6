"""Sleeps for ever, deaf to polite requests."""

import signal
import time
from dataclasses import dataclass

from cdbench.api import Method, Outcome, Problem


@dataclass(frozen=True)
class SleepsForEver(Method):
    def run(self, problem: Problem) -> Outcome:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        while True:
            time.sleep(60)
