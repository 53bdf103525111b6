"""The record: what one run left. A versioned schema, written on failure too, atomically; all else is a view of it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from cdbench.config import RunSpec, Scalar, explain
from cdbench.errors import UserError
from cdbench.files import read_json, read_plain, sha256, write_atomic
from cdbench.stats import Proportion

SCHEMA = 1
RECORD = "record.json"
GPUS = "CDBENCH_GPUS_HELD"
"""Environment variable: how many GPUs a step was given."""
WAIT = "wait"
"""In place of a step's name: it will be told on stdin."""
PREPARED = "prepared.json"
"""What the shared steps of a (profile, task) left in the store; while it is there they need not run again."""
Status = Literal["ok", "failed", "oom", "timeout", "interrupted", "refused", "infra"]
"""`infra`: the machine or the engine failed, not the method."""
Stream = Literal["stdout", "stderr"]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Cka(_Model):
    """Student x teacher on the held-out split, last prompt token; pairs are the same for every row."""

    n: int
    pairs: list[tuple[int, int]]
    debiased_mean: float
    biased_mean: float
    debiased: list[list[float]]
    biased: list[list[float]]


class MaskSummary(_Model):
    """Sparsity: the share of mask entries below 0.5. Overlap: mean Jaccard index of the neurons on in two classes."""

    classes: int
    neurons: int
    sparsity: float
    mean_value: float
    overlap: float
    cosine: float


class Metrics(_Model):
    """The sealed evaluator's answer.

    `accuracy` is by the integer that the answer begins with, `strict` demands nothing but the integer. `format_errors` are
    answers that begin with no integer, `arithmetic_errors` wrong integers (errata A12).
    """

    accuracy: Proportion
    strict: Proportion
    format_errors: int
    arithmetic_errors: int
    length_shift: dict[str, Proportion]
    cka: Cka | None
    masks: dict[str, MaskSummary]
    first_prompt: str
    first_prompt_ids: list[int]


class Code(_Model):
    """Which code ran. `digest` covers all that a number can depend on: package, plug-ins, library versions."""

    version: str
    digest: str
    commit: str
    dirty: bool


class Record(_Model):
    """One run. `metrics` is None unless status is "ok"."""

    schema_version: Literal[1] = 1
    run_id: str
    spec: RunSpec
    status: Status
    error: str = ""
    notes: list[str] = Field(default_factory=list)
    """What whoever reads the result should know: a term without gradient, for one."""
    code: Code
    params: dict[str, Any] = Field(default_factory=dict)
    metrics: Metrics | None = None
    extras: dict[str, Any] = Field(default_factory=dict)
    environment: dict[str, Any] = Field(default_factory=dict)
    inputs: dict[str, Any] = Field(default_factory=dict)
    artefacts: dict[str, str] = Field(default_factory=dict)
    cost: dict[str, float] = Field(default_factory=dict)
    started: str
    ended: str


class TrainingResult(_Model):
    """outcome.json: what a training says of itself. Whoever trains could have written it, so it is checked before it counts."""

    params: dict[str, Any]
    extras: dict[str, Any]
    cost: dict[str, Annotated[float, Field(ge=0)]]
    environment: dict[str, Any]
    inputs: dict[str, Any]
    notes: list[Annotated[str, Field(max_length=1000)]] = Field(default=[], max_length=100)


_HISTORY = TypeAdapter(dict[str, Annotated[float, Field(allow_inf_nan=False)]])
_RESULT_BYTES = 64 << 20


def check_outcome(folder: Path, params: Mapping[str, Scalar]) -> None:
    """Holds a training's outcome.json against its schema and the spec's hyperparameters.

    Raises:
        UserError: not JSON, numbers that are not finite, other keys, or other hyperparameters than `params`.
    """
    try:
        table = json.loads(read_plain(folder / "outcome.json", _RESULT_BYTES), parse_constant=_refuse_constant)
        result = TrainingResult.model_validate(table)
    except ValidationError as error:
        raise explain(error, "outcome.json") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"outcome.json is not what a training leaves: {error}") from None
    for key, value in params.items():
        if result.params.get(key) != value:
            raise UserError(f"outcome.json says {key} = {result.params.get(key)!r}, the spec says {value!r}")


def check_history(folder: Path) -> None:
    """Holds a training's history.jsonl, if there is one, against its schema.

    Raises:
        UserError: a line that is no JSON object of finite numbers.
    """
    path = folder / "history.jsonl"
    try:
        for line in read_plain(path, _RESULT_BYTES).splitlines() if path.exists() else ():
            _HISTORY.validate_json(line)
    except (OSError, ValidationError) as error:
        raise UserError(f"history.jsonl is not what a training leaves: {str(error).splitlines()[0]}") from None


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def progress_file(step: str) -> str:
    """Where a step tells how far it is; two steps may share a folder."""
    return f"progress-{step}.json"


def failure_file(step: str) -> str:
    """Where a step tells why it failed."""
    return f"failure-{step}.json"


def log_file(step: str, stream: Stream) -> str:
    """Where all that a step printed is kept."""
    return f"{step}.{stream}.log"


def write(folder: Path, record: Record) -> None:
    """Writes the record into its run's folder, whole or not at all."""
    write_atomic(folder / RECORD, record.model_dump_json(indent=1) + "\n", "the record")


def read(folder: Path) -> Record:
    """Reads a run's record.

    Raises:
        UserError: missing, cut short, of a newer schema, or altered so that it no longer fits the schema.
    """
    path = folder / RECORD
    table = read_json(path, "record")
    version = table.get("schema_version")
    if isinstance(version, int) and version > SCHEMA:
        raise UserError(f"{path} has schema {version}, this cdbench reads up to {SCHEMA}: update cdbench")
    try:
        record = Record.model_validate(table)
    except ValidationError as error:
        raise explain(error, str(path)) from None
    if record.run_id != record.spec.run_id:
        raise UserError(f"{path}: run id {record.run_id} is not the hash of its spec ({record.spec.run_id}); altered")
    return record


def damaged_artefacts(folder: Path, record: Record) -> list[str]:
    """Files that the record names and that are missing or differ from their hash; empty when all is well."""
    return [
        name
        for name, expected in sorted(record.artefacts.items())
        if not (folder / name).is_file() or sha256(folder / name) != expected
    ]
