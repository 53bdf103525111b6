"""Addition of two numbers of exactly three digits."""

import random

from cdbench.api import Example, Task


class Addition3Digit(Task):
    length_shift = ("addition_4digit", "addition_5digit")

    def draw(self, rng: random.Random) -> Example:
        a, b = rng.randint(100, 999), rng.randint(100, 999)
        return Example(prompt=f"{a}+{b}=", answer=str(a + b), operands=(a, b))
