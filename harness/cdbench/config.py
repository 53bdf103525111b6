"""Configuration: frozen, closed models. A profile fixes models and budgets, a study says what to run, a spec is one run.

Precedence, highest first: command line (`--set`), environment (CDBENCH_SET), cdbench.toml ([set]), study ([set]),
profile, default. Every spec carries the result in full; its run id is the hash of that.
"""

import itertools
import os
import reprlib
import tomllib
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from cdbench.errors import UserError
from cdbench.seeds import digest

Scalar = bool | int | float | str
TEACHER = "teacher"
"""The name of the reference row; no method file may take it."""
PositiveInt = Annotated[int, Field(gt=0)]
Fraction = Annotated[float, Field(gt=0, le=1)]


def show(value: Scalar) -> str:
    """A value for people: 0.0002, not 2.0000e-04."""
    return f"{value:g}" if isinstance(value, float) else str(value)


class Closed(BaseModel):
    """Frozen, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ZooModel(Closed):
    """A small Llama trained on the spot, on the training split and `data.zoo_tasks`, if there are any."""

    source: Literal["zoo"] = "zoo"
    layers: PositiveInt
    hidden: PositiveInt
    ffn: PositiveInt
    heads: PositiveInt = 4
    kv_heads: PositiveInt = 2
    steps: PositiveInt
    lr: Annotated[float, Field(gt=0)]
    batch_size: PositiveInt = 64
    seed: Annotated[int, Field(ge=0)] = 0
    stop_at: Fraction | None = None
    """Stop at the first check at which validation accuracy reaches this; None trains all steps."""
    check_every: PositiveInt = 25
    training_share: Fraction | None = None
    """How much of what it learns from is the training split, where there are `data.zoo_tasks`; None: as much as each of them."""
    pretrained_at: Fraction | None = None
    """Learn `data.zoo_tasks` alone until this share of each one's problems is solved, and only then the training split, too."""

    @model_validator(mode="after")
    def _heads_divide(self) -> "ZooModel":
        if self.hidden % self.heads or self.heads % self.kv_heads:
            raise ValueError("heads must divide hidden, and kv_heads must divide heads")
        return self


class HubModel(Closed):
    """A checkpoint on the Hugging Face hub, at a pinned revision."""

    source: Literal["hub"] = "hub"
    repo: Annotated[str, Field(pattern=r"^[\w.-]+/[\w.-]+$")]
    revision: Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")]


class FolderModel(Closed):
    """A checkpoint in a local folder, in Hugging Face format."""

    source: Literal["folder"] = "folder"
    path: str


ModelConfig = Annotated[ZooModel | HubModel | FolderModel, Field(discriminator="source")]


class DataConfig(Closed):
    """How a task's problems are split. `strict` keeps twins (a+b, b+a) on one side, `paper` splits at random (A11)."""

    seed: Annotated[int, Field(ge=0)] = 0
    train: PositiveInt
    validation: PositiveInt
    test: PositiveInt
    length_shift: Annotated[int, Field(ge=0)] = 0
    """Problems in each out-of-distribution set; 0 makes none."""
    split: Literal["strict", "paper"] = "strict"
    zoo_tasks: tuple[str, ...] = ()
    """Other tasks that zoo models are trained on, too: what they know from before. Methods train on the training split alone."""
    zoo_train: Annotated[int, Field(ge=0)] = 0
    """Problems of each of them; none is a twin of a held-out problem."""

    @model_validator(mode="after")
    def _tasks_and_problems(self) -> "DataConfig":
        if bool(self.zoo_tasks) != bool(self.zoo_train):
            raise ValueError("zoo_tasks and zoo_train go together: the tasks, and how many problems of each")
        return self


class TrainingConfig(Closed):
    """The shared loop's budget (paper A, section 5.1, under the `paper` profile)."""

    lr: Annotated[float, Field(gt=0)] = 1e-4
    batch_size: PositiveInt = 32
    epochs: PositiveInt = 50
    warmup_steps: Annotated[int, Field(ge=0)] = 100
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    clip_norm: Annotated[float, Field(gt=0)] = 1.0
    selection: Literal["last", "validation"] = "last"
    probe_every: PositiveInt = 50
    """Steps between measurements of each term's gradient norm (each costs one more backward pass per term)."""
    precision: Literal["float32", "bfloat16"] = "float32"


class CircuitConfig(Closed):
    """Ablation and pairing (paper A, 4.1.2 and 4.1.3)."""

    calibration: PositiveInt = 500
    """Problems of the training split on which means are taken and impacts measured."""
    mean: Literal["pooled", "per_position"] = "pooled"
    pairing: Literal["nearest_impact", "one_to_one"] = "nearest_impact"
    top_k: PositiveInt = 8


