"""What a person sees while a study runs: a live table in a terminal, plain lines in a pipe. Goes to stderr."""

import contextlib
import os
import statistics
import time
from pathlib import Path
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from cdbench.files import one_line, open_plain, printable
from cdbench.plan import PlannedRun
from cdbench.record import STREAMS, Record, Stream, log_file
from cdbench.runners.schedule import Display, Job

_COLOURS = {
    "ok": "green",
    "failed": "red",
    "oom": "red",
    "timeout": "red",
    "refused": "red",
    "infra": "magenta",
    "interrupted": "yellow",
}
_SHOWN = 8
_ENOUGH = 0.1
"""Part of a training after which its end can be told."""
_LINE = 4096
"""Bytes after which a line is broken."""
_LINES = 200
"""Lines shown at a time of one log."""


def duration(seconds: float) -> str:
    """12 -> "12 s", 125 -> "2:05 min"."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02} h" if hours else f"{minutes}:{rest:02} min"


def result_line(run: PlannedRun, result: Record) -> str:
    """One run's outcome in words."""
    if result.metrics is None:
        return f"{result.status}: {result.error}"
    seconds = result.cost.get("train_seconds", 0.0) + result.cost.get("evaluate_seconds", 0.0)
    how = "from the cache" if run.action == "reuse" else duration(seconds)
    notes = "".join(f"; note: {note}" for note in result.notes)
    return f"accuracy {result.metrics.accuracy.value:.1%} ({how}){notes}"


def _log(job: Job, stream: Stream) -> Path:
    """Where what a step prints is kept: elsewhere perhaps, while it works elsewhere."""
    name = log_file(job.step, stream)
    there = job.logs / name
    return there if os.path.lexists(there) else job.folder / name


