"""The record: what one run left. A versioned schema, written on failure too, atomically; all else is a view of it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, field_validator

from cdbench.api import Position, Source
from cdbench.config import RunSpec, Scalar, explain
from cdbench.errors import UserError
from cdbench.files import read_json, read_plain, sha256, write_atomic
from cdbench.stats import Proportion

SCHEMA = 1
RECORD = "record.json"
GPUS = "CDBENCH_GPUS_HELD"
"""Environment variable: how many GPUs a step was given."""
WANTED = "wanted.json"
"""Which signals the step of that name shall make."""
MOST_WANTED = 2000
"""How many signals a training may name at once."""
TRAINED_IN = "trained-in.json"
"""In what a run was trained, kept by the harness until the record is written: the evaluation may come days later."""
PREPARED = "prepared.json"
"""What the shared steps of a (profile, task) left in the store; while it is there they need not run again."""
Status = Literal["ok", "failed", "oom", "timeout", "interrupted", "refused", "infra"]
"""`infra`: the machine or the engine failed, not the method."""
Stream = Literal["stdout", "stderr"]
STREAMS: tuple[Stream, ...] = ("stdout", "stderr")


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
    binary: float | None = None
    """The share of entries within 0.05 of 0 or 1; None in records from before it was measured."""
    by_layer: list[list[float]] = Field(default_factory=list)
    """How each class's neurons that are on are spread over the layers: [classes][layers], rows sum to 1."""


class Agreement(_Model):
    """A statistic of the student's and the teacher's masks beside what shuffled classes give (`circuits.agreement`)."""

    value: float
    null_mean: float
    above_null: float
    p: float
    shuffles: int
    classes: int


class MaskAgreement(_Model):
    """Whether both models' masks have the same structure (errata B7); None where the statistic says nothing.

    Overlap: correlation over pairs of classes of how many neurons they share. Depth: minus the mean Wasserstein distance over
    relative depth between a class's neurons in the two models.
    """

    overlap: Agreement | None
    depth: Agreement | None


class Baseline(_Model):
    """Areas of circuits that attribution did not choose: by how far an item's output moves, or at random (mean over draws).

    The differences are attribution's less these, on the same problems, with 95 % intervals over problems; None in records from
    before they were kept.
    """

    cpr: float
    cmd: float
    cpr_difference: float | None = None
    cpr_difference_95: list[float] = []
    cmd_difference: float | None = None
    cmd_difference_95: list[float] = []


_UNFAITHFUL = 0.1
"""How far f may be from that of the whole model, which is 1."""


class Faithfulness(_Model):
    """Faithfulness of the circuits of MIB's ten sizes (`circuits.faithfulness`), chosen by score and by |score|."""

    items: list[int]
    f: list[float]
    f_absolute: list[float]
    f_95: list[tuple[float, float]] = []
    """95 % intervals over problems of f by score."""
    cpr: float
    cpr_95: list[float]
    cmd: float
    cmd_95: list[float]
    metric_whole: float
    metric_empty: float
    problems: int = 0
    """How many it was judged on; 0 in records from before it was kept."""
    walked: dict[str, float] = {}
    """CPR and CMD of the same scores, edges taken as those of the rivals (`faithfulness.walked`): what differences are from."""
    magnitude: Baseline | None = None
    random: Baseline | None = None
    on_noise: bool = False
    """Whether the problems do not show that the model does better than nothing: then f divides by chance."""

    @property
    def smallest_faithful(self) -> float | None:
        """The smallest of the shares of items that were kept from which on f stays within 0.1 of the whole model's, which is 1.

        A circuit that does much better than the model is as far from it as one that does worse (MIB's CMD). None where only
        noise was kept.
        """
        if self.on_noise:
            return None
        smallest = 1.0
        for n, f in zip(reversed(self.items), reversed(self.f), strict=True):
            if not abs(1 - f) <= _UNFAITHFUL:
                break
            smallest = n / self.items[-1]
        return smallest


class ExactCheck(_Model):
    """The items (nodes, or edges) of largest |importance| patched exactly, on the first of the problems that they were ranked on.

    Attribution is the first order of what exact patching measures; `attribution` and `exact` are over the same problems.
    """

    items: list[str] = Field(validation_alias=AliasChoices("items", "nodes"))
    """Called `nodes` in records from before edges were patched."""
    attribution: list[float]
    exact: list[float]
    spearman: float | None
    same_sign: int
    problems: int


