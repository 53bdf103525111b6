"""What the records of a study say of each claim of the ledger.

A claim asserts that an effect lies in a region. It is
*supported* where the whole 95 % interval lies inside the region, *refuted* where it lies wholly outside, both only if the
Holm-corrected test against the region's edge says so too, and *inconclusive* otherwise. Claims about rows, models or sweeps that
the study does not have are *not tested here*. Margins stand in `reports/claims.toml`; no verdict is written by hand.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from scipy import stats as distributions

from cdbench.config import TEACHER, HubModel, Profile
from cdbench.files import printable
from cdbench.inference import (
    MOST_SEEDS,
    Hits,
    Interval,
    drop,
    equivalence_p,
    hierarchical_bootstrap,
    holm,
    interval_from_published,
    is_one,
    mcnemar,
    mean_interval,
    paired_p,
    probability_of_improvement,
    runs_by_signs,
    runs_to_decide,
    seed_interval,
    seeds_to_decide,
    share_interval,
    share_p,
    sign_p,
    spread,
    spread_from_published,
    spread_to_decide,
)
from cdbench.record import value_at
from cdbench.report.circuits import even_heads, judged
from cdbench.report.collect import UNTRAINED, Group, StudyData, gradient_share, hits_of, paired
from cdbench.report.formats import p_value, percent, points
from cdbench.report.ledger import (
    WEIGHT,
    AtPoint,
    Claim,
    Difference,
    Drop,
    Equivalence,
    EvenHeads,
    GradientShare,
    Mathematics,
    Metric,
    MetricDifference,
    OfAnswers,
    Order,
    Trend,
    Undecidable,
    Value,
    unknown,
)
from cdbench.report.sampled import possible, spread_of
from cdbench.seeds import seed_for

Outcome = Literal["supported", "refuted", "inconclusive", "not tested here"]
OUTCOMES: tuple[Outcome, ...] = ("supported", "refuted", "inconclusive", "not tested here")
Unit = Literal["points", "share", "correlation", "number", "ratio", "mathematics"]
_ALPHA = 0.05
_FLOOR = 0.01
"""Of two rows that both solve less, neither can be seen to be the better one, nor the two to be as good."""
_MOSTLY = 0.5
"""Of the part that a control takes instead of a circuit: with more of the circuit's own it is no control."""
_DRAWS = 1000
_LEAST_ERRORS = 20
"""Of the teacher, on fewer of which nobody is compared."""
_PAPERS = ("Meta-Llama-3-8B", "Llama-3.2-1B")
"""Paper A's teacher and student."""


@dataclass(frozen=True)
class Evidence:
    """What the records say of a claim: an effect, its interval, and the region in which the claim puts it.

    Attributes:
        p: of the test against the nearest edge of the region; None for mathematics.
        seeds: runs of a row; 1 for a row that no seed changes.
        seeds_needed: level of an interval -> about how many seeds would move it off the edge; None where even 200 would not.
            Itself None where that cannot be told.
        lone: rests on one seed of something that seeds change.
    """

    effect: float
    interval: Interval
    region: tuple[float, float]
    unit: Unit
    seeds: int
    run_ids: tuple[str, ...]
    p: float | None = None
    seeds_needed: Callable[[float], int | None] | None = None
    lone: bool = False
    detail: str = ""

    @property
    def spread(self) -> Interval | None:
        """The interval, as far as there is one to be shown: not of mathematics, one run, or runs that gave the same number."""
        return self.interval if self.interval.high - self.interval.low > _ROUNDING else None


@dataclass(frozen=True)
class Verdict:
    """A claim beside what was measured."""

    claim: Any
    outcome: Outcome
    why: str
    evidence: Evidence | None = None
    p_holm: float | None = None
    seeds_to_decide: int | Literal["not known", "too many"] | None = None
    """Of an inconclusive claim: with about so many seeds interval and corrected test would decide it."""


class NotTested(Exception):
    """Says what the study does not have."""


def judge(claims: Sequence[Claim], data: StudyData) -> list[Verdict]:
    """A verdict for each claim, in their order."""
    found: list[Verdict] = []
    for claim in claims:
        try:
            found.append(Verdict(claim, "inconclusive", "", _weigh(claim, data)))
        except NotTested as reason:
            found.append(Verdict(claim, "not tested here", str(reason)))
    tested = [i for i, verdict in enumerate(found) if verdict.evidence and verdict.evidence.p is not None]
    adjusted = holm([found[i].evidence.p for i in tested])  # type: ignore[union-attr,misc]
    for i, p in zip(tested, adjusted, strict=True):
        found[i] = replace(found[i], p_holm=p)
    # Holm asks no claim for more than this level.
    strictest = 1 - _ALPHA / max(1, len(tested))
    return [_decided(verdict, strictest) for verdict in found]


