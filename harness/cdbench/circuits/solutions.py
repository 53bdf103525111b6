"""Worked solutions: a problem worked out column by column, right to left, and then its answer.

47+85=   7+5=12 4+8+1=13 =132
52-27=   12-7=5 5-1-2=2 =25
"""

from cdbench.api import Example
from cdbench.circuits.arithmetic import carry, operator, solve
from cdbench.errors import UserError


def work_out(example: Example) -> str:
    """What to write after a problem's prompt: each column with its carry or borrow, then "=" and the answer.

    A difference below zero is worked out the other way round and gets its sign in the answer.

    Raises:
        UserError: the problem is neither the sum nor the difference of two numbers that are not negative.
    """
    op = operator(example)
    a, b = example.operands
    if a < 0 or b < 0:
        raise UserError(f"{example.prompt!r}: columns are worked out for operands of 0 and above, not for {min(a, b)}")
    if op == "-" and a < b:
        a, b = b, a
    columns = []
    for place in range(max(len(str(a)), len(str(b)))):
        first, second = a // 10**place % 10, b // 10**place % 10
        came = carry(a, b, op, place - 1) if place else 0
        if op == "+":
            columns.append(f"{first}+{second}{'+1' * came}={first + second + came}")
        else:
            first += 10 * carry(a, b, op, place)
            columns.append(f"{first}{'-1' * came}-{second}={solve(first - came, second, op)}")
    return " ".join([*columns, f"={example.answer}"])