class Limits(Closed):
    """What a step may use in a container. Processors: as many as the profile has threads."""

    memory_gib: Annotated[float, Field(ge=0.25)] = 4
    """Also without swap: what is beyond it ends the step as `oom`."""
    processes: Annotated[int, Field(ge=16)] = 256
    output_gib: Annotated[float, Field(gt=0)] = 2
    """All files that a step leaves together."""
    scratch_gib: Annotated[float, Field(gt=0)] = 1
    """/tmp and /dev/shm, in memory; counts towards it."""


class Profile(Closed):
    """Models and budgets."""

    name: str
    description: str
    teacher: ModelConfig
    student: ModelConfig
    data: DataConfig
    training: TrainingConfig
    circuits: CircuitConfig
    evaluation_batch: PositiveInt = 250
    signal_dtype: Literal["float32", "float16"] = "float32"
    device: Literal["cpu", "cuda"] = "cpu"
    gpu_memory_gib: Annotated[int, Field(ge=0)] = 0
    threads: PositiveInt = 1
    timeout_minutes: PositiveInt = 60
    limits: Limits = Limits()

    @model_validator(mode="after")
    def _somebody_learns_the_zoo_tasks(self) -> "Profile":
        learning = [model for model in (self.teacher, self.student) if isinstance(model, ZooModel)]
        if self.data.zoo_tasks and not learning:
            raise ValueError("data.zoo_tasks are what zoo models learn; neither teacher nor student is one")
        for model in learning:
            if (model.training_share is not None or model.pretrained_at is not None) and not self.data.zoo_tasks:
                raise ValueError(
                    "training_share is the training split's share beside data.zoo_tasks, and pretrained_at how much of those is "
                    "learned first; there are none"
                )
            if model.pretrained_at is not None and not 1 <= self._seen < self.data.zoo_train:
                raise ValueError(
                    "pretrained_at is how much of each of data.zoo_tasks is solved first, seen on data.validation problems of "
                    f"all together ({self.data.validation}): one of each at least, and fewer than data.zoo_train "
                    f"({self.data.zoo_train})"
                )
        return self

    @property
    def _seen(self) -> int:
        return self.data.validation // len(self.data.zoo_tasks)


_NO_NUMBER_DEPENDS_ON = ("description", "timeout_minutes", "gpu_memory_gib", "limits")
_NEW = (
    ("data", "zoo_tasks"),
    ("data", "zoo_train"),
    *((role, key) for role in ("teacher", "student") for key in ("training_share", "pretrained_at")),
)
"""Keys that older specs have not: left out of the run id where they say nothing, so that ids stay."""


class RunSpec(Closed):
    """One run, frozen: everything that the caller decides. `method` "teacher" is the reference row."""

    schema_version: Literal[1] = 1
    profile: Profile
    method: str
    params: dict[str, Scalar] = Field(default_factory=dict)
    task: str
    seed: Annotated[int, Field(ge=0)]

    @property
    def run_id(self) -> str:
        """Hash of the canonical spec, but for what no number depends on."""
        table = self.model_dump(mode="json")
        for key in _NO_NUMBER_DEPENDS_ON:
            del table["profile"][key]
        for part, key in _NEW:
            if not table["profile"][part].get(key, True):
                del table["profile"][part][key]
        return digest(table)

    @property
    def label(self) -> str:
        """For people: method, changed hyperparameters, task, seed. The paper's learning rate goes without saying."""
        changed = "".join(f" {key}={show(value)}" for key, value in sorted(self.params.items()))
        lr = self.profile.training.lr
        if lr != TrainingConfig.model_fields["lr"].default and self.method != TEACHER:
            changed += f" lr={lr:g}"
        return f"{self.method}{changed} / {self.task} / seed {self.seed}"


class Study(Closed):
    """profile x methods x tasks x seeds (+ a sweep: the product of the values of some keys)."""

    name: str
    title: str
    description: str
    profile: str = "tiny"
    methods: list[str] = Field(min_length=1)
    tasks: list[str] = Field(min_length=1)
    seeds: list[Annotated[int, Field(ge=0)]] = Field(min_length=1)
    reference: bool = True
    """Whether the teacher stands in the table as a reference row."""
    set: dict[str, Scalar] = Field(default_factory=dict)
    sweep: dict[str, Annotated[list[Scalar], Field(min_length=1)]] = Field(default_factory=dict)

    def points(self) -> list[dict[str, Scalar]]:
        """The points of the sweep; one empty point when there is none."""
        return [dict(zip(self.sweep, values, strict=True)) for values in itertools.product(*self.sweep.values())]