def is_the_papers(profile: Profile) -> bool:
    """Whether teacher and student are paper A's."""
    pair = (profile.teacher, profile.student)
    return all(isinstance(c, HubModel) and c.repo.endswith(name) for c, name in zip(pair, _PAPERS, strict=True))


def counts(verdicts: Sequence[Verdict]) -> dict[Outcome, int]:
    """How many of each."""
    return {outcome: sum(verdict.outcome == outcome for verdict in verdicts) for outcome in OUTCOMES}


_WHOSE = {"A": "paper A’s", "B": "paper B’s", "P": "the parent paper’s", "C": "our controls"}


def counts_apart(verdicts: Sequence[Verdict]) -> dict[str, dict[Outcome, int]]:
    """The same of each paper's claims, of our controls, and of mathematics, which no run decides, where there is a verdict."""
    apart: dict[str, list[Verdict]] = {}
    for verdict in verdicts:
        prefix = verdict.claim.id.partition(".")[0]
        whose = "mathematics" if isinstance(verdict.claim, Mathematics) else _WHOSE.get(prefix, prefix)
        apart.setdefault(whose, []).append(verdict)
    found = {whose: counts(some) for whose, some in apart.items()}
    return {whose: some for whose, some in found.items() if sum(some.values()) > some["not tested here"]}


def _weigh(claim: Claim, data: StudyData) -> Evidence:
    profile = data.records[0].spec.profile.name
    if isinstance(claim, Mathematics):
        return _law(claim)
    if isinstance(claim, Undecidable):
        raise NotTested(claim.why)
    if profile == "smoke":
        raise NotTested("the smoke profile shows that the flow works; its numbers mean nothing")
    if claim.only_with and not is_the_papers(data.records[0].spec.profile):
        raise NotTested(f"about the paper's own models; the profile {profile} has others")
    if isinstance(claim, OfAnswers) and claim.teacher_at_least is not None:
        _require(
            claim, data, TEACHER, claim.teacher_at_least, "the teacher itself has {}: there is nothing to transfer"
        )
    if isinstance(claim, OfAnswers) and claim.base_at_least is not None:
        _require(
            claim, data, "base", claim.base_at_least, "before training the student has {}: there is nothing to forget"
        )
    weigh: Callable[[Any, StudyData], Evidence] = _WEIGH[claim.decided_by]
    return weigh(claim, data)


def _require(claim: Any, data: StudyData, row: str, least: float, words: str) -> None:
    accuracy = float(_hits(_row(data, claim, row), claim).mean())
    if accuracy < least:
        raise NotTested(words.format(f"{percent(accuracy)} there"))


def _decided(verdict: Verdict, strictest: float) -> Verdict:
    evidence = verdict.evidence
    if evidence is None:
        return verdict
    (low, high), (left, right) = evidence.interval, evidence.region
    inside, outside = left <= low and high <= right, high <= left or low >= right
    by_test = verdict.p_holm is None or verdict.p_holm < _ALPHA
    if (inside or outside) and by_test and not evidence.lone:
        where = "inside" if inside else "outside"
        why = f"the whole interval lies {where} what is claimed" if evidence.p is not None else ""
        return replace(verdict, outcome="supported" if inside else "refuted", why=_with(evidence.detail, why))
    if evidence.lone and (inside or outside):
        why = "one seed only: how far seeds differ is not known"
        return replace(verdict, why=_with(evidence.detail, why), seeds_to_decide="not known")
    needed: int | Literal["not known", "too many"] = "not known"
    if evidence.seeds_needed and not evidence.lone:
        needed = evidence.seeds_needed(strictest) or "too many"
    why = "the interval decides it, the test corrected for the number of claims does not"
    if not evidence.spread:
        why = "all runs lie on one side of the edge, too few for the test corrected for the number of claims"
    why = (why if inside or outside else "the interval holds both") + _NEEDED.get(
        str(needed),
        f"; about {needed} seeds would decide it (four times in five, were effect and spread what they seem)",
    )
    return replace(verdict, why=_with(evidence.detail, why), seeds_to_decide=needed)


_NEEDED = {"not known": "", "too many": f"; not even {MOST_SEEDS} seeds would decide it on these problems"}


