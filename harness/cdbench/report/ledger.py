"""The ledger's forms: what a claim of the papers asserts, and what would decide it (`reports/claims.toml`).

A claim asserts that an effect lies in a region: a difference above a margin, an equivalence within one, a share above 1. Margins
stand in the file and are not changed to suit a result.
"""

import tomllib
from collections.abc import Sequence
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from pydantic import BaseModel, Field, Strict, ValidationError, model_validator

from cdbench.config import TEACHER, Closed, explain
from cdbench.discover import Kind, find
from cdbench.errors import UserError
from cdbench.record import Metrics
from cdbench.report.collect import reports_folder

WEIGHT = "method.alignment_weight"


class _Claim(Closed):
    id: Annotated[str, Field(pattern=r"^[A-Z]\.[a-z0-9-]+$")]
    says: str
    source: str
    only_with: Literal["paper"] | None = None
    """The profile without whose models the claim says nothing."""


class _OfRows(_Claim):
    task: str


class OfAnswers(_OfRows):
    """A claim of accuracy, on the task's held-out problems or on others."""

    split: str = "test"
    """`test`, or a length-shift set: the task that it was drawn by."""
    teacher_at_least: Annotated[float, Field(gt=0, lt=1)] | None = None
    """The teacher's accuracy there, below which there is nothing to transfer and the claim says nothing."""
    base_at_least: Annotated[float, Field(gt=0, lt=1)] | None = None
    """The same of the student before training: below, there is nothing to forget."""


Share = Annotated[float, Field(ge=-1, le=1)]
"""Of 1, not of 100: also a difference of two, or a correlation."""
_Bounded = TypeVar("_Bounded", "Drop", "AtPoint", "Metric")
_Two = TypeVar("_Two", "Difference", "MetricDifference")


def _bounded(claim: _Bounded) -> _Bounded:
    if claim.at_least is None and claim.at_most is None:
        raise ValueError("at_least, at_most or both say what is claimed")
    if claim.at_least is not None and claim.at_most is not None and claim.at_least >= claim.at_most:
        raise ValueError(f"nothing lies between at_least = {claim.at_least:g} and at_most = {claim.at_most:g}")
    return claim


def _of_two(claim: _Two) -> _Two:
    if claim.high == claim.low and getattr(claim, "high_at", None) == getattr(claim, "low_at", None):
        raise ValueError(f"high and low are both {claim.high}: it would be compared with itself")
    return claim


class Difference(OfAnswers):
    """The accuracy of `high` is more than `margin` above that of `low`."""

    decided_by: Literal["difference"]
    high: str
    low: str
    margin: Annotated[float, Field(ge=0, lt=1)] = 0.0
    high_at: dict[str, float] = Field(default_factory=dict)
    low_at: dict[str, float] = Field(default_factory=dict)
    """Points of a sweep; none where the rows are not swept."""
    where_teacher_errs: bool = False
    """Of the problems that the teacher gets wrong alone."""
    paper: Share | None = None

    @model_validator(mode="after")
    def _compares_two(self) -> "Difference":
        return _of_two(self)


class Drop(OfAnswers):
    """From two digits to `split`, `row` loses at least, or at most, so much accuracy: seed by seed."""

    decided_by: Literal["drop"]
    row: str
    at_least: Share | None = None
    at_most: Share | None = None
    home_at_least: Annotated[float, Field(gt=0, lt=1)]
    """The row's accuracy on the task itself, below which it has little to lose and the claim says nothing."""
    paper: Share | None = None

    @model_validator(mode="after")
    def _has_a_bound(self) -> "Drop":
        if self.split == "test":
            raise ValueError("split must name a length-shift set, to which accuracy drops")
        return _bounded(self)


class Equivalence(OfAnswers):
    """The accuracies of `one` and `other` differ by less than `margin`."""

    decided_by: Literal["equivalence"]
    one: str
    other: str
    margin: Annotated[float, Field(gt=0, lt=1)]
    other_at_least: float = 0.0
    """The other's accuracy, below which being as good says nothing."""
    paper: Share | None = None

    @model_validator(mode="after")
    def _compares_two(self) -> "Equivalence":
        if self.one == self.other:
            raise ValueError(f"one and other are both {self.one}: it would be compared with itself")
        return self


class Order(OfAnswers):
    """Each of `rows` is above the next."""

    decided_by: Literal["order"]
    rows: Annotated[list[str], Field(min_length=2)]
    margin: Annotated[float, Field(ge=0, lt=1)] = 0.0
    paper: None = None