class EdgeJudgement(_Model):
    """What is said of nodes, said of edges: there are enough of them for ten sizes to differ.

    `accuracy` is that of the circuit of half of the edges, by |score|, everything else at its mean.
    """

    edges: int
    faithfulness: Faithfulness | None
    accuracy: Proportion
    top: dict[str, float] = Field(default_factory=dict)
    """Scores of the strongest edges by name (`m0->a1.h2<q>`), strongest first."""
    stability: float | None = None
    """As that of nodes."""
    exact: ExactCheck | None = None


class InterchangeJudgement(_Model):
    """Interchange accuracy of the node that does best on training problems, on held-out ones.

    `control`: how often the answer stays right where the source has the same value of the variable, and other digits. A node that
    carries the variable and nothing else has both near 1; one that carries the digits loses its answer here.
    """

    variable: str
    node: str
    accuracy: Proportion
    chosen: Proportion | None = None
    """Of the same node, on the training pairs that it was chosen on. Where that is 0 no node gives the expected answer there, and
    the first stands for all. None in records from before it was kept."""
    control: Proportion | None = None
    marks: str = Field(default="", pattern="^[01-]*$")
    """A letter for each pair that all rows of a task are asked, in one order: 1 the expected answer, 0 another, - a pair of which
    this model does not solve both problems. Two rows are compared on the pairs that neither leaves out. Empty in records from
    before it was kept."""


class AttentionJudgement(_Model):
    """Mean attention of the heads of largest |importance| over the held-out prompts of the commonest layout."""

    roles: list[str]
    """What stands at each position: "op1 tens", "+", "op2 ones", "="."""
    problems: int
    heads: dict[str, list[list[float]]]
    """By head, most important first: a row for each position that looks, a column for each that is looked at; rows sum to 1."""


class PairingSupport(_Model):
    """How much the problems say for a functional pairing (`circuits.components.pairing_support`)."""

    correlations: list[float]
    """Between the scores of the two of each pair, over the training problems that it was chosen on."""
    kept: list[float]
    """In what share of pairings of problems drawn anew each pair comes back."""
    held_out: float
    """Mean correlation of the pairs that one half of the problems gives, on the other half; both ways."""
    others: float
    """The same of all that each component could have been paired with."""
    p: float
    """One-sided, of `held_out` where it does not matter who goes with whom."""


class ComponentCka(_Model):
    """Debiased CKA of heads and MLPs: of the same functional pairs for every row, and student x teacher of the top ones.

    `best_mean` leaves these pairs out: for each component of the trained student's circuit the most similar one of its kind in
    the teacher's circuit that is not its partner, and of these the mean.
    """

    pairs: list[tuple[str, str]]
    support: PairingSupport | None = None
    """None in records from before it was asked, or asked as it is now."""
    debiased: list[float]
    debiased_mean: float
    biased_mean: float | None = None
    """Of the same pairs, by the biased estimator, which grows with the width (errata A8)."""
    best_mean: float | None = None
    student: list[str]
    teacher: list[str]
    matrix: list[list[float]]

    @field_validator("support", mode="before")
    @classmethod
    def _asked_as_now(cls, found: object) -> object:
        """Records of 30 November 2026 have numbers that flatter where one model has more to choose from."""
        return None if isinstance(found, dict) and "mean_by_chance" in found else found


class OneByOne(_Model):
    """The model with one node at a time at its mean at that place of a problem: the first by importance beside the others.

    The embedding is left out: without it no model knows its problem. Shares are of the whole model's accuracy (bare answers).
    """

    whole: Proportion
    """Accuracy of the whole model."""
    node: str
    """The first by importance."""
    accuracy: Proportion
    """Without it."""
    share: float
    others_share: float
    """Without one of the others: their mean."""
    needed_beyond_chance: float
    """How much more is lost without the first node than without another."""
    shares: dict[str, float]
    """Of every node but the embedding."""