def _with(detail: str, why: str) -> str:
    return "; ".join(part for part in (why, detail) if part)


def _row(data: StudyData, claim: Any, name: str, at: dict[str, float] | None = None) -> Group:
    mine = [g for g in data.groups if (g.method, g.task) == (name, claim.task) and _is_at(g, at or {})]
    if len(mine) > 1:
        raise NotTested(
            f"the runs of {name} were judged by {len(mine)} evaluations or on different problems and cannot be pooled; "
            "reproduce the study again"
        )
    for group in mine:
        if not group.records:
            reasons = "; ".join(sorted({f"{r.status}: {r.error}" for r in group.failed}))
            raise NotTested(f"no run of {name} came to a result ({printable(reasons, 300)})")
        return group
    if slip := unknown(name, claim.task):
        raise NotTested(slip)
    where = " at " + ", ".join(f"{key} = {value:g}" for key, value in at.items()) if at else ""
    elsewhere = [group for group in data.groups if (group.method, group.task) == (name, claim.task)]
    if at and any(not group.point for group in elsewhere):
        raise NotTested(f"this study does not sweep {name}: what a point of a sweep would say, its row does not")
    if elsewhere and not at:
        raise NotTested(
            f"this study sweeps {name}: none of its rows is the paper's, even where one has the paper's values"
        )
    raise NotTested(f"this study has no row {name} on {claim.task}{where}")


def _is_at(group: Group, at: dict[str, float]) -> bool:
    return group.point.keys() == at.keys() and all(float(group.point[key]) == value for key, value in at.items())


def _hits(group: Group, claim: Any) -> Hits:
    if claim.split == "test":
        return group.hits
    found = hits_of(group.answers, f"shift_{claim.split}")
    if found is None:
        raise NotTested(f"{group.name} was not evaluated on the length-shift set {claim.split}")
    return found


def _is_fixed(group: Group) -> bool:
    """No seed changes it."""
    return group.method in UNTRAINED


def _comparable(claim: Any, data: StudyData, high: str, low: str) -> tuple[Group, Group]:
    a, b = (_row(data, claim, name, getattr(claim, at, None)) for name, at in ((high, "high_at"), (low, "low_at")))
    if a.judged_by != b.judged_by:
        raise NotTested(
            f"{high} and {low} were judged by different evaluations, on different problems or beside other models; "
            "reproduce the study again"
        )
    return a, b


def _pair(claim: Any, data: StudyData, high: str, low: str) -> tuple[Hits, Group, Group]:
    a, b = _comparable(claim, data, high, low)
    asked = _asked(claim, data, a)
    found = paired(replace(a, hits=_hits(a, claim)[:, asked]), replace(b, hits=_hits(b, claim)[:, asked]))
    if found is None:
        raise NotTested(f"{high} and {low} share no seed")
    for group in (a, b):
        if (share := _of_circuit(group)) > _MOSTLY:
            raise NotTested(
                f"{percent(share)} of the part of the model that {group.name} takes instead of the circuit is the circuit's own: "
                "there is not enough of it outside"
            )
    floor = max(_FLOOR, claim.margin)
    if max(float(hits.mean()) for hits in found) < floor:
        raise NotTested(
            f"neither {a.name} nor {b.name} solves {percent(floor)} there: at the floor no difference could show"
        )
    return found[0] - found[1], a, b


def _of_circuit(group: Group) -> float:
    """Of a control that takes another part than the circuit, what share of that is the circuit's all the same; else 0."""
    shares = [record.extras.get("part_of_circuit", 0.0) for record in group.records]
    return max((share for share in shares if isinstance(share, float)), default=0.0)


def _asked(claim: Any, data: StudyData, group: Group) -> Any:
    """Which of a row's problems a claim is of: all, or those that the teacher gets wrong."""
    if not getattr(claim, "where_teacher_errs", False):
        return slice(None)
    teacher = _row(data, claim, TEACHER)
    if teacher.judged_by != group.judged_by:
        raise NotTested(f"the teacher was judged otherwise than {group.name}; reproduce the study again")
    wrong = _hits(teacher, claim)[0] == 0
    if wrong.sum() < _LEAST_ERRORS:
        raise NotTested(
            f"the teacher gets {wrong.sum():.0f} of {len(wrong):,} problems wrong: fewer than {_LEAST_ERRORS} show nothing"
        )
    return wrong


