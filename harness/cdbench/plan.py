"""From a study to the list of runs, with the reason for each: what is new, what is taken from the cache, and why."""

import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from cdbench import plugins, record
from cdbench.config import (
    TEACHER,
    FolderModel,
    RunSpec,
    Scalar,
    Study,
    build_profile,
    layered_overrides,
    plan_specs,
    profile_table,
)
from cdbench.discover import Kind, check_file, find, locate, require_values, static_fields
from cdbench.errors import UserError
from cdbench.files import read_json, write_atomic, write_json
from cdbench.provenance import code_of
from cdbench.requirements import folder_content
from cdbench.seeds import digest

STUDY_FILE = "study.json"
STAMP = "code.txt"
"""Which code a run's folder belongs to, and whether the method was locked in."""
_ISOLATED = "isolated"


@dataclass(frozen=True)
class Places:
    """Where things lie: `runs` holds records, studies and the MLflow store, `store` the shared artefacts."""

    runs: Path
    store: Path

    @property
    def records(self) -> Path:
        """One folder a run."""
        return self.runs / "records"

    @property
    def plugins(self) -> Path:
        """Copies of the method files that were named by their path, as they were when they last ran."""
        return self.runs / "plugins"

    @property
    def scratch(self) -> Path:
        """What is under way, and nobody's yet."""
        return self.runs / "scratch"

    def run(self, run_id: str) -> Path:
        """A run's folder."""
        return self.records / run_id

    def study(self, name: str) -> Path:
        """A study's folder."""
        return self.runs / name


def shortest(path: Path) -> str:
    """A path as a person would type it: from the current folder where it lies in it."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def places(runs: str | None, store: str | None, *, search: bool = True) -> Places:
    """Flag, then CDBENCH_RUNS and CDBENCH_STORE, then ./runs and ./runs/store.

    What was brought there is found from now on, unless `search` is off.
    """
    root = Path(runs or os.environ.get("CDBENCH_RUNS") or "runs").resolve()
    where = Places(root, Path(store or os.environ.get("CDBENCH_STORE") or root / "store").resolve())
    if search and where.plugins.is_dir():
        plugins.include(where.plugins)
    return where


def bring(file: Path, where: Places, kind: Kind = "methods") -> str:
    """Copies a plug-in file to where it is found from now on; returns its name.

    Raises:
        UserError: no such file, or another plug-in of that kind has its name.
    """
    try:
        source = file.read_bytes()
    except OSError as error:
        raise UserError(f"{kind[:-1]} file {file} cannot be read: {error.strerror}") from None
    check_file(file)
    target = where.plugins / kind / file.name
    taken = find(kind).get(file.stem)
    if taken and taken not in (target, file.resolve()):
        raise UserError(f"there is a {kind[:-1]} '{file.stem}' already ({taken}); rename {file.name}")
    if taken == file.resolve():
        return file.stem  # found as it is
    write_atomic(target, source, f"the {kind[:-1]}")
    plugins.include(where.plugins)
    return file.stem


def copy_of_brought(where: Places, folder: Path) -> Places:
    """A copy in `folder` of what was brought, found in its place: what is brought there leaves what is stored as it is."""
    copy = Places(folder, where.store)
    if where.plugins.is_dir():
        shutil.copytree(where.plugins, copy.plugins)
    copy.plugins.mkdir(exist_ok=True)
    plugins.include(copy.plugins, instead_of=where.plugins)
    return copy


@dataclass(frozen=True)
class PlannedRun:
    """A run and what will be done with it."""

    spec: RunSpec
    action: Literal["run", "reuse"]
    reason: str


@dataclass(frozen=True)
class Plan:
    """A study, resolved: its runs, and where each value that is not a default comes from.

    `runs` is what was asked for now, `run_ids` the whole study: `-k` narrows the one and not the other.
    """

    name: str
    study: Study
    profile: str
    runs: tuple[PlannedRun, ...]
    run_ids: tuple[str, ...]
    sources: dict[str, tuple[Scalar, str]]


def make_plan(  # noqa: PLR0913  (each is a flag of the command line)
    study: Study,
    where: Places,
    *,
    profile: str | None = None,
    flags: Sequence[str] = (),
    seeds: Sequence[int] | None = None,
    only: str | None = None,
    force: bool = False,
    isolated: bool = False,
) -> Plan:  # fmt: skip
    """Resolves a study. `isolated`: what was not made in a container does not count as finished.

    Raises:
        UserError: unknown plug-in, profile, key or hyperparameter, a value out of range, or nothing left to run.
    """
    overrides = layered_overrides(study.set, flags)
    chosen = profile or study.profile
    if seeds is not None:
        study = study.model_copy(update={"seeds": list(seeds)})
    for task in study.tasks:
        locate("tasks", task)
    _require_hyperparameters(study, overrides)
    specs = list({spec.run_id: spec for spec in map(canonical, plan_specs(study, overrides, chosen))}.values())
    run_ids = tuple(spec.run_id for spec in specs)
    if only:
        specs = [spec for spec in specs if only in spec.label or spec.method == TEACHER]
        if all(spec.method == TEACHER for spec in specs):
            raise UserError(f"-k {only!r} matches no run of study '{study.name}'")
    for name in specs[0].profile.data.zoo_tasks:
        locate("tasks", name)
    runs = tuple(PlannedRun(spec, *_decide(spec, where, force, isolated)) for spec in specs)
    swept: dict[str, tuple[Scalar, str]] = {key: (str(values), "sweep") for key, values in study.sweep.items()}
    name = _name(study, chosen, overrides, seeds)
    return Plan(name, study, chosen, runs, run_ids, {**overrides, **swept})


def _name(study: Study, profile: str, overrides: Mapping[str, tuple[Scalar, str]], seeds: Sequence[int] | None) -> str:
    """paper_a; paper_a-smoke under another profile; paper_a-1f0c9a with other values: another study, another report."""
    changed: dict[str, object] = {key: value for key, (value, source) in overrides.items() if source != "study"}
    changed |= {"seeds": list(seeds)} if seeds is not None else {}
    suffix = "" if profile == study.profile else f"-{Path(profile).stem}"
    return _as_folder(study.name + suffix) + (f"-{digest(changed, 6)}" if changed else "")


def _as_folder(name: str) -> str:
    """A name that is a folder's everywhere, in a link and on a leaderboard; another one where that took something away."""
    plain = re.sub(r"[^A-Za-z0-9_-]+", "_", name)
    return plain if plain == name else f"{plain}-{digest(name, 6)}"


