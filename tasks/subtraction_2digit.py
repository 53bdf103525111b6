"""Two-digit subtraction: operands 0 to 99, the answer may be negative."""

import random

from cdbench.api import Example, Task


class Subtraction2Digit(Task):
    length_shift = ("subtraction_5digit",)

    def draw(self, rng: random.Random) -> Example:
        a, b = rng.randint(0, 99), rng.randint(0, 99)
        return Example(prompt=f"{a}-{b}=", answer=str(a - b), operands=(a, b))