def _edge(region: tuple[float, float], effect: float) -> float:
    """The edge of the region that is nearest to the effect."""
    return min((edge for edge in region if math.isfinite(edge)), key=lambda edge: abs(edge - effect))


def _evidence(values: Hits, region: tuple[float, float], groups: Sequence[Group]) -> Evidence:
    effect = float(values.mean())
    edge = _edge(region, effect)
    return Evidence(
        effect=effect,
        interval=mean_interval(values),
        region=region,
        unit="points",
        seeds=len(values),
        run_ids=tuple(run_id for group in groups for run_id in group.run_ids),
        p=paired_p(values, edge),
        seeds_needed=lambda level: seeds_to_decide(values, edge, level, both=_inside(region, effect)),
        lone=len(values) == 1 and not all(map(_is_fixed, groups)),
        detail="; ".join(filter(None, map(_caveats, groups))),
    )


def _inside(region: tuple[float, float], effect: float) -> bool:
    """Whether an interval must leave out both ends of a region: outside it, or where it is open, one end is enough."""
    return all(map(math.isfinite, region)) and region[0] < effect < region[1]


def _caveats(group: Group) -> str:
    """What whoever reads a row's numbers must know: runs without result, worked solutions that are not the teacher's."""
    all_runs = len(group.records) + len(group.failed)
    told = [f"{len(group.failed)} of {all_runs} runs of {group.name} came to no result" if group.failed else ""]
    if any(record.extras.get("solutions") and record.extras.get("by_teacher") == 0 for record in group.records):
        told.append(f"no worked solution that {group.name} learned from is the teacher's own")
    return "; ".join(filter(None, told))


def _difference(claim: Difference, data: StudyData) -> Evidence:
    values, high, low = _pair(claim, data, claim.high, claim.low)
    found = _evidence(values, (claim.margin, math.inf), [high, low])
    asked = _asked(claim, data, high)
    beside = ""
    if len(values) > 1:
        drawn = hierarchical_bootstrap(values, np.random.default_rng(seed_for("bootstrap", claim.id)), _DRAWS)
        beside = f"a bootstrap over seeds and problems says {points(drawn.low)} to {points(drawn.high)}"
    runs = [_hits(group, claim)[:, asked].mean(1) for group in (high, low)]
    pairs = len(runs[0]) * len(runs[1])
    won = probability_of_improvement(runs[0], runs[1]) * pairs
    told = f"{high.name} beats {low.name} in {won:g} of {pairs} pairs of runs" if pairs > 1 else ""
    if claim.where_teacher_errs:
        told = _with(told, f"of the {values.shape[1]} problems that the teacher gets wrong")
        found = replace(found, run_ids=(*found.run_ids, *_row(data, claim, TEACHER).run_ids))
    told = _with(told, beside)
    return replace(found, detail=_with(_with(found.detail, told), _what_differs(high, low)))


def _what_differs(high: Group, low: Group) -> str:
    """Which parts two rows train, and how much their alignment terms could do."""
    weighs = [
        f"the alignment term is {percent(share)} of the gradient of {group.name}"
        for group in (high, low)
        if (share := group.alignment_share) is not None
    ]
    shares = [
        f"up to {percent(share)} of the part that {group.name} takes is the circuit's, too"
        for group in (high, low)
        if (share := _of_circuit(group))
    ]
    return "; ".join(filter(None, (_trained_parts(high, low), *shares, *weighs)))


def _trained_parts(high: Group, low: Group) -> str:
    """Says so where two rows do not change the same part of the student: then they differ in more than their objective."""
    parts = []
    for group in (high, low):
        changed, of = group.metric("parameters_changed"), group.metric("parameters")
        if not changed or not of:  # the teacher, the untrained student, records from before it was counted
            return ""
        parts.append((group.name, changed / of))
    (first, a), (second, b) = parts
    return f"{first} changes {percent(a)} of the parameters, {second} {percent(b)}" if abs(a - b) > 0.01 else ""


def _equivalence(claim: Equivalence, data: StudyData) -> Evidence:
    values, one, other = _pair(claim, data, claim.one, claim.other)
    if (solved := float(_hits(other, claim).mean())) < claim.other_at_least:
        raise NotTested(
            f"{other.name} has {percent(solved)}: to do as well as what has not learned the task says nothing"
        )
    found = _evidence(values, (-claim.margin, claim.margin), [one, other])
    return replace(found, p=equivalence_p(values, claim.margin)) if abs(found.effect) < claim.margin else found