class Value(OfAnswers):
    """The accuracy of `row` differs by less than `margin` from the paper's, which is of `paper_n` problems."""

    decided_by: Literal["value"]
    row: str
    paper: Annotated[float, Field(ge=0, le=1)]
    paper_n: Annotated[int, Field(gt=0)]
    margin: Annotated[float, Field(gt=0, lt=1)]


class AtPoint(OfAnswers):
    """The accuracy of `row` is between two bounds; `at` is a point of a sweep, none where the row is not swept."""

    decided_by: Literal["at_point"]
    row: str
    at: dict[str, float] = Field(default_factory=dict)
    at_least: Annotated[float, Field(gt=0, lt=1)] | None = None
    at_most: Annotated[float, Field(gt=0, lt=1)] | None = None
    paper: Share | None = None

    @model_validator(mode="after")
    def _has_a_bound(self) -> "AtPoint":
        return _bounded(self)


class GradientShare(_OfRows):
    """At a point of a sweep `weight`·‖∇term‖ / ‖∇of‖ is above 1."""

    decided_by: Literal["gradient_share"]
    row: str
    at: dict[str, float]
    term: str
    of: str
    paper: None = None

    @model_validator(mode="after")
    def _has_its_weight(self) -> "GradientShare":
        if WEIGHT not in self.at:
            raise ValueError(f"`at` needs {WEIGHT}, by which the gradient is weighted")
        return self


class Metric(_OfRows):
    """A number that the evaluator takes of each run of `row` lies between two bounds.

    Below `control_at_least` of another number, `control`, it could not be otherwise, and the claim says nothing.
    """

    decided_by: Literal["metric"]
    row: str
    metric: str
    control: str | None = None
    control_at_least: Share | None = None
    at_least: Share | None = None
    at_most: Share | None = None
    unit: Literal["share", "correlation", "number"] = "share"
    paper: Share | None = None

    @model_validator(mode="after")
    def _has_a_bound(self) -> "Metric":
        if (self.control is None) != (self.control_at_least is None):
            raise ValueError("control and control_at_least stand together")
        asks = self.at_least or 0.0
        if self.metric.endswith("needed_beyond_chance") and asks and not (self.control_at_least or 0.0) > asks:
            raise ValueError(
                f"{self.metric} is at most its control: control_at_least must be above at_least ({asks:g}), or a model whose "
                "control lies between them could only refute the claim"
            )
        return _bounded(self)


class MetricDifference(_OfRows):
    """A number of the evaluator is more than `margin` larger for `high` than for `low`, seed by seed.

    Where a row's number is a share of problems that depend on the row, `marks` names a letter a problem (1, 0, - for left out),
    and the shares compared are of the problems that neither row leaves out.
    """

    decided_by: Literal["metric_difference"]
    high: str
    low: str
    metric: str
    marks: str | None = None
    margin: Annotated[float, Field(ge=0)] = 0.0
    unit: Literal["share", "correlation", "number"] = "share"
    paper: None = None

    @model_validator(mode="after")
    def _compares_two(self) -> "MetricDifference":
        return _of_two(self)


class EvenHeads(_OfRows):
    """Of the importance of a model's heads, those of even number in the later half of the layers have more than by chance."""

    decided_by: Literal["even_heads"]
    row: str
    paper: None = None


class Trend(_OfRows):
    """In the course of training `series` goes with `against` (steps, or another series): rank correlation of that sign.

    In each of `parts` equal parts of the training, where these are more than one.
    """

    decided_by: Literal["trend"]
    row: str
    series: str
    against: str = "step"
    sign: Literal[-1, 1]
    parts: Annotated[int, Field(ge=1, le=10)] = 1
    paper: None = None


class Mathematics(_Claim):
    """Decided by a law of the conformance battery; `law_says` whether the law asserts the claim or denies it."""

    decided_by: Literal["law"]
    law: str
    law_says: Annotated[bool, Strict()]
    paper: None = None


class Undecidable(_Claim):
    """What nothing here decides, and why."""

    decided_by: Literal["nothing"]
    why: str
    paper: None = None


Claim = Annotated[
    Difference
    | Drop
    | Equivalence
    | Order
    | Value
    | AtPoint
    | GradientShare
    | Metric
    | MetricDifference
    | EvenHeads
    | Trend
    | Mathematics
    | Undecidable,
    Field(discriminator="decided_by"),
]


