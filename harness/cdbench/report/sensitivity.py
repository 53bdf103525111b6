"""What each factor of a sweep does to the accuracy: main effects and interactions of a full factorial, paired over seeds."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations, pairwise

import numpy as np

from cdbench.config import Scalar, show
from cdbench.inference import Hits, Interval, holm, mean_interval, paired_p
from cdbench.report.collect import UNTRAINED, Group, short

_ALPHA = 0.05


@dataclass(frozen=True)
class Effect:
    """A contrast of a sweep.

    Attributes:
        name: "λ 0.01 → 0.05", or "λ × LR".
        keys: the factors.
        effect: mean change of accuracy, all other factors at each of their values in turn.
        p: two-sided that it is 0, Holm-corrected over the study's effects.
    """

    name: str
    method: str
    task: str
    keys: tuple[str, ...]
    effect: float
    interval: Interval
    p: float
    seeds: int
    run_ids: tuple[str, ...]

    @property
    def reading(self) -> str:
        """What interval and test say together."""
        if self.seeds < 2:
            return "one seed only: how far seeds differ is not known"
        if self.interval.low <= 0 <= self.interval.high:
            return "no effect shown"
        if self.p >= _ALPHA:
            return "the interval shows an effect, the test corrected for the number of factors does not"
        if len(self.keys) > 1:
            return "not additive: what one factor does depends on the other"
        return "raises the accuracy" if self.effect > 0 else "lowers the accuracy"


def factor_effects(groups: Sequence[Group]) -> list[Effect]:
    """Main effects of each two neighbouring values, and the interaction of each two factors of two values.

    Nothing of a method whose cells are not all there (an effect from half a factorial mixes its factors), of cells with other
    problems or by other evaluating code, of a cell whose runs cannot be compared, and of rows that nothing trains.
    """
    found: list[Effect] = []
    rows = {(g.method, g.task, tuple(g.point)) for g in groups if g.point and g.method not in UNTRAINED}
    for method, task, keys in sorted(rows):
        mine = [g for g in groups if (g.method, g.task, tuple(g.point)) == (method, task, keys)]
        cells = {_key(g): g for g in mine}
        if len(cells) == len(mine):  # two rows of one cell differ in evaluation or models: neither stands for both
            found += _of_row(method, task, keys, cells)
    corrected = holm([effect.p for effect in found])
    return [replace(effect, p=p) for effect, p in zip(found, corrected, strict=True)]


Cell = tuple[Scalar, ...]


def _key(group: Group) -> Cell:
    return tuple(group.point.values())


def _of_row(method: str, task: str, keys: tuple[str, ...], cells: dict[Cell, Group]) -> list[Effect]:
    levels = [list(dict.fromkeys(cell[i] for cell in cells)) for i in range(len(keys))]  # in the study's order
    complete = len(cells) == math.prod(len(values) for values in levels)
    seeds = sorted(set.intersection(*({r.spec.seed for r in group.records} for group in cells.values())))
    if not complete or not seeds or not _same_problems(list(cells.values())):
        return []
    hits = {cell: _of_seeds(group, seeds) for cell, group in cells.items()}
    made: list[tuple[str, tuple[str, ...], dict[Cell, float]]] = []
    for i, values in enumerate(levels):
        for low, high in pairwise(values):
            signs = {cell: (cell[i] == high) * 1.0 - (cell[i] == low) * 1.0 for cell in cells}
            made.append((f"{short(keys[i])} {show(low)} → {show(high)}", (keys[i],), signs))
    for i, j in combinations(range(len(keys)), 2):
        if len(levels[i]) == len(levels[j]) == 2:
            signs = {c: (1.0 if (c[i] == levels[i][1]) == (c[j] == levels[j][1]) else -1.0) for c in cells}
            made.append((f"{short(keys[i])} × {short(keys[j])}", (keys[i], keys[j]), signs))
    used = {cell: replace(g, records=tuple(r for r in g.records if r.spec.seed in seeds)) for cell, g in cells.items()}
    return [_contrast((name, method, task), names, signs, hits, used) for name, names, signs in made]


def _same_problems(groups: Sequence[Group]) -> bool:
    """Only answers to the same problems, held to be right by the same code, can be paired: a sweep may have drawn others."""
    if len({r.code.evaluation for g in groups for r in g.records}) > 1:
        return False
    prompts = [[p.prompt for p in g.answers[0]["test"]] for g in groups if g.answers]
    return len({g.hits.shape[1] for g in groups}) == 1 and all(each == prompts[0] for each in prompts)


def _of_seeds(group: Group, seeds: Sequence[int]) -> Hits:
    own = [r.spec.seed for r in group.records]
    return group.hits[[own.index(seed) for seed in seeds]]


def _contrast(
    what: tuple[str, str, str],
    keys: tuple[str, ...],
    signs: dict[Cell, float],
    hits: dict[Cell, Hits],
    cells: dict[Cell, Group],
) -> Effect:
    """Mean over the cells with + less mean over those with −."""
    above = np.mean([hits[cell] for cell, sign in signs.items() if sign > 0], axis=0)
    below = np.mean([hits[cell] for cell, sign in signs.items() if sign < 0], axis=0)
    values = above - below
    name, method, task = what
    return Effect(
        name=name,
        method=method,
        task=task,
        keys=keys,
        effect=float(values.mean()),
        interval=mean_interval(values),
        p=paired_p(values),
        seeds=len(values),
        run_ids=tuple(r.run_id for cell, sign in signs.items() if sign for r in cells[cell].records),
    )