def _require_hyperparameters(study: Study, overrides: Mapping[str, tuple[Scalar, str]]) -> None:
    """A `method.x` must be a hyperparameter of at least one method of the study; the others go without it."""
    have = {method: static_fields(locate("methods", method)) for method in study.methods}
    for key in (*overrides, *study.sweep):
        name = key.removeprefix("method.")
        if key != name and not any(name in fields for fields in have.values()):
            listed = (
                "; ".join(f"{method} has {', '.join(fields)}" for method, fields in have.items() if fields) or "none"
            )
            raise UserError(f"no method of study '{study.name}' has a hyperparameter '{name}' ({listed})")
    given = [(key, value) for key, (value, _) in overrides.items()]
    given += [(key, value) for key, values in study.sweep.items() for value in values]
    own = [(key.removeprefix("method."), value) for key, value in given if key.startswith("method.")]
    for method in study.methods if own else ():
        require_values(method, own)


def _fields_of(spec: RunSpec) -> dict[str, Scalar | None]:
    """The fields of the spec's method; none for the reference row, which has no file."""
    path = find("methods").get(spec.method)
    return static_fields(path) if path else {}


def defaults_of(spec: RunSpec) -> dict[str, Scalar]:
    """The constant defaults of the method's hyperparameters, read without importing it."""
    return {key: value for key, value in _fields_of(spec).items() if value is not None}


def canonical(spec: RunSpec) -> RunSpec:
    """The spec without hyperparameters that the method has not, or that are set to their defaults: one run, one spec."""
    fields = _fields_of(spec)
    params: dict[str, Scalar] = {}
    for key, value in spec.params.items():
        if key in fields and fields[key] != value:
            whole = isinstance(fields[key], float) and isinstance(value, int) and not isinstance(value, bool)
            params[key] = float(value) if whole else value
    return spec.model_copy(update={"params": params})


def stamp(code: str, isolated: bool) -> str:
    """What is written into a run's folder before anything is run there."""
    return f"{code}\n{_ISOLATED if isolated else 'local'}\n"


def same_code(folder: Path, spec: RunSpec, isolated: bool = False) -> bool:
    """Whether what lies in a run's folder was made by the code of today, and, if asked, by a method that was locked in."""
    words = (folder / STAMP).read_text().split() if (folder / STAMP).exists() else []
    return words[:1] == [code_of(spec).digest] and (not isolated or words[1:] == [_ISOLATED])


def is_trained(folder: Path, spec: RunSpec, isolated: bool = False) -> bool:
    """Whether a run was interrupted between training and evaluation: then only the evaluation is left."""
    stopped = not (folder / record.RECORD).exists() or record.read(folder).status == "interrupted"
    return stopped and same_code(folder, spec, isolated) and has_outcome(folder, spec)


