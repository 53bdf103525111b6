"""What the commands do: run a study from plan to report, verify a run, export a student."""

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from rich.console import Console

from cdbench import record
from cdbench.config import TEACHER, RunSpec
from cdbench.display import LiveTable, Logs, PlainLines
from cdbench.errors import EnvironmentLacks, UserError
from cdbench.files import explained, one_line, printable, read_json, sha256, write_json
from cdbench.plan import Places, Plan, PlannedRun, SavedStudy, read_study, save_study, shortest, single_run_study
from cdbench.provenance import code_of, evaluation_digest
from cdbench.record import Record
from cdbench.runners import End, Runner
from cdbench.runners.docker import DockerRunner
from cdbench.runners.local import LocalRunner
from cdbench.runners.ray import RayRunner
from cdbench.runners.remote import Inside
from cdbench.runners.schedule import Schedule, exclusive
from cdbench.runners.slurm import SlurmRunner
from cdbench.scoring import share

NO_TRACKING = "none"
"""In the place of a server: records are sent to no MLflow."""
_SYNC_SECONDS = 900
REPEATABLE = ("student.safetensors", "masks.safetensors", "predictions.jsonl")
"""What two runs of one spec on one machine must have in common, byte for byte."""
_LAST_BYTES = 1 << 16


@dataclass(frozen=True)
class Settings:
    """How to run, as far as no number depends on it."""

    where: Places
    jobs: int
    force: bool
    report: bool
    uri: str | None
    command: str
    runner: Runner
    logs: bool = False


def crash_place(folder: Path) -> str:
    """Where in the method's file a training broke off, from what it printed: " (my.py, line 12, in run: …)"; or nothing."""
    log = folder / record.log_file("train", "stderr")
    lines = _end_of(log).splitlines() if log.is_file() else []
    places = [i for i, line in enumerate(lines) if "/methods/" in line and line.lstrip().startswith("File ")]
    if not places:
        return ""
    where = lines[places[-1]].rpartition("/methods/")[2].replace('"', "")
    return printable(f" ({where}: {lines[places[-1] + 1].strip() if places[-1] + 1 < len(lines) else ''})", 300)