class CircuitJudgement(_Model):
    """The evaluator's word on a model's circuit (`judge`): found on the training split, judged on held-out problems.

    `importance` of each node is by attribution patching, with 95 % intervals over training problems; `accuracy` is that of the
    circuit alone, everything else at its mean at that place of a problem. `not_judged` has the reason for each part that is None.
    """

    problems: int
    found_on: int = 0
    """Training problems that the circuit was found on; 0 in records from before it was kept."""
    left_out: int = 0
    """Problems, of either split, without a counterfactual of the same layout and another answer."""
    exact: ExactCheck | None = None
    not_judged: dict[str, str] = Field(default_factory=dict)
    nodes: list[str]
    importance: list[float]
    importance_low: list[float]
    importance_high: list[float]
    """Empty where problems are too few for an interval."""
    stability: float | None = None
    """Mean rank correlation (Spearman) of the importances of two halves of the problems; None in records from before it was
    kept, and where it is not defined."""
    circuit: list[str]
    faithfulness: Faithfulness | None
    accuracy: Proportion
    ablated: Proportion | None = None
    """Accuracy with the circuit at its mean and everything else as it is, the embedding too, without which no model knows its
    problem; None in records from before it was measured."""
    alone_share: float | None = None
    ablated_share: float | None = None
    """The two as shares of the whole model's accuracy (bare answers); None where that is 0."""
    random_ablated_share: float | None = None
    """The same with as many nodes at their mean, drawn at random, the embedding never among them: mean over three draws."""
    random_alone_share: float | None = None
    """As `alone_share`, of as many nodes drawn at random, the embedding always among them: mean over three draws."""
    suffices_beyond_chance: float | None = None
    """How much more of the whole model's accuracy the circuit keeps than as many nodes at random."""
    needed_beyond_chance: float | None = None
    """How much more of the whole model's accuracy is lost without the circuit than without as many nodes at random."""
    one_by_one: OneByOne | None = None
    """None in records from before it was measured, and where the whole model solves nothing."""
    attention: AttentionJudgement | None = None
    edges: EdgeJudgement | None = None
    interchange: InterchangeJudgement | None
    """Of the ones' carry."""
    interchange_digits: dict[str, InterchangeJudgement] = {}
    """Of each operand digit; empty in records from before it was judged."""
    cka: ComponentCka | None


class Metrics(_Model):
    """The sealed evaluator's answer.

    `accuracy` is by the integer that the answer begins with, or that ends a worked solution; `strict` demands nothing but that.
    `format_errors` are answers without such an integer, `arithmetic_errors` wrong integers (errata A12).
    """

    accuracy: Proportion
    strict: Proportion
    worked: int = 0
    """How many answers stand at the end of a worked solution (`circuits.solutions`)."""
    format_errors: int
    arithmetic_errors: int
    length_shift: dict[str, Proportion]
    cka: Cka | None
    masks: dict[str, MaskSummary]
    mask_agreement: MaskAgreement | None = None
    circuit: CircuitJudgement | None = None
    circuit_not_judged: str = ""
    """Why there is no judgement of a circuit, where there is none."""
    perplexity: dict[str, float] = Field(default_factory=dict)
    """Of the answers, by held-out split."""
    parameters_changed: int | None = None
    """How many parameters differ from those of the student before training; None in records from before it was counted."""
    parameters: int = 0
    first_prompt: str
    first_prompt_ids: list[int]


def value_at(metrics: Any, path: str) -> Any:
    """What stands at a path of the evaluator's answer, `circuit.edges.faithfulness.cpr`; None where a part was not measured."""
    value = metrics
    for part in path.split("."):
        value = value.get(part) if isinstance(value, dict) else getattr(value, part, None)
    return value


def number_at(metrics: Any, path: str) -> float | None:
    """A number of the evaluator by its path; None where it was not measured."""
    value = value_at(metrics, path)
    return float(value) if isinstance(value, int | float) else None


class Code(_Model):
    """Which code ran. `digest` covers all that a number can depend on: package, plug-ins, library versions."""

    version: str
    digest: str
    commit: str
    dirty: bool
    evaluation: str = ""
    """Hash of what the evaluator runs; rows of two evaluations are not compared. Empty in records from before it was kept."""


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


class WantedSignal(_Model):
    """A signal of a frozen model on the training split (`api.Signal`)."""

    source: Source
    site: Annotated[str, Field(pattern=r"^(logits|mlp\.\d{1,4}\.(out|neurons|up)|attn\.\d{1,4}\.head\.\d{1,4})$")]
    position: Position


Made = Literal["ablation", "solutions"]
"""Shared artefacts that are made when a method asks for them: mean ablation of every component, worked solutions."""


class Wanted(_Model):
    """wanted.json: the signals and other artefacts that a step shall make."""

    signals: list[WantedSignal]
    artefacts: list[Made] = []


