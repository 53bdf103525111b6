"""Runs a plan: shared artefacts first, then train and evaluate of each run, several at a time, one record each.

Whatever happens to a run is written into its record, and the study goes on. Ctrl-C and SIGTERM stop what is under way;
the same command goes on from there.
"""

import fcntl
import os
import shutil
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, Protocol

from pydantic import BaseModel, Field, ValidationError

from cdbench import record
from cdbench.config import TEACHER, RunSpec
from cdbench.errors import EnvironmentLacks, UserError
from cdbench.files import explained, printable, read_json, read_plain, sha256, write_atomic, write_json
from cdbench.plan import STAMP, Places, Plan, PlannedRun, defaults_of, has_outcome, is_trained, same_code, stamp
from cdbench.provenance import code_of
from cdbench.record import Code, Metrics, Record, Status
from cdbench.runners import End, Handle, Runner
from cdbench.seeds import digest
from cdbench.store import Store

_POLL_SECONDS = 0.25
_PROGRESS_BYTES = 1 << 16
_MOST = 1 << 53
"""Steps that a float counts exactly; a method could say that it takes more."""
_AGAIN_SECONDS = (1, 4, 10, 20)
_TRIES = 3
"""How often a step is started that the machine or the engine fails."""
_OUTCOME = ("outcome.json", "student.safetensors", "masks.safetensors")
_OUTPUTS = (*_OUTCOME, "metrics.json", "predictions.jsonl")
_WALL = "train_wall_seconds"
"""A training's time by the clock of whoever had it locked in; all other cost of it is its own word."""
_RESULT = {"train": "outcome.json", "evaluate": "metrics.json", "circuits": record.PREPARED}
"""A step that ends well without this file has not ended well: a method, or a task's file, can leave by `os._exit(0)`."""
_ARTEFACTS = ("spec.json", "history.jsonl", *_OUTPUTS)


class Told(BaseModel):
    """How far a step is; `total` 0 where no end is known."""

    step: str
    done: int = Field(default=0, ge=0, le=_MOST)
    total: int = Field(default=0, ge=0, le=_MOST)
    note: str = ""
    begun: float = Field(default=0.0, allow_inf_nan=False)


@dataclass
class Job:
    """One step of one folder."""

    name: str
    step: str
    folder: Path
    label: str
    needs: set[str]
    spec: RunSpec
    run: PlannedRun | None = None
    handle: Handle | None = None
    started: float = 0.0
    tries: int = 0

    @property
    def watched(self) -> Path:
        """Where its progress can be seen: while it works perhaps not in its own folder."""
        return self.handle.folder if self.handle else self.folder

    @property
    def logs(self) -> Path:
        """Where what it prints is kept while it works."""
        return self.handle.logs if self.handle else self.folder

    def progress(self) -> Told:
        """The last progress that the step told, or nothing. Where a method is locked in, it could have written this."""
        try:
            return Told.model_validate_json(read_plain(self.watched / record.progress_file(self.step), _PROGRESS_BYTES))
        except (OSError, ValidationError):
            return Told(step=self.step)


class Display(Protocol):
    """Somebody who watches."""

    def update(self, running: list[Job], waiting: int) -> None:
        """Called a few times a second."""

    def finished(self, run: PlannedRun, result: Record) -> None:
        """A run came to an end, or its record was found in the cache."""

    def prepared(self, job: Job) -> None:
        """A shared artefact is ready."""

    def retried(self, job: Job, why: str) -> None:
        """A step is started again, through no fault of its own."""

    def noted(self, job: Job, text: str) -> None:
        """Something that whoever watches may want to know, and that changes no result."""


@contextmanager
def exclusive(where: Places) -> Iterator[None]:
    """One harness at a time works in a runs folder.

    Raises:
        UserError: another one does.
        EnvironmentLacks: the folder cannot be written.
    """
    with explained(where.runs, "the runs folder"):
        where.runs.mkdir(parents=True, exist_ok=True)
        handle = (where.runs / ".lock").open("a+")
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            handle.seek(0)
            owner = handle.read().strip() or "unknown"
            raise UserError(
                f"another cdbench (process {owner}) is working in {where.runs}; wait for it, or choose another "
                "folder with --runs"
            ) from None
        handle.truncate(0)
        handle.write(str(os.getpid()))
        handle.flush()
        yield