def _end_of(log: Path) -> str:
    """The last of what was printed: a method may have printed as much as it may leave."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _LAST_BYTES))
        return file.read(_LAST_BYTES).decode(errors="replace")


@dataclass(frozen=True)
class StudyResult:
    """A finished study."""

    saved: SavedStudy
    records: dict[str, Record]
    report: Path | None
    where: Places

    def failures(self) -> list[str]:
        """Runs without a result, in words: what went wrong, where, and the file with all that was printed."""
        found = []
        for run_id, done in self.records.items():
            if done.status == "ok":
                continue
            folder = self.where.run(run_id)
            logs = [folder / record.log_file(step, "stderr") for step in ("train", "evaluate")]
            printed = [shortest(log) for log in logs if log.is_file() and log.stat().st_size]
            log = f"\n    printed: {', '.join(printed)}" if printed else ""
            found.append(f"{done.spec.label}: {done.status}, {one_line(done.error)}{crash_place(folder)}{log}")
        return found

    def table(self) -> str:
        """The result, for people."""
        width = max(len(r.spec.label) for r in self.records.values())
        lines = [self.saved.name]
        for run_id, done in self.records.items():
            result = share(done.metrics.accuracy) if done.metrics else one_line(f"{done.status}: {done.error}")
            lines.append(f"  {run_id}  {done.spec.label:<{width}}  {result}")
        if self.report:
            lines.append(f"report: {self.report}")
        return "\n".join(lines)

    def as_json(self) -> dict[str, Any]:
        """The result, for machines."""
        return {
            "study": self.saved.name,
            "report": str(self.report) if self.report else None,
            "runs": [
                {
                    "run_id": run_id,
                    "label": done.spec.label,
                    "status": done.status,
                    "error": done.error,
                    "metrics": done.metrics.model_dump(mode="json") if done.metrics else None,
                }
                for run_id, done in self.records.items()
            ],
        }


def run_study(plan: Plan, settings: Settings) -> StudyResult:
    """Runs a plan, writes its report and brings MLflow up to date.

    Raises:
        EnvironmentLacks: the machine lacks what the profile needs.
        KeyboardInterrupt: stopped; what is finished is kept.
    """
    console = Console(stderr=True)
    todo = [planned for planned in plan.runs if planned.action == "run"]
    with exclusive(settings.where):
        _announce(console, plan, len(todo), settings.jobs)
        if todo:
            _require_machine(plan, settings)
            _say_where(console, plan, settings.runner)
        save_study(plan, settings.where, settings.command)
        with _display(console, len(plan.runs), logs=settings.logs) as display, closing(settings.runner):
            schedule = Schedule(plan, settings.where, settings.runner, display, settings.jobs, settings.force)
            made = schedule.run()
        records = {r.spec.run_id: made[r.spec.run_id] for r in plan.runs}
        saved = read_study(plan.name, settings.where)
        report = None
        if settings.report:
            from cdbench.report.build import write_report

            report = write_report(saved, settings.where)
        _sync(console, saved, settings)
    return StudyResult(saved, records, report, settings.where)


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def _announce(console: Console, plan: Plan, todo: int, jobs: int) -> None:
    profile = plan.runs[0].spec.profile
    _say(console, f"{plan.name}: {plan.study.title}")
    _say(console, f"  {plan.study.description}")
    _say(console, f"  profile {profile.name}: {profile.description}")
    cached = len(plan.runs) - todo
    _say(
        console,
        f"  {len(plan.runs)} runs: {todo} to do, {cached} finished before; {jobs} at a time, {profile.threads} "
        f"thread{'s' if profile.threads > 1 else ''} each, on the {'CPU' if profile.device == 'cpu' else 'GPU'}",
    )


def make_runner(name: str, image: str | None = None, gpus: Sequence[str] = (), inside: Inside = "docker") -> Runner:
    """The runner of this name. A cluster gives GPUs itself; `inside` says what its steps run in."""
    if name == DockerRunner.name:
        return DockerRunner(image, gpus)
    if name == RayRunner.name:
        return RayRunner(inside, image)
    if name == SlurmRunner.name:
        return SlurmRunner(inside, image)
    return LocalRunner()


def _say_where(console: Console, plan: Plan, runner: Runner) -> None:
    if runner.name in (RayRunner.name, SlurmRunner.name):
        _say(
            console, f"  handed to {runner.name}, {'in containers' if runner.isolated else 'as plain processes'} there"
        )
    if container := runner.describe(plan.runs[0].spec):
        _say(console, f"  in containers of {container['image']} ({container['image_id']})")


def _require_machine(plan: Plan, settings: Settings) -> None:
    from cdbench.requirements import missing

    settings.runner.require([planned.spec for planned in plan.runs], settings.where.scratch)
    # What a container or a cluster has of GPUs, its runner asks there; weights are mounted from here.
    lacks = missing(plan.runs[0].spec.profile, gpu=settings.runner.name == LocalRunner.name)
    if lacks:
        listed = "\n".join(f"  - {sentence}" for sentence in lacks)
        raise EnvironmentLacks(f"profile '{plan.profile}' cannot run on this machine. Missing:\n{listed}")


def _display(console: Console, total: int, *, logs: bool = False) -> AbstractContextManager[Any]:
    shown = Logs(console) if logs else None
    return LiveTable(console, total, shown) if console.is_terminal else PlainLines(console, total, shown)


def _sync(console: Console, saved: SavedStudy, settings: Settings) -> None:
    """Brings MLflow up to date, in a process of its own: whatever it does there, the study is done."""
    if settings.uri == NO_TRACKING:
        return
    where = settings.where
    command = [
        sys.executable,
        "-m",
        "cdbench",
        "sync",
        saved.name,
        "--runs",
        str(where.runs),
        "--store",
        str(where.store),
    ]
    command += ["--mlflow", settings.uri] if settings.uri else []
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SYNC_SECONDS)
        told, ok = (done.stdout if done.returncode == 0 else done.stderr).strip(), done.returncode == 0
    except subprocess.TimeoutExpired:
        told, ok = f"no end after {_SYNC_SECONDS} s; later: cdbench sync {saved.name}", False
    last = told.splitlines()[-1] if told else "nothing was said"
    _say(console, f"{'MLflow' if ok else 'warning: MLflow'}: {last.removeprefix('cdbench: ')}")


def require_result(where: Places, run_id: str) -> Record:
    """The record of a run that has a result.

    Raises:
        UserError: no such run, or it has no result to verify.
    """
    done = record.read(where.run(run_id))
    if done.metrics is None:
        raise UserError(f"run {run_id} has status {done.status} ({done.error}); there is no result to verify")
    return done


def verify(where: Places, run_id: str) -> list[str]:
    """Evaluates a run's weights again, in a process that imports no plug-in; what differs, one line each.

    Raises:
        UserError: no such run, or it has no result to verify.
    """
    folder = where.run(run_id)
    done = require_result(where, run_id)
    differences = [f"{name} is missing or was altered" for name in record.damaged_artefacts(folder, done)]
    with tempfile.TemporaryDirectory(prefix="cdbench-verify-") as name:
        copy = Path(name)
        # By the record's own spec: a spec.json beside it could name other data.
        write_json(copy / "spec.json", done.spec.model_dump(mode="json"), "the spec")
        if not _is_spec(folder / "spec.json", done.spec):
            differences.append("spec.json is not the record's spec")
        for file in ("student.safetensors", "masks.safetensors"):
            if (folder / file).is_file():
                shutil.copyfile(folder / file, copy / file)
        handle = LocalRunner().start("evaluate", copy, where.store, done.spec)
        wait([handle.waitable])
        end = handle.ended()
        if end != End(0):
            if end and not (copy / record.failure_file("evaluate")).exists():
                how = f"killed by signal {-end.code}" if end.code < 0 else f"exit code {end.code}"
                raise EnvironmentLacks(
                    f"run {run_id} cannot be evaluated again: the evaluator left without a word ({how})"
                )
            failure = read_json(copy / record.failure_file("evaluate"), "failure")
            if failure["status"] != "refused":
                raise UserError(
                    f"run {run_id} cannot be evaluated again: {failure['error']}. Verifying needs the store that the run "
                    f"used ({where.store}) and the code that made it ({done.code.commit[:12]})"
                )
            return [*differences, f"the weights cannot be evaluated: {failure['error']}"]
        again: dict[str, Any] = read_json(copy / "metrics.json", "metrics")
        others = sha256(copy / "predictions.jsonl") != done.artefacts.get("predictions.jsonl")
    assert done.metrics
    judged = ["predictions.jsonl: the weights give other answers than the record's"] if others else []
    judged += _compare(done.metrics.model_dump(mode="json"), again["metrics"], "the weights say")
    if judged and not differences and done.code.evaluation != evaluation_digest():
        raise UserError(
            f"run {run_id} was judged by {done.code.evaluation or 'an older version'} and not by {evaluation_digest()}, which is "
            f"this evaluation; what differs ({judged[0]}) may come from that: check out commit {done.code.commit[:12]}"
        )
    return differences + judged + _compare(done.inputs, again["inputs"], "the store has", "input ")


def _is_spec(file: Path, spec: RunSpec) -> bool:
    try:
        return RunSpec.model_validate(read_json(file, "spec")) == spec
    except (UserError, ValueError):
        return False


def run_specs(specs: Sequence[RunSpec], where: Places, runner: Runner) -> dict[str, Record]:
    """Runs specs that belong to no study, one at a time, into `where`; a record per run id.

    Raises:
        EnvironmentLacks: nothing can be run here.
    """
    first = specs[0]
    study = single_run_study(first.method, first.task, first.profile.name, [spec.seed for spec in specs])
    runs = tuple(PlannedRun(spec, "run", "asked for") for spec in specs)
    plan = Plan(study.name, study, first.profile.name, runs, tuple(spec.run_id for spec in specs), {})
    runner.require(list(specs), where.scratch)
    with _display(Console(stderr=True), len(specs)) as display:
        return Schedule(plan, where, runner, display, jobs=1).run()


def rerun(where: Places, run_id: str, runner: Runner) -> list[str]:
    """Runs a run's spec once more, from the store's models, in a folder of its own; what differs from the record, one line each.

    Raises:
        UserError: no such run, or its record was made by other code than this.
        EnvironmentLacks: nothing can be run here.
    """
    done = record.read(where.run(run_id))
    if done.code.digest != (own := code_of(done.spec)).digest:
        raise UserError(
            f"run {run_id} was made by other code (digest {done.code.digest}, commit {done.code.commit[:12]}) than this "
            f"(digest {own.digest}); check that commit out to run it again"
        )
    with tempfile.TemporaryDirectory(prefix="cdbench-rerun-") as name, closing(runner):
        again = run_specs([done.spec], Places(Path(name), where.store), runner)[run_id]
    if again.status != done.status:
        return [f"status: the record says {done.status}, this time it is {again.status} ({again.error})"]
    differences = []
    if done.metrics and again.metrics:
        differences = _compare(
            done.metrics.model_dump(mode="json"), again.metrics.model_dump(mode="json"), "this time it is"
        )
    for what, stored, now in (
        ("inputs", done.inputs, again.inputs),
        ("hyperparameters", done.params, again.params),
        ("notes", done.notes, again.notes),
    ):
        if stored != now:
            differences.append(f"{what}: the record says {_brief(stored)}, this time it is {_brief(now)}")
    differences += [
        f"{file} is another one this time: something in the method or the machine is not fixed by spec and seed"
        for file in REPEATABLE
        if done.artefacts.get(file) != again.artefacts.get(file)
    ]
    return differences


def _compare(stored: dict[str, Any], other: dict[str, Any], verb: str, what: str = "") -> list[str]:
    return [
        f"{what}{key}: the record says {_brief(stored[key])}, {verb} {_brief(other.get(key))}"
        for key in stored
        if stored[key] != other.get(key)
    ]


def _brief(value: object) -> str:
    text = str(value)
    return text if len(text) <= 120 else text[:117] + "..."


def export(where: Places, run_id: str, folder: Path) -> None:
    """Writes a run's student as a Hugging Face folder.

    Raises:
        UserError: no such run, a run without student, or a folder that is not empty.
    """
    done = record.read(where.run(run_id))
    if done.metrics is None or done.spec.method == TEACHER:
        raise UserError(f"run {run_id} ({done.spec.label}, {done.status}) has no student to export")
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder} is not empty; choose another folder")
    from transformers.utils.logging import disable_progress_bar

    from cdbench.evaluate import load_student
    from cdbench.store import Store
    from cdbench.workspace import Workspace

    disable_progress_bar()
    workspace = Workspace(done.spec.profile, done.spec.task, Store(where.store), lambda *_: None, build=False)
    model = workspace.student.model()
    weights = where.run(run_id) / "student.safetensors"
    if weights.exists():
        load_student(model, weights)
    with explained(folder, "the student"):
        model.save_pretrained(folder)
        workspace.tokenizer.save_pretrained(folder)
