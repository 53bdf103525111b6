"""The ledger's forms: what a claim of the papers asserts, and what would decide it (`reports/claims.toml`).

A claim asserts that an effect lies in a region: a difference above a margin, an equivalence within one, a share above 1. Margins
stand in the file and are not changed to suit a result.
"""

import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

from pydantic import BaseModel, Field, ValidationError, model_validator

from cdbench.config import Closed, explain
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
    split: str = "test"
    """`test`, or a length-shift set: the task that it was drawn by."""
    teacher_at_least: Annotated[float, Field(gt=0, lt=1)] | None = None
    """The teacher's accuracy there, below which there is nothing to transfer and the claim says nothing."""
    base_at_least: Annotated[float, Field(gt=0, lt=1)] | None = None
    """The same of the student before training: below, there is nothing to forget."""


_Bounded = TypeVar("_Bounded", "Drop", "AtPoint", "Metric")


def _bounded(claim: _Bounded) -> _Bounded:
    if claim.at_least is None and claim.at_most is None:
        raise ValueError(f"{claim.id}: at_least, at_most or both say what is claimed")
    return claim


class Difference(_OfRows):
    """The accuracy of `high` is more than `margin` above that of `low`."""

    decided_by: Literal["difference"]
    high: str
    low: str
    margin: Annotated[float, Field(ge=0, lt=1)] = 0.0
    high_at: dict[str, float] = Field(default_factory=dict)
    low_at: dict[str, float] = Field(default_factory=dict)
    """Points of a sweep; none where the rows are not swept."""
    paper: float | None = None


class Drop(_OfRows):
    """From two digits to `split`, `row` loses at least, or at most, so much accuracy: seed by seed."""

    decided_by: Literal["drop"]
    row: str
    at_least: float | None = None
    at_most: float | None = None
    home_at_least: Annotated[float, Field(gt=0, lt=1)]
    """The row's accuracy on the task itself, below which it has little to lose and the claim says nothing."""
    paper: float | None = None

    @model_validator(mode="after")
    def _has_a_bound(self) -> "Drop":
        return _bounded(self)


class Equivalence(_OfRows):
    """The accuracies of `one` and `other` differ by less than `margin`."""

    decided_by: Literal["equivalence"]
    one: str
    other: str
    margin: Annotated[float, Field(gt=0, lt=1)]
    other_at_least: float = 0.0
    """The other's accuracy, below which being as good says nothing."""
    paper: float | None = None


class Order(_OfRows):
    """Each of `rows` is above the next."""

    decided_by: Literal["order"]
    rows: Annotated[list[str], Field(min_length=2)]
    margin: Annotated[float, Field(ge=0, lt=1)] = 0.0
    paper: None = None


class Value(_OfRows):
    """The accuracy of `row` differs by less than `margin` from the paper's, which is of `paper_n` problems."""

    decided_by: Literal["value"]
    row: str
    paper: Annotated[float, Field(ge=0, le=1)]
    paper_n: Annotated[int, Field(gt=0)]
    margin: Annotated[float, Field(gt=0, lt=1)]


class AtPoint(_OfRows):
    """The accuracy of `row` is between two bounds; `at` is a point of a sweep, none where the row is not swept."""

    decided_by: Literal["at_point"]
    row: str
    at: dict[str, float] = Field(default_factory=dict)
    at_least: Annotated[float, Field(gt=0, lt=1)] | None = None
    at_most: Annotated[float, Field(gt=0, lt=1)] | None = None
    paper: float | None = None

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
            raise ValueError(f"{self.id}: `at` needs {WEIGHT}, by which the gradient is weighted")
        return self


class Metric(_OfRows):
    """A number that the evaluator takes of each run of `row` lies between two bounds.

    Below `control_at_least` of another number, `control`, it could not be otherwise, and the claim says nothing.
    """

    decided_by: Literal["metric"]
    row: str
    metric: str
    control: str | None = None
    control_at_least: float = 0.0
    at_least: float | None = None
    at_most: float | None = None
    unit: Literal["share", "correlation"] = "share"
    paper: float | None = None

    @model_validator(mode="after")
    def _has_a_bound(self) -> "Metric":
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
    unit: Literal["share", "correlation"] = "share"
    paper: None = None


class EvenHeads(_OfRows):
    """Of the importance of a model's heads, those of even number in the later half of the layers have more than by chance."""

    decided_by: Literal["even_heads"]
    row: str
    paper: None = None


class Trend(_OfRows):
    """In the course of training `series` goes with `against` (steps, or another series): rank correlation of that sign."""

    decided_by: Literal["trend"]
    row: str
    series: str
    against: str = "step"
    sign: Literal[-1, 1]
    paper: None = None


class Mathematics(_Claim):
    """Decided by a law of the conformance battery; `law_says` whether the law asserts the claim or denies it."""

    decided_by: Literal["law"]
    law: str
    law_says: bool
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
        ledger = Ledger.model_validate(tomllib.loads(path.read_text()))
    except (FileNotFoundError, tomllib.TOMLDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    except ValidationError as error:
        raise explain(error, str(path)) from None
    ids = [claim.id for claim in ledger.claim]
    if twice := {each for each in ids if ids.count(each) > 1}:
        raise UserError(f"{path}: two claims are called {min(twice)}")
    for claim in ledger.claim:
        _require_names(claim, path)
    return ledger


def _require_names(claim: Claim, path: Path) -> None:
    """Methods and tasks are files that may be taken away; a metric or a law that there is not is a slip of the pen."""
    if isinstance(claim, Metric | MetricDifference) and not is_number(claim.metric):
        raise UserError(f"{path}: claim {claim.id}, metric: a record has no number '{claim.metric}'")
    if isinstance(claim, Mathematics):
        from cdbench.similarity.conformance.laws import LAWS

        known = [law.name for law in LAWS]
        if claim.law not in known:
            raise UserError(f"{path}: claim {claim.id}, law: there is no '{claim.law}'; there are {', '.join(known)}")


def is_number(name: str) -> bool:
    """Whether `name` is the path of a number in a record's metrics: `circuit.edges.faithfulness.cpr`."""
    kinds: list[Any] = [Metrics]
    for part in name.split("."):
        models = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]
        tables = [get_args(kind)[1] for kind in kinds if get_origin(kind) is dict]
        fields = [model.model_fields[part].annotation for model in models if part in model.model_fields]
        kinds = [
            one
            for kind in (*tables, *fields)
            for one in ((kind, *get_args(kind)) if get_origin(kind) is not dict else (kind,))
        ]
    return any(kind in (int, float) for kind in kinds)