@dataclass
class Schedule:
    """The state of a plan being run."""

    plan: Plan
    where: Places
    runner: Runner
    display: Display
    jobs: int
    force: bool = False
    waiting: list[Job] = field(default_factory=list)
    running: list[Job] = field(default_factory=list)
    done: set[str] = field(default_factory=set)
    dropped: set[str] = field(default_factory=set)
    """What was wanted of a step that nobody needs, and that failed: hashes. A method can want what cannot be made."""
    records: dict[str, Record] = field(default_factory=dict)
    containers: dict[str, dict[str, Any] | None] = field(default_factory=dict)
    """Run id -> in what its last step ran."""
    shared: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Shared key -> the artefacts that were made for it."""
    begun: dict[str, tuple[str, Code]] = field(default_factory=dict)
    """Run id -> when it began, and with which code: a file edited in the meantime did not make the numbers."""

    def run(self) -> dict[str, Record]:
        """Runs everything; returns a record per run id.

        Raises:
            KeyboardInterrupt: after everything under way was stopped and recorded.
            UserError, EnvironmentLacks: a shared artefact could not be made, for a reason that the user can mend.
        """
        for planned in self.plan.runs:
            if planned.action == "reuse":
                self._finish(planned, record.read(self.where.run(planned.spec.run_id)))
            else:
                self._enqueue(planned)
        try:
            while self.waiting or self.running:
                self._start_ready()
                self.display.update(self.running, len(self.waiting))
                wait([job.handle.waitable for job in self.running if job.handle], _POLL_SECONDS)
                self._collect()
        except BaseException as error:
            self._stop(error)
            raise
        return self.records

    @property
    def slots(self) -> int:
        """How many steps run at a time."""
        return min(self.jobs, self.runner.capacity or self.jobs)

    def _enqueue(self, planned: PlannedRun) -> None:
        spec = planned.spec
        key = _shared_key(spec)
        prepare = self.where.runs / "prepare" / key
        if not self._is_prepared(key, prepare, spec) and not any(job.name == f"{key}/circuits" for job in self.waiting):
            prepare.mkdir(parents=True, exist_ok=True)
            write_json(prepare / "spec.json", spec.model_dump(mode="json"), "the spec")
            models = {f"{key}/model-teacher", f"{key}/model-student"}
            for name in sorted(models, reverse=True):
                step = name.split("/")[1]
                label = f"{step.removeprefix('model-')} model / {spec.task}"
                self.waiting.append(Job(name, step, prepare, label, set(), spec))
            label = f"ablation and pairing / {spec.task}"
            self.waiting.append(Job(f"{key}/circuits", "circuits", prepare, label, models, spec))
        folder = self.where.run(spec.run_id)
        trained = not self.force and is_trained(folder, spec, self.runner.isolated)
        steps = ["evaluate"] if spec.method == TEACHER or trained else ["train", "evaluate"]
        needs = {f"{key}/circuits"}
        for step in steps:
            job = Job(f"{spec.run_id}/{step}", step, folder, spec.label, needs, spec, planned)
            self.waiting.append(job)
            needs = {job.name}

    def _is_prepared(self, key: str, folder: Path, spec: RunSpec) -> bool:
        """Whether the shared artefacts of a (profile, task) were made by this code and are still in the store."""
        code = code_of(spec.model_copy(update={"method": TEACHER})).digest
        if f"{key}/circuits" not in self.done and _stamped(folder) == code:
            names = _listed(folder)
            if names and Store(self.where.store).has(names):
                self.done.add(f"{key}/circuits")
                self.shared[key] = names
        if f"{key}/circuits" in self.done:
            return True
        (folder / record.PREPARED).unlink(missing_ok=True)
        write_atomic(folder / STAMP, code, "the shared artefacts")
        return False

    def _start_ready(self) -> None:
        ready = [job for job in self.waiting if job.needs <= self.done]
        ready.sort(key=lambda job: job.step != "evaluate")  # finish what is begun before beginning more
        for job in ready[: self.slots - len(self.running)]:
            self.waiting.remove(job)
            if job.run and job.run.spec.run_id not in self.begun:
                self._begin(job.run)
                self._clean(job)
            with explained(job.folder, "the run"):
                shared = self.shared.get(_shared_key(job.spec), ())
                job.handle = self.runner.start(job.step, job.folder, self.where.store, job.spec, shared)
            container = self.runner.describe(job.spec)  # now: an engine that comes back may have another image
            if job.run:
                self.containers[job.run.spec.run_id] = container
            if job.step == "train":  # the harness may be killed before the step ends
                write_json(job.folder / record.TRAINED_IN, container or {}, "the run")
            job.started, job.tries = time.monotonic(), job.tries + 1
            self.running.append(job)
        if self.waiting and len(self.running) == self.slots:
            self._expect()

    def _expect(self) -> None:
        """Tells the runner of the first of each step that waits; of a training when what it may see is known."""
        first: dict[str, Job] = {}
        for job in self.waiting:
            first.setdefault(job.step, job)
        for step, job in first.items():
            shared = self.shared.get(_shared_key(job.spec), ())
            if shared or step != "train":
                self.runner.expect(step, self.where.store, job.spec, shared)

    def _begin(self, run: PlannedRun) -> None:
        self.begun.setdefault(run.spec.run_id, (_now(), code_of(run.spec)))

    def _clean(self, job: Job) -> None:
        """Readies a run's folder; what another code left there is removed, a checkpoint of this code stays."""
        assert job.run
        spec, folder = job.run.spec, job.folder
        code = self.begun[spec.run_id][1].digest
        if folder.exists() and (self.force or not same_code(folder, spec, self.runner.isolated)):
            shutil.rmtree(folder)
        kept = () if job.step == "train" else (*_OUTCOME, record.TRAINED_IN)
        stale = [name for name in (*_OUTPUTS, record.TRAINED_IN, record.RECORD) if name not in kept]
        for path in (
            *(folder / name for name in stale),
            *folder.glob(record.failure_file("*")),
            *folder.glob(record.progress_file("*")),
            *folder.glob(".*.kept"),
        ):
            path.unlink(missing_ok=True)
        write_json(folder / "spec.json", spec.model_dump(mode="json"), "the spec")
        write_atomic(folder / STAMP, stamp(code, self.runner.isolated), "the run")

    def _collect(self) -> None:
        for job in list(self.running):
            assert job.handle
            end = job.handle.ended()
            if end and end.container and job.run:
                self.containers[job.run.spec.run_id] = end.container
            if (
                end is None
                and not self.runner.keeps_time
                and time.monotonic() - job.started > job.spec.profile.timeout_minutes * 60
            ):
                job.handle.stop()
                self._failed(job, "timeout", _no_end(job))
            elif end and end.status == "infra" and job.tries < _TRIES:
                self._again(job, end)
            elif end and end.status:
                self._failed(job, end.status, end.text)
            elif end and end.code == 0 and (job.folder / _RESULT.get(job.step, "spec.json")).is_file():
                if fault := _fault_of(job):
                    self._failed(job, "refused", fault)
                else:
                    self._succeeded(job, end)
            elif end:
                self._explained(job, end)

    def _require_again(self) -> None:
        """Waits a while for what can start steps, an engine that is being restarted for one."""
        specs = [planned.spec for planned in self.plan.runs]
        for wait_seconds in _AGAIN_SECONDS:
            try:
                self.runner.require(specs, self.where.scratch)
                return
            except EnvironmentLacks:
                time.sleep(wait_seconds)
        self.runner.require(specs, self.where.scratch)

    def _explained(self, job: Job, end: End) -> None:
        status, text = _explain_failure(job, end.code)
        if job.step == "train" and self.runner.isolated and status in ("refused", "infra"):
            status = "failed"  # not for the process in which the method ran to say
        if status == "failed" and (lacking := self.runner.lacking_gpu(job.spec, self.where.scratch)):
            status, text = "infra", f"{text}; {lacking}"
        if status == "infra" and job.tries < _TRIES:
            self._again(job, End(end.code, status, text))
        else:
            self._failed(job, status, text)

    def _end(self, job: Job) -> None:
        """Lets go of a step that has ended. What whoever trained wrote of itself is kept only if it can be read."""
        assert job.handle
        self.running.remove(job)
        job.handle.close()
        _drop_bad_history(job)

    def _again(self, job: Job, end: End) -> None:
        """What is not the method's fault is tried again, unless nothing can be started here any more.

        Raises:
            EnvironmentLacks: the runner says so; finished runs are kept.
        """
        self._require_again()
        self.display.retried(job, end.text)
        self._end(job)
        self.waiting.insert(0, job)

    def _succeeded(self, job: Job, end: End) -> None:
        self._end(job)
        self.done.add(job.name)
        if job.step == "circuits":
            self.shared[_shared_key(job.spec)] = _listed(job.folder)
        if job.run is None:
            self.display.prepared(job)
        elif job.step == "train":
            wall = {} if end.seconds is None else {_WALL: round(end.seconds, 1)}
            write_json(job.folder / record.TRAINED_IN, (self.containers[job.run.spec.run_id] or {}) | wall, "the run")
            self._share_signals(job)
        elif job.step == "evaluate":
            self._finish(job.run, self._write_record(job.run, "ok", ""))

    def _share_signals(self, job: Job) -> None:
        """Has a trusted step make the signals that a training could only compute for itself, if there are others to read them."""
        key = _shared_key(job.spec)
        name = f"{key}/signals"
        wanted = record.lacked(job.folder)
        others = any(other.step == "train" and _shared_key(other.spec) == key for other in self.waiting)
        busy = any(other.name == name for other in (*self.waiting, *self.running))
        vain = digest(wanted.model_dump()) in self.dropped
        if not (wanted.signals or wanted.artefacts) or not others or busy or vain:
            return
        folder = self.where.runs / "prepare" / key
        write_json(folder / record.WANTED, wanted.model_dump(), "the list of signals")
        self.waiting.insert(0, Job(name, "signals", folder, f"signals / {job.spec.task}", set(), job.spec))

    def _failed(self, job: Job, status: Status, text: str) -> None:
        self._end(job)
        if job.step == "signals":  # nobody needs them: a training that finds none computes its own
            self.dropped.add(digest(read_json(job.folder / record.WANTED, "list of signals")))
            self.display.noted(job, f"not made ({text}); each training computes its own")
            return
        if job.run is None:
            told = record.read_failure(job.folder, job.step)
            code = told.exit_code if told else 1
            kinds = {UserError.exit_code: UserError, EnvironmentLacks.exit_code: EnvironmentLacks}
            if code in kinds:  # the user can mend this, and every run needs it
                raise kinds[code](f"{job.label}: {text}")
        for lost in self._drop_dependents(job):
            self._begin(lost)
            # A run is told apart from a shared step that it needs; its own name it bears already.
            where = job.step if lost is job.run else f"{job.label}, {job.step}"
            self._finish(lost, self._write_record(lost, status, f"{where}: {text}"))

    def _drop_dependents(self, job: Job) -> list[PlannedRun]:
        """Takes from the queue what can no longer run; the runs that end with it, this job's own among them."""
        dead, lost = {job.name}, [job.run] if job.run else []
        for other in list(self.waiting):  # the queue holds what is needed before what needs it
            if other.needs & dead:
                dead.add(other.name)
                self.waiting.remove(other)
                if other.run and other.run not in lost:
                    lost.append(other.run)
        return lost

    def _finish(self, run: PlannedRun, result: Record) -> None:
        self.records[run.spec.run_id] = result
        self.display.finished(run, result)

    def _stop(self, error: BaseException) -> None:
        with ThreadPoolExecutor(max(1, len(self.running))) as pool:
            list(pool.map(_stop_step, self.running))
        for job in self.running:
            _drop_bad_history(job)
            if job.run and (told := _why_stopped(error)):
                self._finish(job.run, self._write_record(job.run, told[0], f"{job.step}: {told[1]}"))
        self.running.clear()

    def _write_record(self, run: PlannedRun, status: Status, text: str) -> Record:
        folder, spec = self.where.run(run.spec.run_id), run.spec
        outcome, metrics = (
            read_json(folder / name, "result") if believed and (folder / name).exists() else {}
            for name, believed in (("outcome.json", has_outcome(folder, spec)), ("metrics.json", True))
        )
        with explained(folder, "the record"):
            result = build_record(spec, status, text, outcome, metrics, self.begun[spec.run_id], folder)
            container = self.containers.get(spec.run_id) or self.runner.describe(spec)
            trained = folder / record.TRAINED_IN
            trained_in = read_json(trained, "description") if trained.exists() else {}
            wall = {_WALL: trained_in.pop(_WALL)} if _WALL in trained_in else {}
            inside = {"container": container, "trained_in": trained_in or None}
            changes = {"environment": result.environment | inside, "cost": result.cost | wall}
            result = result.model_copy(update=changes)
            record.write(folder, result)
            if status == "ok":  # in a container a copy of it was gone on from
                (folder / "checkpoint.pt").unlink(missing_ok=True)
        return result