def _order(claim: Order, data: StudyData) -> Evidence:
    """The weakest of the steps decides."""
    pairs = [_pair(claim, data, high, low) for high, low in pairwise(claim.rows)]
    steps = [_evidence(values, (claim.margin, math.inf), [high, low]) for values, high, low in pairs]
    # The one that refutes it, if one does; else the one that is least sure.
    weakest = min(steps, key=lambda step: (step.interval.high > claim.margin, step.interval.low))
    least = pairs[steps.index(weakest)]
    told = (
        f"the number is that of {least[1].name} − {least[2].name}, the step that shows it least; "
        if len(steps) > 1
        else ""
    )
    told += "; ".join(
        f"{high} − {low} {points(step.effect)}" for (high, low), step in zip(pairwise(claim.rows), steps, strict=True)
    )
    told += "; McNemar’s exact p, seed by seed: " + "; ".join(_by_mcnemar(values) for values, _, _ in pairs)
    runs = tuple(dict.fromkeys(run_id for step in steps for run_id in step.run_ids))
    # Supported only if every step is: then the largest p counts. One step that is refuted refutes all: it was the worst of them.
    refuted = weakest.interval.high <= claim.margin
    p = min(1.0, len(steps) * (weakest.p or 0.0)) if refuted else max(step.p or 0.0 for step in steps)
    lone, seeds = any(step.lone for step in steps), min(step.seeds for step in steps)
    needed = _order_needs(steps, claim.margin)
    found = replace(weakest, run_ids=runs, p=p, lone=lone, seeds=seeds, seeds_needed=needed)
    return replace(found, detail=_with(weakest.detail, told))


def _order_needs(steps: Sequence[Evidence], margin: float) -> Callable[[float], int | None]:
    """Until every step is shown; or, where one goes the wrong way, until the first such step is."""

    def needed(level: float) -> int | None:
        wrong = [step for step in steps if step.effect <= margin]
        strict = 1 - (1 - level) / len(steps) if wrong else level
        found = [step.seeds_needed(strict) if step.seeds_needed else None for step in wrong or steps]
        known = [seeds for seeds in found if seeds is not None]
        if wrong:
            return min(known, default=None)
        return max(known) if len(known) == len(found) else None

    return needed


def _by_mcnemar(difference: Hits) -> str:
    """The parent paper's test, which knows nothing of other seeds: p of each seed's pair of runs."""
    return ", ".join(p_value(mcnemar(int((row > 0).sum()), int((row < 0).sum()))) for row in difference)


def _value(claim: Value, data: StudyData) -> Evidence:
    group = _row(data, claim, claim.row)
    hits = _hits(group, claim)
    interval = interval_from_published(hits, claim.paper, claim.paper_n)
    effect, found = float(hits.mean()) - claim.paper, spread_from_published(hits, claim.paper, claim.paper_n)
    distance = abs(effect - math.copysign(claim.margin, effect))
    return Evidence(
        effect=effect,
        interval=interval,
        region=(-claim.margin, claim.margin),
        unit="points",
        seeds=len(hits),
        run_ids=tuple(group.run_ids),
        p=min(
            1.0, 2 * max(found.tail(distance), spread(hits).tail(distance))
        ),  # as the interval is no narrower than ours alone
        seeds_needed=lambda level: spread_to_decide(found, distance, level, both=abs(effect) < claim.margin),
        lone=len(hits) == 1 and not _is_fixed(group),
        detail=_caveats(group),
    )


def _at_point(claim: AtPoint, data: StudyData) -> Evidence:
    group = _row(data, claim, claim.row, claim.at)
    hits = _hits(group, claim)
    effect, region = float(hits.mean()), _between(claim)
    edge = _edge(region, effect)

    def needed(level: float) -> int | None:
        if is_one(hits):  # runs that are one: more of them say no more
            return None
        stretch = math.sqrt(edge * (1 - edge) / (effect * (1 - effect)))
        return seeds_to_decide(hits, edge, level, stretch=stretch, both=_inside(region, effect))

    return Evidence(
        effect=effect,
        interval=share_interval(hits),
        region=region,
        unit="share",
        seeds=len(hits),
        run_ids=tuple(group.run_ids),
        p=share_p(hits, edge),
        seeds_needed=needed,
        lone=len(hits) == 1 and not _is_fixed(group),
        detail=_caveats(group),
    )


def _between(claim: AtPoint | Drop | Metric) -> tuple[float, float]:
    return (
        -math.inf if claim.at_least is None else claim.at_least,
        math.inf if claim.at_most is None else claim.at_most,
    )


