"""From a study to the list of runs, with the reason for each: what is new, what is taken from the cache, and why."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cdbench import record
from cdbench.config import (
    TEACHER,
    RunSpec,
    Scalar,
    Study,
    build_profile,
    layered_overrides,
    load_study,
    plan_specs,
    profile_table,
)
from cdbench.discover import find, locate, static_defaults
from cdbench.errors import UserError
from cdbench.files import read_json, write_json
from cdbench.provenance import code_of

STUDY_FILE = "study.json"


@dataclass(frozen=True)
class Places:
    """Where things lie: `runs` holds records, studies and the MLflow store, `store` the shared artefacts."""

    runs: Path
    store: Path

    @property
    def records(self) -> Path:
        """One folder a run."""
        return self.runs / "records"

    def run(self, run_id: str) -> Path:
        """A run's folder."""
        return self.records / run_id

    def study(self, name: str) -> Path:
        """A study's folder."""
        return self.runs / name


def places(runs: str | None, store: str | None) -> Places:
    """Flag, then CDBENCH_RUNS and CDBENCH_STORE, then ./runs and ./runs/store."""
    root = Path(runs or os.environ.get("CDBENCH_RUNS") or "runs").resolve()
    return Places(root, Path(store or os.environ.get("CDBENCH_STORE") or root / "store").resolve())


@dataclass(frozen=True)
class PlannedRun:
    """A run and what will be done with it."""

    spec: RunSpec
    action: Literal["run", "reuse"]
    reason: str


@dataclass(frozen=True)
class Plan:
    """A study, resolved: its runs, and where each value that is not a default comes from."""

    name: str
    study: Study
    profile: str
    runs: tuple[PlannedRun, ...]
    sources: dict[str, tuple[Scalar, str]]

    @property
    def run_ids(self) -> list[str]:
        """In the order of the plan."""
        return [run.spec.run_id for run in self.runs]


def make_plan(  # noqa: PLR0913  (each is a flag of the command line)
    study: Study,
    where: Places,
    *,
    profile: str | None = None,
    flags: Sequence[str] = (),
    seeds: Sequence[int] | None = None,
    only: str | None = None,
    force: bool = False,
) -> Plan:  # fmt: skip
    """Resolves a study.

    Raises:
        UserError: unknown plug-in, profile or key, a value out of range, or nothing left to run.
    """
    overrides = layered_overrides(study.set, flags)
    chosen = profile or study.profile
    if seeds is not None:
        study = study.model_copy(update={"seeds": list(seeds)})
    for task in study.tasks:
        locate("tasks", task)
    for method in study.methods:
        locate("methods", method)
    specs = list({spec.run_id: spec for spec in map(canonical, plan_specs(study, overrides, chosen))}.values())
    if only:
        specs = [spec for spec in specs if only in spec.label or spec.method == TEACHER]
        if all(spec.method == TEACHER for spec in specs):
            raise UserError(f"-k {only!r} matches no run of study '{study.name}'")
    own = {key: (value, "sweep") for key, values in study.sweep.items() for value in [str(values)]}
    suffix = "" if chosen == study.profile else f"-{Path(chosen).stem}"
    runs = tuple(PlannedRun(spec, *_decide(spec, where, force)) for spec in specs)
    return Plan(f"{study.name}{suffix}", study, chosen, runs, {**overrides, **own})


def defaults_of(spec: RunSpec) -> dict[str, Scalar]:
    """The constant defaults of the method's hyperparameters, read without importing it."""
    path = find("methods").get(spec.method)
    return static_defaults(path) if path else {}


def canonical(spec: RunSpec) -> RunSpec:
    """The spec without hyperparameters set to their defaults, so that saying the default gives the same run."""
    defaults = defaults_of(spec)
    return spec.model_copy(update={"params": {k: v for k, v in spec.params.items() if defaults.get(k) != v}})


def _decide(spec: RunSpec, where: Places, force: bool) -> tuple[Literal["run", "reuse"], str]:
    folder = where.run(spec.run_id)
    if not (folder / record.RECORD).exists():
        if (folder / "checkpoint.pt").exists():
            return "run", "goes on from its checkpoint"
        return "run", "interrupted before" if folder.exists() else "new"
    done = record.read(folder)
    if force:
        return "run", "forced"
    if done.status == "interrupted" and (folder / "checkpoint.pt").exists():
        return "run", "interrupted before, goes on from its checkpoint"
    if done.status != "ok":
        return "run", f"{done.status} before"
    if done.code.digest != code_of(spec).digest:
        return "run", "code or library versions changed since"
    if damaged := record.damaged_artefacts(folder, done):
        return "run", f"its {damaged[0]} was altered"
    return "reuse", "finished, same spec and code"


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
    written = set(_flat(raw))
    rows = []
    for key, value in _flat(profile.model_dump(mode="json")).items():
        source = plan.sources[key][1] if key in plan.sources else path.name if key in written else "default"
        shown = plan.sources[key][0] if source == "sweep" else value
        rows.append((key, shown, source))
    rows += [(key, value, source) for key, (value, source) in plan.sources.items() if key.startswith("method.")]
    return rows


def _flat(table: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, dict):
            result |= _flat(value, f"{prefix}{key}.")
        else:
            result[f"{prefix}{key}"] = value
    return result


def save_study(plan: Plan, where: Places) -> Path:
    """Writes down which runs make up the study; the report and MLflow read this."""
    folder = where.study(plan.name)
    table = {
        "name": plan.name,
        "profile": plan.profile,
        "study": plan.study.model_dump(mode="json"),
        "run_ids": plan.run_ids,
    }
    write_json(folder / STUDY_FILE, table, "the study")
    return folder


@dataclass(frozen=True)
class SavedStudy:
    """A study that was run: its name, definition and run ids."""

    name: str
    profile: str
    study: Study
    run_ids: list[str]
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
        run_ids=json.loads(json.dumps(table["run_ids"])),
        folder=path.parent,
    )


def single_run_study(method: str, task: str, profile: str, seeds: Sequence[int]) -> Study:
    """What `cdbench run METHOD` runs: a study of one method."""
    return Study(
        name=f"run_{method}",
        title=f"{method} on {task}",
        description="A single method, by `cdbench run`.",
        profile=profile,
        methods=[method],
        tasks=[task],
        seeds=list(seeds),
    )


def named_study(name: str) -> Study:
    """A study by name or .toml file."""
    return load_study(name)