def build_record(  # noqa: PLR0913  (one place where everything that a run left comes together)
    spec: RunSpec,
    status: Status,
    text: str,
    outcome: dict[str, Any],
    metrics: dict[str, Any],
    begun: tuple[str, Code],
    folder: Path,
) -> Record:
    """The record of a run from what its steps left."""
    return Record(
        run_id=spec.run_id,
        spec=spec,
        status=status,
        error=text,
        notes=[printable(str(note)) for note in outcome.get("notes", [])],
        code=begun[1],
        params=outcome.get("params", {**defaults_of(spec), **spec.params}),
        metrics=Metrics.model_validate(metrics["metrics"]) if status == "ok" else None,
        extras=outcome.get("extras", {}),
        # The evaluator's word, not that of the process in which the method ran.
        environment=metrics.get("environment", {}),
        inputs=metrics.get("inputs", {}),
        artefacts={name: sha256(folder / name) for name in _ARTEFACTS if (folder / name).is_file()},
        cost=outcome.get("cost", {}) | metrics.get("cost", {}),
        started=begun[0],
        ended=_now(),
    )


def _shared_key(spec: RunSpec) -> str:
    """What runs share: models, data and circuits do not depend on the training budget."""
    return digest({"profile": spec.profile.model_dump(mode="json", exclude={"training"}), "task": spec.task})


