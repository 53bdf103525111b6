"""Addition of two numbers of exactly five digits (paper B, Table 1: out of distribution)."""

import random

from cdbench.api import Example, Task


class Addition5Digit(Task):
    def draw(self, rng: random.Random) -> Example:
        a, b = rng.randint(10000, 99999), rng.randint(10000, 99999)
        return Example(prompt=f"{a}+{b}=", answer=str(a + b), operands=(a, b))