class Printed(Closed):
    """A row of the paper's Table 1; without a number where the paper has only words."""

    task: str
    method: str
    source: str
    paper: Annotated[float, Field(ge=0, le=1)] | None = None


class FailedRun(Closed):
    """The paper's failed run, for the grid's marked cell."""

    weight: float
    lr: float
    paper: str
    source: str


class Ledger(Closed):
    """`reports/claims.toml`."""

    table1: list[Printed]
    failed_run: FailedRun
    claim: list[Claim]


def read_ledger() -> Ledger:
    """What the papers print and claim.

    Raises:
        UserError: the file is missing, no TOML, a claim is not of a known form, or names a metric or a law that there is
            not; names the claim and the key.
    """
    path = reports_folder() / "claims.toml"
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    try:
        ledger = Ledger.model_validate(table)
    except ValidationError as error:
        raise explain(error, str(path), name=partial(_named, table)) from None
    ids = [claim.id for claim in ledger.claim]
    if twice := {each for each in ids if ids.count(each) > 1}:
        raise UserError(f"{path}: two claims are called {min(twice)}")
    printed = [(row.task, row.method) for row in ledger.table1]
    if twice_printed := {each for each in printed if printed.count(each) > 1}:
        raise UserError(f"{path}: table1 has two rows of {' / '.join(min(twice_printed))}")
    for claim in ledger.claim:
        _require_names(claim, path)
    return ledger


def unknown(method: str, task: str) -> str:
    """Which of the two is no plug-in that is here, as a sentence, with the name that may have been meant; empty if both are."""
    plugins: tuple[tuple[Kind, str], ...] = (("methods", method), ("tasks", task))
    for kind, asked in plugins:
        known = {TEACHER, *find(kind)} if kind == "methods" else set(find(kind))
        if asked not in known:
            close = get_close_matches(asked, known, 1)
            hint = f"; did the ledger mean '{close[0]}'?" if close else ""
            return f"there is no {kind[:-1]} '{asked}' here{hint}"
    return ""


_FORMS = {get_args(form.model_fields["decided_by"].annotation)[0] for form in get_args(get_args(Claim)[0])}


def _named(table: dict[str, Any], place: tuple[int | str, ...]) -> str:
    """A place of the file for people: `claim A.cka-over-kl, margin`, not `claim.3.difference.margin`."""
    match place:
        case ("claim" | "table1" as kind, int(number), *rest):
            entry = table[kind][number]
            own = entry.get("id") if isinstance(entry, dict) and kind == "claim" else None
            keys = [str(key) for i, key in enumerate(rest) if i or key not in _FORMS]
            return ", ".join(filter(None, (f"{kind} {own or f'number {number + 1}'}", ".".join(keys))))
    return ".".join(map(str, place))


def _require_names(claim: Claim, path: Path) -> None:
    """Methods and tasks are files that may be taken away; a metric or a law that there is not is a slip of the pen."""
    for key, kinds in (("metric", (int, float)), ("control", (int, float)), ("marks", (str,))):
        asked = getattr(claim, key, None)
        if asked is not None and not _is_kind(asked, kinds):
            what = "number" if float in kinds else "text"
            raise UserError(f"{path}: claim {claim.id}, {key}: a record has no {what} '{asked}'")
    if isinstance(claim, Mathematics):
        from cdbench.similarity.conformance.laws import LAWS

        known = [law.name for law in LAWS]
        if claim.law not in known:
            raise UserError(f"{path}: claim {claim.id}, law: there is no '{claim.law}'; there are {', '.join(known)}")


def is_number(name: str) -> bool:
    """Whether `name` is the path of a number in a record's metrics: `circuit.edges.faithfulness.cpr`."""
    return _is_kind(name, (int, float))


def _is_kind(name: str, wanted: Sequence[type]) -> bool:
    kinds: list[Any] = [Metrics]
    for part in name.split("."):
        models = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]
        tables = [get_args(kind)[1] for kind in kinds if get_origin(kind) is dict]
        fields: list[Any] = [model.model_fields[part].annotation for model in models if part in model.model_fields]
        derived = [getattr(model, part, None) for model in models]
        fields += [get_type_hints(each.fget)["return"] for each in derived if isinstance(each, property) and each.fget]
        kinds = [
            one
            for kind in (*tables, *fields)
            for one in ((kind, *get_args(kind)) if get_origin(kind) is not dict else (kind,))
        ]
    return any(kind in wanted for kind in kinds)
