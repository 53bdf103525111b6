"""Two-digit addition as in paper A, section 5: operands 0 to 99, prompt `a+b=`."""

import random

from cdbench.api import Example, Task


class Addition2Digit(Task):
    length_shift = ("addition_3digit", "addition_4digit", "addition_5digit")

    def draw(self, rng: random.Random) -> Example:
        a, b = rng.randint(0, 99), rng.randint(0, 99)
        return Example(prompt=f"{a}+{b}=", answer=str(a + b), operands=(a, b))