def _drop(claim: Drop, data: StudyData) -> Evidence:
    group = _row(data, claim, claim.row)
    if (home := group.mean) < claim.home_at_least:
        raise NotTested(f"{group.name} has {percent(home)} of {claim.task} itself: there is little to lose")
    hits = _hits(group, claim)
    lost, found = drop(group.hits, hits)
    region = _between(claim)
    distance = abs(lost - _edge(region, lost))
    return Evidence(
        effect=lost,
        interval=found.around(lost),
        region=region,
        unit="points",
        seeds=len(hits),
        run_ids=tuple(group.run_ids),
        p=min(1.0, 2 * found.tail(distance)),
        seeds_needed=lambda level: spread_to_decide(found, distance, level, both=_inside(region, lost)),
        lone=len(hits) == 1 and not _is_fixed(group),
        detail=_caveats(group),
    )


_AS_LOGGED = "as the training logged it"
_ROUNDING = 1e-9


def _of_runs(
    group: Group, values: Sequence[float], region: tuple[float, float], unit: Unit, what: str, note: str = ""
) -> Evidence:
    """Of a number that each run has one of; the interval is over seeds alone."""
    if not values:
        raise NotTested(f"no run of {group.name} has {what}")
    interval = seed_interval(values)
    effect = float(np.mean(values))
    edge = _edge(region, effect)
    # No spread but that of rounding, no t: signs are left, and three of them decide nothing.
    same = float(np.ptp(values)) <= _ROUNDING * max(1.0, abs(effect))
    needed = runs_by_signs if same else lambda level: runs_to_decide(values, edge, level)
    p = sign_p(values, edge) if same else float(distributions.ttest_1samp(values, edge).pvalue)
    return Evidence(
        effect=effect,
        interval=interval or Interval(effect, effect),
        region=region,
        unit=unit,
        seeds=len(values),
        run_ids=tuple(group.run_ids),
        p=None if interval is None else p,  # of one run nothing is known that could be tested
        seeds_needed=None if effect == edge else needed,
        lone=interval is None,
        detail=_with(_with(_caveats(group), note), _ALIKE if same and interval else ""),
    )


def _over_problems(found: Evidence, values: Sequence[float], groups: Sequence[Group], metric: str) -> Evidence:
    """Evidence of runs that were all judged on the same sample of problems: what other problems could have said is added."""
    spread = spread_of(values, groups, metric)
    if spread is None:
        return found
    distance = abs(found.effect - _edge(found.region, found.effect))
    return replace(
        found,
        interval=spread.around(found.effect),
        p=min(1.0, 2 * spread.tail(distance)),
        seeds_needed=lambda level: spread_to_decide(spread, distance, level),
        detail=_with(_caveats(groups[0]), "over seeds and problems"),
    )


_ALIKE = "all runs gave the same number: no spread, no interval; the test counts on which side of the edge they lie"


def gradient_shares(group: Group, weight: float, term: str, of: str) -> list[float]:
    """`gradient_share` of each run that has one."""
    found = (gradient_share(logged, weight, term, of) for logged in group.histories)
    return [share for share in found if share is not None]


def _gradient_share(claim: GradientShare, data: StudyData) -> Evidence:
    group = _row(data, claim, claim.row, claim.at)
    weight = claim.at[WEIGHT]
    shares = gradient_shares(group, weight, claim.term, claim.of)
    found = _of_runs(group, shares, (1.0, math.inf), "ratio", f"gradients of {claim.term} and {claim.of}", _AS_LOGGED)
    return replace(found, interval=found.interval.within(0.0, math.inf))


def _metric(claim: Metric, data: StudyData) -> Evidence:
    group = _row(data, claim, claim.row)
    if claim.control:
        beside = group.metric(claim.control)
        if beside is None:
            raise NotTested(
                f"no run of {group.name} has {claim.control}, without which nothing could be seen to be more"
            )
        if beside < (claim.control_at_least or 0.0):
            raise NotTested(f"{claim.control} is {percent(beside)}: at the floor nothing could be seen to be more")
    _refuse_noise(claim.metric, group)
    values = group.values(claim.metric)
    found = _of_runs(group, values, _between(claim), claim.unit, claim.metric)
    found = _over_problems(found, values, [group], claim.metric)
    return replace(found, interval=found.interval.within(*possible(claim.metric)))


