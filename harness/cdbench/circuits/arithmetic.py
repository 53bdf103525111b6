"""Column-wise arithmetic as a causal model: digits and carries as variables, and problems that differ in one of them.

The seven kinds of counterfactual are those of MIB's arithmetic data (Mueller et al. 2025): another problem (`random`), another
digit of an operand (`ones_op1` …), or the same column result with the carry flipped (`ones_carry`: 27+64 against 20+61; for a
subtraction the borrow).
"""

import re
from collections.abc import Sequence
from random import Random
from typing import Literal, get_args

from cdbench.api import Example
from cdbench.circuits.contrasts import Pair
from cdbench.data import NUMBER, PromptEncoder, layout, make_counterfactuals
from cdbench.errors import UserError

Variable = Literal["ones_op1", "ones_op2", "tens_op1", "tens_op2", "ones_carry", "tens_carry"]
Operator = Literal["+", "-"]
Kind = Literal["random", "ones_op1", "ones_op2", "tens_op1", "tens_op2", "ones_carry", "tens_carry"]
VARIABLES: tuple[Variable, ...] = get_args(Variable)
KINDS: tuple[Kind, ...] = get_args(Kind)
_PLACES = {"ones": 0, "tens": 1}
_WORDS: dict[Operator, re.Pattern[str]] = {
    "+": re.compile(r"\d\s*\+\s*\d|\bplus\b|\bsum\b|\badd|\btotal\b", re.IGNORECASE),
    "-": re.compile(r"\d\s*[-−–]\s*\d|\bminus\b|\bsubtract|\bdifference\b|\bless\b|\btake\b", re.IGNORECASE),
}


def operator(example: Example) -> Operator:
    """What a problem asks for, by its answer; where both fit (21 and 0), by its prompt.

    Raises:
        UserError: it is neither the sum nor the difference of its two operands, or both and the prompt does not say which.
    """
    if len(example.operands) == 2:
        fitting: list[Operator] = [
            op for op in get_args(Operator) if example.answer == str(solve(*example.operands, op))
        ]
        said = [op for op in fitting if _WORDS[op].search(example.prompt)] if len(fitting) > 1 else fitting
        if len(said) == 1:
            return said[0]
        if fitting:
            raise UserError(
                f"{example.prompt!r} with answer {example.answer!r} may be a sum or a difference; only 'random' counterfactuals "
                "can be made for it"
            )
    raise UserError(
        f"{example.prompt!r} with answer {example.answer!r} is no sum and no difference of two operands; only 'random' "
        "counterfactuals can be made for it"
    )


def solve(a: int, b: int, op: Operator) -> int:
    """The answer."""
    return a + b if op == "+" else a - b


def carry(a: int, b: int, op: Operator, place: int) -> int:
    """Carry (of a sum) or borrow (of a difference) out of the column of 10**place: 0 or 1.

    A negative difference is that of the larger less the smaller, with its sign, as it is worked out by hand: its borrows, too.
    """
    if op == "-" and a < b:
        a, b = b, a
    base = 10 ** (place + 1)
    low = (a % base, b % base)
    return int(low[0] + low[1] >= base if op == "+" else low[0] < low[1])


def value_of(a: int, b: int, op: Operator, variable: Variable) -> int:
    """What the causal model holds in a variable: a digit, or a carry."""
    which, part = variable.split("_")
    place = _PLACES[which]
    return carry(a, b, op, place) if part == "carry" else _digit(a if part == "op1" else b, place)


def answer_with(a: int, b: int, op: Operator, variable: Variable, value: int) -> int:
    """The causal model's answer with one variable set to `value` and all else computed as always."""
    which, part = variable.split("_")
    place = _PLACES[which]
    if part == "op1":
        return solve(a + (value - _digit(a, place)) * 10**place, b, op)
    if part == "op2":
        return solve(a, b + (value - _digit(b, place)) * 10**place, op)
    flipped = (value - carry(a, b, op, place)) * int(10 ** (place + 1))
    return solve(a, b, op) + (-flipped if op == "-" and a >= b else flipped)


def _digit(x: int, place: int) -> int:
    return int(x // 10**place % 10)


def with_operands(example: Example, a: int, b: int) -> Example:
    """The same prompt with other operands.

    Raises:
        UserError: the prompt does not hold the two operands, and no other number, in their order.
    """
    op, old = operator(example), [str(x) for x in example.operands]
    if NUMBER.findall(example.prompt) != old:
        raise UserError(f"{example.prompt!r} does not hold just the operands {' and '.join(old)}, in this order")
    numbers = iter((str(a), str(b)))
    prompt = NUMBER.sub(lambda match: next(numbers), example.prompt)
    return Example(prompt, str(solve(a, b, op)), (a, b))


def alternatives(example: Example, kind: Variable) -> list[tuple[int, int]]:
    """All operands that differ from a problem's as `kind` says, with as many digits each; none where there are none.

    For a carry both digits of the column change, its result digit stays, and a difference keeps its sign.
    """
    (a, b), op = example.operands, operator(example)
    which, part = kind.split("_")
    place = _PLACES[which]
    scale, now = 10**place, (_digit(a, place), _digit(b, place))
    if part == "carry":
        digits = [(x, y) for x in range(10) for y in range(10)]
    else:
        digits = [(x, now[1]) if part == "op1" else (now[0], x) for x in range(10)]
    found = []
    for x, y in digits:
        pair = (a + (x - now[0]) * scale, b + (y - now[1]) * scale)
        if pair == (a, b) or [len(str(n)) for n in pair] != [len(str(a)), len(str(b))]:
            continue
        if part == "carry":
            old, new = solve(a, b, op), solve(*pair, op)
            if (old < 0) != (new < 0) or carry(*pair, op, place) == carry(a, b, op, place):
                continue
            if _digit(abs(old), place) != _digit(abs(new), place):
                continue
        found.append(pair)
    return found


def make_pairs(examples: Sequence[Example], kind: Kind, encode: PromptEncoder, rng: Random) -> tuple[list[Pair], int]:
    """Each problem with a counterfactual of the same layout (tokens, and digits by operand), and how many problems have none.

    Raises:
        UserError: problems that are neither sums nor differences of two operands, for any kind but `random`.
    """
    if kind == "random":
        others = make_counterfactuals(examples, encode, rng)
        pairs = [(example, other) for example, other in zip(examples, others, strict=True) if other is not None]
        return pairs, len(examples) - len(pairs)
    pairs = []
    for example in examples:
        made = [with_operands(example, *operands) for operands in alternatives(example, kind)]
        own = layout(example, encode)
        fitting = [other for other in made if layout(other, encode) == own]
        if fitting:
            pairs.append((example, rng.choice(fitting)))
    return pairs, len(examples) - len(pairs)