class TrainingResult(_Model):
    """outcome.json: what a training says of itself. Whoever trains could have written it, so it is checked before it counts."""

    params: dict[str, Any]
    extras: dict[str, Any]
    cost: dict[Literal["train_seconds", "train_peak_memory_mib", "steps"], Annotated[float, Field(ge=0, lt=1e12)]]
    environment: dict[str, Any]
    inputs: dict[str, Any]
    notes: list[Annotated[str, Field(max_length=1000)]] = Field(default=[], max_length=100)
    files: dict[Literal["student.safetensors", "masks.safetensors"], str] = Field(default={})
    """SHA-256 of what was exported."""
    lacked: list[WantedSignal] = Field(default=[], max_length=MOST_WANTED)
    """What it had to compute because the store, which it must not write to, did not have it."""
    lacked_artefacts: list[Made] = Field(default=[], max_length=2)


class Failure(_Model):
    """failure-STEP.json: why a step failed, in its own words."""

    status: Literal["failed", "oom", "refused", "infra"]
    error: str
    step: str
    exit_code: int


_LARGEST = 1e30
"""Far beyond any loss or hyperparameter, and far enough from what a float holds that sums and pictures of them can be made."""
_PART = r"[A-Za-z0-9_\-][A-Za-z0-9_.\- ]*"
_Key = Annotated[str, Field(pattern=rf"^{_PART}(/{_PART})*$", max_length=120)]
_HISTORY = TypeAdapter(dict[_Key, Annotated[float, Field(allow_inf_nan=False, strict=True, ge=-_LARGEST, le=_LARGEST)]])
_WHEN = ("step", "time")
_OUTCOME_BYTES, _HISTORY_BYTES, _FAILURE_BYTES = 6 << 20, 32 << 20, 1 << 20


def read_failure(folder: Path, step: str) -> Failure | None:
    """Why a step says that it failed; None where it says nothing that can be understood."""
    try:
        return Failure.model_validate_json(read_plain(folder / failure_file(step), _FAILURE_BYTES))
    except (OSError, ValueError):
        return None


def check_outcome(folder: Path, params: Mapping[str, Scalar]) -> None:
    """Holds a training's outcome.json against its schema and the spec's hyperparameters.

    Raises:
        UserError: not JSON, numbers that are not finite, other keys, or other hyperparameters than `params`.
    """
    try:
        table = json.loads(read_plain(folder / "outcome.json", _OUTCOME_BYTES))
        result = TrainingResult.model_validate(table)
        # What cannot be written again (infinity, lone surrogates, nesting without end) must not reach the record.
        json.dumps(table, allow_nan=False, ensure_ascii=False).encode()
        TrainingResult.model_validate_json(result.model_dump_json())
    except ValidationError as error:
        raise explain(error, "outcome.json") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"outcome.json is not what a training leaves: {error}") from None
    for key, value in result.params.items():
        if isinstance(value, int | float) and abs(value) > _LARGEST:
            raise UserError(f"outcome.json says {key} = {value!r:.40}; no hyperparameter is beyond {_LARGEST:g}")
    for key, value in params.items():
        if result.params.get(key) != value:
            raise UserError(f"outcome.json says {key} = {result.params.get(key)!r}, the spec says {value!r}")
    for name, expected in result.files.items():
        if not (folder / name).is_file() or sha256(folder / name) != expected:
            raise UserError(f"{name} is not the file that outcome.json names")


def lacked(folder: Path) -> Wanted:
    """Which signals a training had to compute for itself; its outcome.json has been checked."""
    result = TrainingResult.model_validate(read_json(folder / "outcome.json", "result"))
    return Wanted(signals=result.lacked, artefacts=result.lacked_artefacts)


def check_history(folder: Path) -> None:
    """Holds a training's history.jsonl, if there is one, against its schema.

    Raises:
        UserError: a line that is no JSON object of finite numbers.
    """
    path = folder / "history.jsonl"
    try:
        for line in read_plain(path, _HISTORY_BYTES).splitlines() if path.exists() else ():
            row = _HISTORY.validate_json(line)
            if not all(name in row and row[name].is_integer() and 0 <= row[name] < 1e15 for name in _WHEN):
                raise ValueError("a line has no step or no time")
    except (OSError, ValueError) as error:
        raise UserError(f"history.jsonl is not what a training leaves: {str(error).splitlines()[0]}") from None


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
    if not path.exists():
        raise UserError(f"record {path} does not exist: there is no run {folder.name} here (cdbench list runs)")
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