def _metric_difference(claim: MetricDifference, data: StudyData) -> Evidence:
    high, low = _comparable(claim, data, claim.high, claim.low)
    region = (claim.margin, math.inf)
    if claim.marks:
        values = _on_common_problems(claim.marks, high, low)
        found = _evidence(values, region, [high, low])
        note = f"on the {values.shape[1]} pairs of problems that both rows solve on every seed"
        found = replace(found, unit=claim.unit, detail=_with(found.detail, note))
    else:
        first, second = (group.by_seed(claim.metric) for group in (high, low))
        gaps = [first[seed] - second[seed] for seed in sorted(first.keys() & second.keys())]
        found = _of_runs(high, gaps, region, claim.unit, f"{claim.metric} on a seed of {low.name}")
        found = _over_problems(found, gaps, [high, low], claim.metric)
        found = replace(found, detail=_with(_caveats(low), found.detail))
    if claim.unit == "share":
        found = replace(found, unit="points")
    detail = _with(found.detail, _what_differs(high, low))
    _refuse_noise(claim.metric, high, low)
    return replace(found, run_ids=(*high.run_ids, *low.run_ids), detail=detail)


def _refuse_noise(metric: str, *groups: Group) -> None:
    """Raises NotTested for a number of faithfulness where f divides by chance in a run."""
    summary, faithful, _ = metric.partition(".faithfulness")
    if faithful and any(group.metric(f"{summary}{faithful}.on_noise") for group in groups):
        raise NotTested("the problems do not show that the model does better than nothing: f divides by chance")


_LEAST_PROBLEMS = 2


def _on_common_problems(marks: str, high: Group, low: Group) -> Hits:
    """What was right in one row and in the other, [seeds, problems], on the problems that no seed of either leaves out.

    Seeds share their problems: a mean a seed, as if each had its own, would hide how far problems differ.
    """
    by_seed = [
        {r.spec.seed: text for r in group.records if isinstance(text := value_at(r.metrics, marks), str) and text}
        for group in (high, low)
    ]
    seeds = sorted(by_seed[0].keys() & by_seed[1].keys())
    lengths = {len(texts[seed]) for texts in by_seed for seed in seeds}
    if len(lengths) > 1:
        raise NotTested(
            f"runs of {high.name} and {low.name} were asked {min(lengths)} and {max(lengths)} pairs of problems"
        )
    rows = [np.array([list(texts[seed]) for seed in seeds]) for texts in by_seed]
    common = ~((rows[0] == "-") | (rows[1] == "-")).any(0) if seeds else np.zeros(0, dtype=bool)
    if int(common.sum()) < _LEAST_PROBLEMS:
        raise NotTested(
            f"{high.name} and {low.name} have no {_LEAST_PROBLEMS} pairs of problems that both solve on every seed (records "
            "from before marks were kept do not say)"
        )
    first, second = ((row[:, common] == "1").astype(np.float64) for row in rows)
    difference: Hits = first - second
    return difference


def _even_heads(claim: EvenHeads, data: StudyData) -> Evidence:
    group = _row(data, claim, claim.row)
    judgement = judged(group.records[0])
    found = even_heads(judgement) if judgement else None
    if found is None:
        raise NotTested(f"no run of {group.name} has attribution scores of heads")
    if found.least_p > _ALPHA:
        raise NotTested(
            f"the {found.heads} heads of {group.name} are too few: no arrangement has a p below {found.least_p:.3f}"
        )
    return Evidence(
        effect=found.share - found.expected,
        interval=Interval(found.low, found.high),
        region=(0.0, math.inf),
        unit="share",
        seeds=1,
        run_ids=(group.records[0].run_id,),
        p=found.p_two_sided,
        detail=f"one model of {found.heads} heads: of their importance {percent(found.share)}, by chance "
        f"{percent(found.expected)}; the later layers have {percent(found.late)}",
    )


def _trend(claim: Trend, data: StudyData) -> Evidence:
    group = _row(data, claim, claim.row)
    found = []
    for rows in group.histories:
        correlations = _correlations(rows, claim)
        if len(correlations) == claim.parts:
            found.append(claim.sign * min(claim.sign * each for each in correlations))  # the part that shows it least
    region = (0.0, math.inf) if claim.sign > 0 else (-math.inf, 0.0)
    what, note = f"{claim.series} over {claim.against}", f"p by the sign test over runs; {_AS_LOGGED}"
    if claim.parts > 1:
        what += f" in each of {claim.parts} parts"
        note = f"of {claim.parts} parts of the training the weakest; {note}"
    if 0 < len(found) < len(group.histories):
        note += f"; {len(group.histories) - len(found)} of {len(group.histories)} runs logged too little of it"
    evidence = _of_runs(group, found, region, "correlation", what, note)
    # Correlations of a trend crowd at 1, where their spread says nothing: three at 0.99 would decide, three at 1 not.
    return replace(
        evidence,
        interval=evidence.interval.within(-1.0, 1.0),
        p=None if evidence.p is None else sign_p(found, 0.0),
        # Runs that go either way are no trend that more of them would show.
        seeds_needed=runs_by_signs if len(set(np.sign(found))) == 1 else None,
    )


