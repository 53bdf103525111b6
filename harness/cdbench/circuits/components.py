"""A model's heads and MLPs as the sites that terms read, ranked and paired with another model's (paper B, 4.2 and 4.3)."""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from random import Random
from typing import Literal

import torch
from torch import Tensor

from cdbench.api import Components
from cdbench.circuits.graph import Graph
from cdbench.circuits.scores import Scores
from cdbench.errors import UserError
from cdbench.seeds import generator_for

Pairs = tuple[tuple[str, str], ...]
_TRIES = 200
_DRAWS = 200
"""How often a pairing is made of problems drawn anew."""
_RENAMED = 1000
"""How often the components of one half take each other's names."""
_LEAST_HALF = 2
"""Problems that a correlation needs."""
_ROUNDING = 1e-12
"""Equal pairings count as equal, in whatever order their sums are taken."""


def site_of(node: str) -> str:
    """`a3.h5` -> `attn.3.head.5`, `m3` -> `mlp.3.out`."""
    layer, _, head = node[1:].partition(".h")
    return f"attn.{layer}.head.{head}" if head else f"mlp.{layer}.out"


def components(graph: Graph, scores: Scores) -> Components:
    """Scores of all nodes but the embedding, which no term reads."""
    return Components(tuple(site_of(node) for node in graph.nodes[1:]), scores.rows[:, 1:].float())


def is_head(site: str) -> bool:
    """Whether a site is a head; else it is an MLP."""
    return site.startswith("attn")


def top_components(found: Components, share: float, *, signed: bool = False) -> tuple[str, ...]:
    """The share of components with the largest |mean score|, at least one; equal ones in the model's order.

    `signed`: with the largest mean score. What makes the model better when it is taken away then comes last.

    Raises:
        UserError: the share is not above 0 and at most 1.
    """
    if not 0 < share <= 1:
        raise UserError(f"share = {share:g}: a circuit is a share of the heads and MLPs above 0 and at most 1")
    count = max(1, math.ceil(share * len(found.sites) - 1e-9))
    sizes = found.mean if signed else found.mean.abs()
    order = sizes.argsort(descending=True, stable=True)[:count].tolist()
    return tuple(found.sites[i] for i in order)


def pair_components(
    student: Components,
    teacher: Components,
    share: float,
    how: Literal["profile", "importance"] = "profile",
) -> Pairs:
    """Pairs the student's top components with the teacher's, heads with heads and MLPs with MLPs.

    `profile`: components that matter on the same problems belong together: the pairing of largest total correlation between
    their scores over the problems, no teacher component twice. `importance`, paper A's rule for layers (4.1.3): each of the
    student's components of highest mean score with whichever of all the teacher's has the nearest normalised mean score, nearest
    relative depth where that is equal; partners may be shared. Most important student component first. A kind that the teacher
    (by profile: its top) has not stays unpaired.
    """
    pairs: list[tuple[str, str]] = []
    if how == "importance":
        chosen = top_components(student, share, signed=True)
        for head in (True, False):
            mine, theirs = ([site for site in sites if is_head(site) == head] for sites in (chosen, teacher.sites))
            pairs += _by_importance(student, teacher, mine, theirs) if theirs else []
    else:
        chosen = top_components(student, share)
        for mine, theirs in _kinds(student, teacher, share):
            pairs += _by_profile(student, teacher, mine, theirs)
    return tuple(sorted(pairs, key=lambda pair: chosen.index(pair[0])))


def _kinds(student: Components, teacher: Components, share: float) -> list[tuple[list[str], list[str]]]:
    """The top components of both, most important first: the heads and then the MLPs, where both have some."""
    tops = [top_components(each, share) for each in (student, teacher)]
    kinds = [tuple([s for s in top if is_head(s) == head] for top in tops) for head in (True, False)]
    return [(mine, theirs) for mine, theirs in kinds if mine and theirs]


def _by_profile(
    student: Components, teacher: Components, mine: Sequence[str], theirs: Sequence[str]
) -> list[tuple[str, str]]:
    rows, columns = _match(_correlations(_of(student, mine), _of(teacher, theirs)))
    return [(mine[i], theirs[j]) for i, j in zip(rows, columns, strict=True)]


def _of(found: Components, sites: Sequence[str]) -> Tensor:
    """[n, sites] scores of some components."""
    return found.scores[:, [found.sites.index(site) for site in sites]].double()


def _correlations(first: Tensor, second: Tensor) -> Tensor:
    """Of each column of `first` with each of `second`, [n, ...] each; 0 where one is constant."""
    return _standard(first).T @ _standard(second)


def _match(table: Tensor) -> tuple[list[int], list[int]]:
    """Rows and columns of the matching of largest total."""
    from scipy.optimize import linear_sum_assignment

    rows, columns = linear_sum_assignment(table.numpy(), maximize=True)
    return rows.tolist(), columns.tolist()


@dataclass(frozen=True)
class Support:
    """How much the problems say for a pairing by profile.

    Attributes:
        correlations: of each pair, over the problems that it was chosen on.
        kept: in what share of 200 pairings of problems drawn anew each pair comes back.
        held_out: mean correlation of the pairs that one half of the problems gives, on the other half; both ways.
        others: the same of all that each component could have been paired with. What the components of a model share of a
            problem's difficulty is in both.
        p: one-sided, of `held_out` where it does not matter who goes with whom: one half's components take each other's names.
    """

    correlations: tuple[float, ...]
    kept: tuple[float, ...]
    held_out: float
    others: float
    p: float