def _dotted_key(place: Iterable[int | str]) -> str:
    # The discriminator's tag ("zoo") stands in the path of a model's key; it is no key of the file.
    return ".".join(str(part) for part in place if part not in ("zoo", "hub", "folder"))


def explain(
    error: ValidationError,
    where: str,
    model: type[BaseModel] | None = None,
    name: Callable[[tuple[int | str, ...]], str] = _dotted_key,
) -> UserError:
    """A pydantic error as one sentence: file, key, what was wrong. With the `model`, an unknown key is told what there is.

    `name` says what a key is called.
    """
    faults = error.errors()
    first = faults[0]
    key = name(first["loc"]) or "the file"
    if first["type"] == "extra_forbidden":
        return UserError(f"{where}: unknown key '{key}'{_known_instead(key, model)}")
    missing = [f"'{name(fault['loc'])}'" for fault in faults if fault["type"] == "missing"]
    if first["type"] == "missing":
        what = f"key {missing[0]} is" if len(missing) == 1 else f"keys {', '.join(missing)} are"
        return UserError(f"{where}: {what} missing")
    given = first["input"]
    # A table or a list as it stands would bury the reason.
    shown = "" if isinstance(given, dict | list | BaseModel) else f" = {reprlib.repr(given)}"
    return UserError(f"{where}: {key}{shown}: {first['msg'].removeprefix('Value error, ')}")


def _known_instead(key: str, model: type[BaseModel] | None) -> str:
    """What may stand in a key's place: one that is written much alike, or all of its table."""
    if model is None:
        return ""
    known = _keys(model)
    table, _, leaf = key.rpartition(".")
    start = f"{table}." if any(each.startswith(f"{table}.") for each in known) else ""
    for there in ([each for each in known if each.startswith(start)], known):
        leaves = [each.rpartition(".")[2] for each in there]
        if close := get_close_matches(leaf, leaves, n=1):
            alike = [f"'{each}'" for each, end in zip(there, leaves, strict=True) if end == close[0]]
            return f"; did you mean {' or '.join(alike)}?"
    beside = [each.removeprefix(start).split(".") for each in known if each.startswith(start)]
    names = dict.fromkeys(f"{start}{name}{'.…' if deeper else ''}" for name, *deeper in beside)
    return f"; there are: {', '.join(names)}"


def _keys(model: type[BaseModel], prefix: str = "") -> list[str]:
    """All keys of a file, dotted."""
    found: list[str] = []
    for name, entry in model.model_fields.items():
        parts = (entry.annotation, *get_args(entry.annotation))
        tables = [part for part in parts if isinstance(part, type) and issubclass(part, BaseModel)]
        for table in tables:
            found += _keys(table, f"{prefix}{name}.")
        if not tables:
            found.append(f"{prefix}{name}")
    return list(dict.fromkeys(found))


def read_toml(path: Path) -> dict[str, Any]:
    """Reads a TOML file.

    Raises:
        UserError: the file is missing or not TOML.
    """
    try:
        return tomllib.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid TOML: {error}") from None


def available(folder: Literal["profiles", "studies"]) -> dict[str, Path]:
    """Name -> file of the profiles or studies that ship with the package."""
    base = Path(str(resources.files("cdbench"))) / folder
    return {path.stem: path for path in sorted(base.glob("*.toml"))}


def _resolve(folder: Literal["profiles", "studies"], name: str) -> Path:
    if name.endswith(".toml"):
        return Path(name)
    found = available(folder)
    if name not in found:
        kind = {"profiles": "profile", "studies": "study"}[folder]
        raise UserError(f"unknown {kind} '{name}'; there are: {', '.join(found)} (or give a .toml file)")
    return found[name]


def load_study(name: str) -> Study:
    """A study by name, or from a .toml file."""
    path = _resolve("studies", name)
    try:
        return Study(**{"name": path.stem, **read_toml(path)})
    except ValidationError as error:
        raise explain(error, str(path), Study) from None


def profile_table(name: str) -> tuple[dict[str, Any], Path]:
    """A profile as its raw table, and its file."""
    path = _resolve("profiles", name)
    return {"name": path.stem, **read_toml(path)}, path


def parse_assignment(text: str, where: str) -> tuple[str, Scalar]:
    """`training.lr=2e-4` -> ("training.lr", 0.0002). The value is read as TOML; what is not TOML is a string.

    Raises:
        UserError: there is no "=", or the value is no scalar.
    """
    key, separator, raw = text.partition("=")
    if not separator or not key.strip():
        raise UserError(f"{where} {text!r}: write KEY=VALUE, for example training.lr=2e-4")
    try:
        value = tomllib.loads(f"value = {raw.strip()}")["value"]
    except tomllib.TOMLDecodeError:
        value = raw.strip()
    if not isinstance(value, bool | int | float | str):
        raise UserError(f"{where} {text!r}: the value must be a number, a string, true or false")
    return key.strip(), value