def _fault_of(job: Job) -> str | None:
    """What is wrong with the files that a training left, which a method could have written itself; they are removed then."""
    if job.step != "train":
        return None
    try:
        record.check_outcome(job.folder, {**defaults_of(job.spec), **job.spec.params})
        record.check_history(job.folder)
    except UserError as error:
        (job.folder / "outcome.json").unlink(missing_ok=True)
        return printable(str(error))
    return None


def _drop_bad_history(job: Job) -> None:
    if job.step == "train":
        try:
            record.check_history(job.folder)
        except UserError:
            (job.folder / "history.jsonl").unlink(missing_ok=True)


def _stop_step(job: Job) -> None:
    assert job.handle
    job.handle.stop()
    job.handle.close()


def _why_stopped(error: BaseException) -> tuple[Status, str] | None:
    """What the record of a run under way says; None for a fault of ours, which the same command begins anew."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", "stopped by the user"
    return ("infra", str(error)) if isinstance(error, EnvironmentLacks) else None


def _listed(prepared: Path) -> tuple[str, ...]:
    """The artefacts that were made for a (profile, task), as kind/name."""
    if not (prepared / record.PREPARED).exists():
        return ()
    names = read_json(prepared / record.PREPARED, "list of artefacts").get("artefacts")
    return tuple(map(str, names)) if isinstance(names, list) else ()


def _stamped(folder: Path) -> str | None:
    return (folder / STAMP).read_text() if (folder / STAMP).exists() else None


def _no_end(job: Job) -> str:
    return f"no end after {job.spec.profile.timeout_minutes} minutes (timeout_minutes of the profile)"


def _explain_failure(job: Job, code: int) -> tuple[Status, str]:
    if told := record.read_failure(job.folder, job.step):
        return told.status, printable(told.error)
    if code == -signal.SIGKILL:
        return "oom", "killed by the kernel (signal 9), most likely for want of memory"
    what = f"killed by signal {-code}" if code < 0 else f"ended with exit code {code} and no result"
    return "failed", f"{what}; what it printed is in {record.log_file(job.step, 'stderr')}"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