def pairing_support(student: Components, teacher: Components, share: float) -> Support:
    """Makes the pairing by profile of `pair_components` anew: on problems drawn anew, and on half of them to test on the rest.

    Which components matter stays as it was found on all problems: who of them goes with whom is asked.

    Raises:
        ValueError: no two components are of one kind, or there are fewer than 4 problems.
    """
    n = len(student.scores)
    pairs, kinds = pair_components(student, teacher, share), _kinds(student, teacher, share)
    if not pairs or n < 2 * _LEAST_HALF:
        raise ValueError(
            f"{len(pairs)} pairs and {n} problems: there is no pairing to test, or no two halves to test it on"
        )
    draw = generator_for("pairing-support", n)
    order = torch.randperm(n, generator=draw)
    own: dict[tuple[str, str], float] = {}
    kept = dict.fromkeys(pairs, 0)
    halves: list[tuple[Tensor, Tensor]] = []
    for mine, theirs in kinds:
        first, second = _of(student, mine), _of(teacher, theirs)
        table = _correlations(first, second)
        for s, t in pairs:
            if s in mine:
                own[s, t] = float(table[mine.index(s), theirs.index(t)])
        for _ in range(_DRAWS):
            rows = torch.randint(n, (n,), generator=draw)
            for i, j in zip(*_match(_correlations(first[rows], second[rows])), strict=True):
                if (mine[i], theirs[j]) in kept:
                    kept[mine[i], theirs[j]] += 1
        one, other = (_correlations(first[rows], second[rows]) for rows in order.tensor_split(2))
        halves.append((one, other))
    held_out = _agreed(halves)
    renamed = [_agreed([(one, _renamed(other, draw)) for one, other in halves]) for _ in range(_RENAMED)]
    reached = sum(value >= held_out - _ROUNDING for value in renamed)
    sizes = [min(one.shape) for one, _ in halves]
    others = sum(size * float(one.mean() + other.mean()) / 2 for size, (one, other) in zip(sizes, halves, strict=True))
    return Support(
        tuple(own[pair] for pair in pairs),
        tuple(kept[pair] / _DRAWS for pair in pairs),
        held_out,
        others / sum(sizes),
        (1 + reached) / (1 + _RENAMED),
    )


def _agreed(halves: Sequence[tuple[Tensor, Tensor]]) -> float:
    """Mean correlation of the pairs that either half gives, on the other one; `halves` are a kind's correlations in each."""
    found: list[Tensor] = []
    for one, other in halves:
        found += [other[_match(one)], one[_match(other)]]
    return float(torch.cat(found).mean())


def _renamed(table: Tensor, draw: torch.Generator) -> Tensor:
    rows, columns = (torch.randperm(size, generator=draw) for size in table.shape)
    return table[rows][:, columns]


def _standard(scores: Tensor) -> Tensor:
    """[n, ...] scores with mean 0 and norm 1 over the problems; 0 where a score is constant."""
    return torch.nn.functional.normalize(scores - scores.mean(0), dim=0)


def other_components(circuit: Collection[str], sites: Sequence[str], rng: Random) -> tuple[str, ...]:
    """As many heads and as many MLPs as in `circuit`, drawn from the sites outside it while there are such, then from it."""
    drawn, other = rng.sample(sites, len(sites)), []
    for head in (True, False):
        others_first = sorted((site for site in drawn if is_head(site) == head), key=circuit.__contains__)
        other += others_first[: sum(is_head(site) == head for site in circuit)]
    return tuple(other)


def _by_importance(
    student: Components, teacher: Components, mine: Sequence[str], theirs: Sequence[str]
) -> list[tuple[str, str]]:
    def normalised(found: Components) -> dict[str, float]:
        largest = float(found.mean.abs().max()) or 1.0
        return dict(zip(found.sites, (found.mean / largest).tolist(), strict=True))

    a, b = normalised(student), normalised(teacher)
    depth = [max(_layer(site) for site in found.sites) + 1 for found in (student, teacher)]

    def distance(s: str, t: str) -> tuple[float, float, int]:
        gap = abs((_layer(s) + 1) / depth[0] - (_layer(t) + 1) / depth[1])
        return round(abs(a[s] - b[t]), 9), round(gap, 9), theirs.index(t)

    return [(s, min(theirs, key=lambda t, s=s: distance(s, t))) for s in mine]  # type: ignore[misc]


def _layer(site: str) -> int:
    return int(site.split(".")[1])


def random_partners(pairs: Pairs, teacher: Components, rng: Random) -> Pairs:
    """The same components on either side, dealt out anew within heads and within MLPs so that nobody keeps its partner.

    Only who goes with whom changes: not which of the teacher's components are aimed at, nor how often. A kind in which that
    cannot be (one pair, or one partner for all) takes random other components of its kind instead.
    """
    drawn: dict[str, str] = {}
    for head in (True, False):
        mine = [(s, t) for s, t in pairs if is_head(s) == head]
        targets = [t for _, t in mine]
        for _ in range(_TRIES):
            rng.shuffle(targets)
            if all(t != new for (_, t), new in zip(mine, targets, strict=True)):
                break
        else:
            others = [site for site in teacher.sites if is_head(site) == head]
            targets = [rng.choice([site for site in others if site != t] or [t]) for _, t in mine]
        drawn |= {s: new for (s, _), new in zip(mine, targets, strict=True)}
    return tuple((s, drawn[s]) for s, _ in pairs)
