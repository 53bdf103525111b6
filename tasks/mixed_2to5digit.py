"""Addition and subtraction of two numbers of equal length, two to five digits (paper B, section 5.1: training mix)."""

import random

from cdbench.api import Example, Task


class Mixed2To5Digit(Task):
    length_shift = ("addition_5digit", "subtraction_5digit")

    def draw(self, rng: random.Random) -> Example:
        digits = rng.randint(2, 5)
        low, high = 10 ** (digits - 1), 10**digits - 1
        a, b = rng.randint(low, high), rng.randint(low, high)
        if rng.random() < 0.5:
            return Example(prompt=f"{a}+{b}=", answer=str(a + b), operands=(a, b))
        return Example(prompt=f"{a}-{b}=", answer=str(a - b), operands=(a, b))