def has_outcome(folder: Path, spec: RunSpec) -> bool:
    """Whether a training of this spec left an outcome that can be believed so far, with the files that it names."""
    try:
        record.check_outcome(folder, {**defaults_of(spec), **spec.params})
    except UserError:
        return False
    return True


def _decide(spec: RunSpec, where: Places, force: bool, isolated: bool) -> tuple[Literal["run", "reuse"], str]:
    folder = where.run(spec.run_id)
    if force:
        return "run", "forced"
    if not folder.exists():
        return "run", "new"
    done = record.read(folder) if (folder / record.RECORD).exists() else None
    if not same_code(folder, spec):
        return "run", "code or library versions changed since"
    if not same_code(folder, spec, isolated):
        return "run", "made outside a container before"
    if done is None or done.status == "interrupted":
        if is_trained(folder, spec, isolated):
            return "run", "interrupted before, only the evaluation is left"
        rest = ", goes on from its checkpoint" if (folder / "checkpoint.pt").exists() else ""
        return "run", f"interrupted before{rest}"
    if done.status != "ok":
        return "run", f"{done.status} before"
    if damaged := record.damaged_artefacts(folder, done):
        return "run", f"its {damaged[0]} was altered"
    if changed := _changed_folder(spec, done):
        return "run", f"the {changed} in its folder is another one now"
    return "reuse", "finished, same spec and code"


def _changed_folder(spec: RunSpec, done: record.Record) -> str | None:
    """Which model of a local folder is not the one that the record was made with."""
    for role, config in (("teacher", spec.profile.teacher), ("student", spec.profile.student)):
        if isinstance(config, FolderModel) and folder_content(config) != done.inputs.get(role):
            return role
    return None


def plan_json(plan: Plan) -> dict[str, Any]:
    """A plan for machines."""
    return {
        "study": plan.name,
        "profile": plan.profile,
        "runs": [
            {"run_id": r.spec.run_id, "label": r.spec.label, "action": r.action, "reason": r.reason} for r in plan.runs
        ],
        "values": [{"key": k, "value": v, "source": s} for k, v, s in value_sources(plan)],
    }


def value_sources(plan: Plan) -> list[tuple[str, Any, str]]:
    """Every value of the profile, and who set it: (key, value, source)."""
    profile = build_profile(plan.profile, {k: v for k, v in plan.sources.items() if v[1] != "sweep"})
    raw, path = profile_table(plan.profile)
    written = set(flat(raw))
    rows = []
    for key, value in flat(profile.model_dump(mode="json")).items():
        source = plan.sources[key][1] if key in plan.sources else path.name if key in written else "default"
        shown = plan.sources[key][0] if source == "sweep" else value
        rows.append((key, shown, source))
    rows += [(key, value, source) for key, (value, source) in plan.sources.items() if key.startswith("method.")]
    return rows


def flat(table: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested tables as one, with dotted keys: training.lr."""
    result: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, dict):
            result |= flat(value, f"{prefix}{key}.")
        else:
            result[f"{prefix}{key}"] = value
    return result


def save_study(plan: Plan, where: Places, command: str) -> None:
    """Writes down which runs make up the study; the report and MLflow read this."""
    table = {
        "name": plan.name,
        "profile": plan.profile,
        "study": plan.study.model_dump(mode="json"),
        "run_ids": list(plan.run_ids),
        "command": command,
    }
    write_json(where.study(plan.name) / STUDY_FILE, table, "the study")


@dataclass(frozen=True)
class SavedStudy:
    """A study that was run: its name, definition and run ids."""

    name: str
    profile: str
    study: Study
    run_ids: list[str]
    command: str
    folder: Path


def read_study(name: str, where: Places) -> SavedStudy:
    """A study that was run under `where`.

    Raises:
        UserError: there is none of that name; the message lists those there are.
    """
    path = where.study(name) / STUDY_FILE
    if not path.exists():
        have = ", ".join(p.parent.name for p in sorted(where.runs.glob(f"*/{STUDY_FILE}"))) or "none"
        raise UserError(f"no study '{name}' was run under {where.runs}; there are: {have}")
    table = read_json(path, "study file")
    return SavedStudy(
        name=str(table["name"]),
        profile=str(table["profile"]),
        study=Study.model_validate(table["study"]),
        run_ids=[str(run_id) for run_id in cast(list[object], table["run_ids"])],
        command=str(table["command"]),
        folder=path.parent,
    )


def single_run_study(method: str, task: str, profile: str, seeds: Sequence[int]) -> Study:
    """What `cdbench run METHOD` runs: a study of one method."""
    return Study(
        name=f"run_{method}_{task}",
        title=f"{method} on {task}",
        description="A single method, by cdbench run.",
        profile=profile,
        methods=[method],
        tasks=[task],
        seeds=list(seeds),
    )
