"""Addition of two numbers of exactly four digits."""

import random

from cdbench.api import Example, Task


class Addition4Digit(Task):
    length_shift = ("addition_5digit",)

    def draw(self, rng: random.Random) -> Example:
        a, b = rng.randint(1000, 9999), rng.randint(1000, 9999)
        return Example(prompt=f"{a}+{b}=", answer=str(a + b), operands=(a, b))
