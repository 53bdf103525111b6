"""Splits, twins, length shift, counterfactuals, leaks: from a task that only draws an example."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any, Protocol

from cdbench.api import Example, Task
from cdbench.config import DataConfig
from cdbench.errors import UserError
from cdbench.files import json_lines, parse_json_lines, write_atomic
from cdbench.seeds import rng_for

_PLAIN = re.compile(r"(\d+)([+-])(\d+)=")
NUMBER = re.compile(r"\d+")
_DRAWS_PER_PROBLEM = 200


@dataclass(frozen=True)
class Splits:
    """Disjoint by prompt; `strict` splits also by twin. `leaked` counts test problems whose twin is in train."""

    train: tuple[Example, ...]
    validation: tuple[Example, ...]
    test: tuple[Example, ...]
    leaked: int


def twin_class(example: Example) -> tuple[tuple[int, ...], str]:
    """Twins share operands (in any order) and answer: 12+34 and 34+12, but not 34-12 and 12-34."""
    return tuple(sorted(example.operands)), example.answer


def check(example: Example, task: str) -> None:
    """Holds an example against its own prompt.

    Raises:
        UserError: the prompt is plain arithmetic and the answer is wrong, or prompt or answer are no text.
    """
    if not (isinstance(example.prompt, str) and isinstance(example.answer, str) and example.prompt and example.answer):
        raise UserError(f"task '{task}' drew prompt {example.prompt!r}, answer {example.answer!r}; both must be text")
    if match := _PLAIN.fullmatch(example.prompt):
        a, b = int(match[1]), int(match[3])
        truth = a + b if match[2] == "+" else a - b
        if example.answer != str(truth):
            raise UserError(f"task '{task}' says {example.prompt}{example.answer}, but the answer is {truth}")


def draw_distinct(task: Task, name: str, rng: Random, n: int, taken: set[str]) -> list[Example]:
    """`n` examples with prompts that differ from each other and from `taken` (which grows).

    Raises:
        UserError: the task cannot give that many, or answers one prompt in two ways.
    """
    answers: dict[str, str] = {}
    examples: list[Example] = []
    for _ in range(_DRAWS_PER_PROBLEM * max(n, 1)):
        if len(examples) == n:
            return examples
        example = task.draw(rng)
        check(example, name)
        if answers.setdefault(example.prompt, example.answer) != example.answer:
            raise UserError(
                f"task '{name}' answers {example.prompt!r} with {example.answer!r} and with {answers[example.prompt]!r}"
            )
        if example.prompt not in taken:
            taken.add(example.prompt)
            examples.append(example)
    if len(examples) == n:
        return examples
    raise UserError(f"task '{name}' has too few different problems: {n} more asked for, {len(examples)} found")


def make_splits(task: Task, name: str, config: DataConfig) -> Splits:
    """Draws the splits of a task.

    `strict`: the first problem drawn of a twin class decides the side of the class, and a twin whose side is full is
    passed over. `paper`: any distinct prompts.

    Raises:
        UserError: the task has too few problems for these sizes.
    """
    rng = rng_for("splits", name, config.seed)
    sizes = {"test": config.test, "validation": config.validation, "train": config.train}
    sides: dict[str, list[Example]] = {side: [] for side in sizes}
    side_of: dict[object, str] = {}
    taken: set[str] = set()
    for _ in range(_DRAWS_PER_PROBLEM):
        missing = sum(sizes.values()) - sum(map(len, sides.values()))
        if not missing:
            break
        for example in draw_distinct(task, name, rng, missing, taken):
            key = twin_class(example) if config.split == "strict" else example.prompt
            open_side = next((side for side, size in sizes.items() if len(sides[side]) < size), None)
            if open_side is None:
                break
            side = side_of.setdefault(key, open_side)
            if len(sides[side]) < sizes[side]:
                sides[side].append(example)
    train = {twin_class(example) for example in sides["train"]}
    leaked = sum(twin_class(example) in train for example in sides["test"])
    return Splits(tuple(sides["train"]), tuple(sides["validation"]), tuple(sides["test"]), leaked)


def make_length_shift(task: Task, name: str, config: DataConfig, seen: Sequence[Example]) -> tuple[Example, ...]:
    """Test problems of another task, none of them a twin of a problem that a model has seen."""
    return _without_twins(task, rng_for("length_shift", name, config.seed), name, config.length_shift, seen)


def make_pretraining(task: Task, name: str, config: DataConfig, heldout: Sequence[Example]) -> tuple[Example, ...]:
    """Problems of another task for zoo models, none of them a twin of a held-out one."""
    return _without_twins(task, rng_for("pretraining", name, config.seed), name, config.zoo_train, heldout)


def _without_twins(task: Task, rng: Random, name: str, n: int, others: Sequence[Example]) -> tuple[Example, ...]:
    seen = {twin_class(example) for example in others}
    taken: set[str] = set()
    examples: list[Example] = []
    while len(examples) < n:
        drawn = draw_distinct(task, name, rng, n - len(examples), taken)
        examples += [example for example in drawn if twin_class(example) not in seen]
    return tuple(examples)


class PromptEncoder(Protocol):
    """As much of a tokenizer as counterfactuals need."""

    def __call__(self, text: str, /) -> Sequence[int]: ...


Layout = tuple[int | str, ...]


def layout(example: Example, encode: PromptEncoder) -> Layout:
    """What two prompts must share so that each place of one means what it means in the other: tokens, wording, digits by operand.

    Equal length alone would set the "+" of 5+23 against a digit of 23+5, or the words of one question against those of another.
    Where a tokenizer joins digits, also the tokens up to each number's ends: 13|+|5|7 is as long as 1|7|+|57.
    """
    prompt, tokens = example.prompt, len(encode(example.prompt))
    own: Layout = (NUMBER.sub("#", prompt), tokens, *(len(str(abs(operand))) for operand in example.operands))
    # A token for each character, beside what stands in front of every text; of others one may take several.
    if prompt.isascii() and tokens - len(encode(prompt[0])) + 1 >= len(prompt):
        return own
    return (*own, *(len(encode(prompt[:end])) for match in NUMBER.finditer(prompt) for end in match.span()))


def make_counterfactuals(examples: Sequence[Example], encode: PromptEncoder, rng: Random) -> list[Example | None]:
    """For each example another one of the same split, of the same layout and with another answer.

    None where the split has none (then the caller counts and says so).
    """
    alike: dict[Layout, list[Example]] = {}
    layouts = [layout(example, encode) for example in examples]
    for example, own in zip(examples, layouts, strict=True):
        alike.setdefault(own, []).append(example)
    result: list[Example | None] = []
    for example, own in zip(examples, layouts, strict=True):
        others = [other for other in alike[own] if other.answer != example.answer]
        result.append(rng.choice(others) if others else None)
    return result


def write_examples(path: Path, examples: Iterable[Example]) -> None:
    """JSON lines, one example each."""
    write_atomic(path, json_lines(asdict(example) for example in examples))


def read_examples(path: Path) -> tuple[Example, ...]:
    """What `write_examples` wrote."""
    return tuple(example_of(row) for row in parse_json_lines(path.read_text()))


def example_of(row: dict[str, Any]) -> Example:
    """One line of what `write_examples` wrote."""
    return Example(row["prompt"], row["answer"], tuple(row["operands"]))
