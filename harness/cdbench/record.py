"""The record: what one run left. A versioned schema, written on failure too, atomically; all else is a view of it."""

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cdbench.config import RunSpec, explain
from cdbench.errors import UserError
from cdbench.files import read_json, sha256, write_atomic
from cdbench.stats import Proportion

SCHEMA = 1
RECORD = "record.json"
Status = Literal["ok", "failed", "oom", "timeout", "interrupted", "refused"]


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


def progress_file(step: str) -> str:
    """Where a step tells how far it is; two steps may share a folder."""
    return f"progress-{step}.json"


def failure_file(step: str) -> str:
    """Where a step tells why it failed."""
    return f"failure-{step}.json"


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
