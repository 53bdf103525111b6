"""Writes ten gigabytes into files that it deletes at once and keeps open: no listing shows them."""

import mmap
import os
import time
from dataclasses import dataclass

from cdbench.api import Method, Outcome, Problem


@dataclass(frozen=True)
class HoldsDeletedFiles(Method):
    def run(self, problem: Problem) -> Outcome:
        mapped = []
        for i in range(320):
            held = os.open(f"part-{i}", os.O_CREAT | os.O_RDWR)
            os.unlink(f"part-{i}")
            os.write(held, bytes(32 << 20))
            if i % 2:  # a mapping holds it as well
                mapped.append(mmap.mmap(held, 32 << 20))
                os.close(held)
            time.sleep(0.2)
        return Outcome()