_BLOCKS = 20
"""Of each part of a training of which a correlation is asked."""


def _correlations(rows: Sequence[dict[str, float]], claim: Trend) -> list[float]:
    """Spearman's, of each part of a training that was logged there; 0 of what does not move."""
    first, second = (_resampled(rows, key, claim.parts * _BLOCKS) for key in (claim.against, claim.series))
    both = sorted(first.keys() & second.keys())
    found = []
    for part in range(claim.parts):
        own = [i for i in both if i // _BLOCKS == part]
        x, y = [first[i] for i in own], [second[i] for i in own]
        if len(own) > 2:
            moves = len(set(x)) > 1 and len(set(y)) > 1
            found.append(float(distributions.spearmanr(x, y).statistic) if moves else 0.0)
    return found


def _resampled(rows: Sequence[dict[str, float]], key: str, parts: int) -> dict[int, float]:
    """A series as means of equal parts of the training, so that two that were logged at other steps can be compared."""
    logged = [(row["step"], row[key]) for row in rows if key in row]
    last = max([1.0, *(row["step"] for row in rows)])
    blocks: dict[int, list[float]] = {}
    for step, value in logged:
        blocks.setdefault(min(parts - 1, int(parts * (step - 1) / last)), []).append(value)
    return {part: float(np.mean(values)) for part, values in blocks.items()}


@cache
def _holds(law: str) -> bool:
    """Whether our own CKA obeys a law of the battery; the same for every study."""
    import torch

    from cdbench.similarity.conformance.battery import chosen, examine
    from cdbench.similarity.conformance.subject import ours

    # On matrices this small a second thread costs more than it does, many times so on a busy machine.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return examine(ours()[0], chosen([law], []), lambda finding: None).holds
    finally:
        torch.set_num_threads(threads)


def _law(claim: Mathematics) -> Evidence:
    if not _holds(claim.law):  # ours must be right before it can decide anything
        raise NotTested(f"our own CKA breaks the law {claim.law}; see cdbench check cka")
    truth = 1.0 if claim.law_says else 0.0
    words = f"cdbench check cka --only {claim.law}: the law holds" + _EXAMPLES.get(claim.law, lambda: "")()
    return Evidence(truth, Interval(truth, truth), (0.5, math.inf), "mathematics", 0, (), detail=words)


def _stretched() -> str:
    from cdbench.similarity import linear_cka
    from cdbench.similarity.counterexample import stretched

    value, expected = stretched(lambda x, y: linear_cka(x, y).item())
    return (
        f"; for X with 64 orthonormal centred columns and the invertible A = diag(10, 1, …, 1), CKA(X, XA) is {value:.6f} "
        f"(closed form {expected:.6f}), where an invariant measure says 1"
    )


def _unrelated() -> str:
    import torch

    from cdbench.seeds import generator_for
    from cdbench.similarity import linear_cka

    n, d, draw = 32, 2048, generator_for("unrelated")
    x, y = (torch.randn(n, d, generator=draw, dtype=torch.float64) for _ in range(2))
    biased, debiased = (linear_cka(x, y, debiased=each).item() for each in (False, True))
    return (
        f"; of unrelated Gaussian features at a batch of {n} and width {d:,} the printed, biased CKA is {biased:.3f} (in mean "
        f"d / (n + d) = {d / (n + d):.3f}), the debiased one {debiased:.3f}"
    )


_EXAMPLES: dict[str, Callable[[], str]] = {"invertible_map": _stretched, "independent": _unrelated}
_WEIGH: dict[str, Callable[[Any, StudyData], Evidence]] = {
    "difference": _difference,
    "drop": _drop,
    "equivalence": _equivalence,
    "order": _order,
    "value": _value,
    "at_point": _at_point,
    "gradient_share": _gradient_share,
    "metric": _metric,
    "metric_difference": _metric_difference,
    "even_heads": _even_heads,
    "trend": _trend,
}