def _dotted(table: object, prefix: str = "") -> dict[str, Scalar]:
    """{"training": {"lr": 1}} -> {"training.lr": 1}: TOML reads an unquoted dotted key as a table."""
    if not isinstance(table, dict):
        raise UserError("cdbench.toml: [set] must be a table of values")
    found: dict[str, Scalar] = {}
    for key, value in table.items():
        if isinstance(value, dict):
            found |= _dotted(value, f"{prefix}{key}.")
        elif isinstance(value, bool | int | float | str):
            found[f"{prefix}{key}"] = value
        else:
            raise UserError(f"cdbench.toml: {prefix}{key} must be a number, a string, true or false")
    return found


def layered_overrides(study: Mapping[str, Scalar], flags: Iterable[str]) -> dict[str, tuple[Scalar, str]]:
    """Key -> (value, where it comes from), after precedence: --set > CDBENCH_SET > cdbench.toml > study."""
    layers: list[tuple[str, dict[str, Scalar]]] = [("study", dict(study))]
    local = Path("cdbench.toml")
    if local.is_file():
        table = read_toml(local)
        unknown = set(table) - {"set"}
        if unknown:
            raise UserError(f"{local}: unknown key '{sorted(unknown)[0]}'; the file holds one table, [set]")
        layers.append(("cdbench.toml", _dotted(table.get("set", {}))))
    words = os.environ.get("CDBENCH_SET", "").split()
    layers.append(("CDBENCH_SET", dict(parse_assignment(word, "CDBENCH_SET") for word in words)))
    layers.append(("--set", dict(parse_assignment(text, "--set") for text in flags)))
    merged: dict[str, tuple[Scalar, str]] = {}
    for source, values in layers:
        for key, value in values.items():
            merged[key] = (value, source)
    return merged


def build_profile(name: str, overrides: Mapping[str, tuple[Scalar, str]]) -> Profile:
    """A profile with some values replaced. Keys that start with "method." are left to the method.

    Raises:
        UserError: unknown key or value out of range; the message names the file, or who set it.
    """
    table, path = profile_table(name)
    for key, (value, _) in overrides.items():
        if key.startswith("method."):
            continue
        node = table
        *parents, leaf = key.split(".")
        for part in parents:
            node = node.setdefault(part, {})
            if not isinstance(node, dict):
                raise UserError(f"{overrides[key][1]}: '{key}' is no key of a profile")
        node[leaf] = value
    try:
        profile = Profile(**table)
    except ValidationError as error:
        source = overrides.get(_dotted_key(error.errors()[0]["loc"]))
        raise explain(error, source[1] if source else str(path), Profile) from None
    for key, (least, needed_for) in _LEAST_PROBLEMS.items():
        if 0 < (size := getattr(profile.data, key)) < least:
            _, where = overrides.get(f"data.{key}", (None, str(path)))
            raise UserError(f"{where}: data.{key} = {size}; at least {least} problems are needed {needed_for}")
    return profile


_LEAST_PROBLEMS = {"test": (4, "for the debiased CKA"), "length_shift": (2, "for an interval, or 0 for no such set")}
"""Asked of new profiles alone: records from before it was asked can be read."""


def plan_specs(study: Study, overrides: Mapping[str, tuple[Scalar, str]], profile_name: str) -> list[RunSpec]:
    """Every run of a study, the reference row first. Two sweep points that give one spec give one run."""
    for key in study.sweep:
        if key in overrides:
            raise UserError(f"{overrides[key][1]}: '{key}' is swept by study '{study.name}'; change its sweep instead")
    specs: dict[str, RunSpec] = {}
    methods = [TEACHER] * study.reference + list(study.methods)
    for task, method, point in itertools.product(study.tasks, methods, study.points()):
        merged = {**overrides, **{key: (value, "sweep") for key, value in point.items()}}
        if method == TEACHER:
            merged = {key: value for key, value in merged.items() if not key.startswith("training.")}
        profile = build_profile(profile_name, merged)
        params = {key.removeprefix("method."): value for key, (value, _) in merged.items() if key.startswith("method.")}
        for seed in study.seeds[:1] if method == TEACHER else study.seeds:
            own = {} if method == TEACHER else params
            spec = RunSpec(profile=profile, method=method, params=own, task=task, seed=seed)
            specs.setdefault(spec.run_id, spec)
    return list(specs.values())