class Logs:
    """What steps print, line by line as it comes; nothing that a method prints can steer the terminal."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._followed: dict[str, Job] = {}
        self._read: dict[tuple[str, Stream], int] = {}

    def follow(self, running: list[Job]) -> None:
        """Shows what was added since the last call; of steps that are no longer running, the rest."""
        names = {job.name for job in running}
        for name in [name for name in self._followed if name not in names]:
            self._show(self._followed.pop(name), to_the_end=True)
        for job in running:
            self._followed[job.name] = job
            self._show(job, to_the_end=False)

    def _show(self, job: Job, *, to_the_end: bool) -> None:
        for stream in STREAMS:
            place = (job.name, stream)
            # Outside a container a method could put anything in its log's place.
            with contextlib.suppress(OSError), open_plain(_log(job, stream)) as file:
                known, size = self._read.get(place, 0), os.fstat(file.fileno()).st_size
                # A step that is started again begins its log anew.
                known = file.seek(known if known <= size else 0)
                for _ in range(_LINES):
                    line = file.readline(_LINE)
                    if not line or not (to_the_end or line.endswith(b"\n") or len(line) == _LINE):
                        break
                    self._print(job, stream, line.decode(errors="replace"))
                    known = file.tell()
                else:
                    if size - known > _LINE:  # whoever prints more than anybody can read must not hold up the others
                        self._print(
                            job, stream, f"[... {size - known} bytes not shown; see {log_file(job.step, stream)}]"
                        )
                        known = size
                self._read[place] = known
            if to_the_end:
                self._read.pop(place, None)

    def _print(self, job: Job, stream: Stream, line: str) -> None:
        head = Text(f"{job.label}, {job.step} {'|' if stream == 'stdout' else '!'} ", "dim")
        self._console.print(head + Text(printable(line.rstrip(), _LINE)), soft_wrap=True, highlight=False)


class PlainLines(Display):
    """One line per event."""

    def __init__(self, console: Console, total: int, logs: Logs | None = None) -> None:
        self._console, self._total, self._count = console, total, 0
        self._begun: set[str] = set()
        self._logs = logs

    def __enter__(self) -> "PlainLines":
        return self

    def __exit__(self, *exception: object) -> None:
        if self._logs:
            self._logs.follow([])

    def _say(self, line: str) -> None:
        self._console.print(one_line(line), markup=False, highlight=False, soft_wrap=True)

    def update(self, running: list[Job], waiting: int) -> None:
        for job in running:
            if job.name not in self._begun and (job.run is None or job.step == "train"):
                self._begun.add(job.name)
                self._say(f"start  {job.label}")
        if self._logs:
            self._logs.follow(running)

    def finished(self, run: PlannedRun, result: Record) -> None:
        self._count += 1
        self._say(f"[{self._count}/{self._total}]  {run.spec.label}: {result_line(run, result)}")

    def prepared(self, job: Job) -> None:
        self._say(f"ready  {job.label}")

    def retried(self, job: Job, why: str) -> None:
        self._say(f"again  {job.label}: {why}")

    def noted(self, job: Job, text: str) -> None:
        self._say(f"note   {job.label}: {text}")


class LiveTable(Display):
    """The last runs that ended, those under way with a bar, and how long it will still take."""

    def __init__(self, console: Console, total: int, logs: Logs | None = None) -> None:
        self._logs = logs
        self._live = Live(console=console, refresh_per_second=4, transient=False)
        self._total, self._count, self._failed = total, 0, 0
        self._ended: list[tuple[str, str, str]] = []
        self._seconds: list[float] = []
        self._began = time.monotonic()
        self._jobs = 1

    def __enter__(self) -> "LiveTable":
        self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.update([], 0)
        self._live.__exit__(kind, value, trace)

    def finished(self, run: PlannedRun, result: Record) -> None:
        self._count += 1
        self._failed += result.status != "ok"
        if run.action == "run" and result.status == "ok":
            self._seconds.append(sum(result.cost.get(f"{step}_seconds", 0.0) for step in ("train", "evaluate")))
        self._ended.append((result.status, run.spec.label, result_line(run, result)))

    def prepared(self, job: Job) -> None:
        self._ended.append(("ok", job.label, "ready"))

    def retried(self, job: Job, why: str) -> None:
        self._ended.append(("infra", job.label, f"again: {why}"))

    def noted(self, job: Job, text: str) -> None:
        self._ended.append(("ok", job.label, text))

    def update(self, running: list[Job], waiting: int) -> None:
        if self._logs:
            self._logs.follow(running)
        self._jobs = max(self._jobs, len(running))
        table = Table.grid(padding=(0, 2))
        for status, label, text in self._ended[-_SHOWN:]:
            mark = Text("✓" if status == "ok" else "✗", _COLOURS[status])
            table.add_row(mark, Text(label), Text(one_line(text)), "")
        for job in running:
            told = job.progress()
            done, total = told.done, told.total
            # A method that only logs has no known end: its bar pulses.
            bar = ProgressBar(total=total or None, completed=done, width=24, pulse=not total)
            note = f"{job.step} {done}" + (f"/{total}" if total else "") + f" {printable(told.note, 60)}"
            table.add_row(Text("…", "cyan"), Text(job.label), bar, Text(note, "dim"))
        self._live.update(Group(table, Text(self._summary(running), "bold")))

    def _summary(self, running: list[Job]) -> str:
        text = f"{self._count} of {self._total} runs done"
        if self._failed:
            text += f", {self._failed} failed"
        each = statistics.mean(self._seconds) if self._seconds else _seconds_of_one(running)
        if running and each:
            left = each * (self._total - self._count) / self._jobs
            text += f", about {duration(left)} left"
        return f"{text} ({duration(time.monotonic() - self._began)} so far)"


def _seconds_of_one(running: list[Job]) -> float:
    """How long the training runs under way will take, by what they have done so far; 0 before a tenth is done."""
    found = []
    for job in running:
        told = job.progress()
        if job.run and job.step == "train" and told.total and told.done >= _ENOUGH * told.total:
            found.append((time.monotonic() - job.started) * told.total / told.done)
    return statistics.mean(found) if found else 0.0
