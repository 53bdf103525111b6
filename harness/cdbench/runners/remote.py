"""One step on another machine: what a cluster's task calls there, and what waits for it here.

Runs folder and store must lie on a file system that all machines share, under one path. Each try of a step works in a folder of
its own, a copy of the run's, and what it leaves is taken over when the cluster says that it has ended. So a step that was lost
with its machine is started again elsewhere, and where the machine was only cut off, nobody reads what its step still writes.
"""

import os
import shutil
import threading
import time
import uuid
from abc import abstractmethod
from collections.abc import Callable, Collection, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import wait
from pathlib import Path
from typing import Literal

from cdbench import plugins
from cdbench.config import RunSpec
from cdbench.containers.harvest import RESUMED
from cdbench.containers.waiting import remove_folder
from cdbench.errors import CdbenchError, EnvironmentLacks, first_line
from cdbench.files import explained, printable, write_atomic
from cdbench.record import read_failure
from cdbench.runners import End, Handle, Runner, WatchedHandle
from cdbench.runners.docker import DockerRunner
from cdbench.runners.local import LocalRunner

_CANCEL_SECONDS = 60
_FOLLOW_SECONDS = 10
Inside = Literal["docker", "local"]


@dataclass(frozen=True)
class Order:
    """All that another machine needs to know of a step."""

    step: str
    folder: Path
    store: Path
    scratch: Path
    spec: str
    inside: Inside
    image: str | None
    plugin_roots: tuple[str, ...]
    shared: tuple[str, ...] = ()

    def obey(self, gpus: Sequence[str] = ()) -> End:
        """Runs the step here, in a container or as a process; `gpus` are the ids that the cluster gave."""
        spec = RunSpec.model_validate_json(self.spec)
        for root in self.plugin_roots:
            plugins.include(Path(root))
        runner: Runner = DockerRunner(self.image, gpus) if self.inside == "docker" else LocalRunner()
        # A scratch folder of its own: steps of other machines are under way beside it.
        scratch = self.scratch / uuid.uuid4().hex
        try:
            with closing(runner):
                return self._obey(runner, spec, scratch)
        finally:
            remove_folder(scratch)  # once the runner has let go of what it holds ready there

    def _obey(self, runner: Runner, spec: RunSpec, scratch: Path) -> End:
        try:
            runner.require([spec], scratch)
        except EnvironmentLacks as error:
            return End(1, "infra", f"{os.uname().nodename}: {error}")
        handle = runner.start(self.step, self.folder, self.store, spec, self.shared)
        try:
            last = time.monotonic() + spec.profile.timeout_minutes * 60
            while (end := handle.ended()) is None:
                wait([handle.waitable], 1)
                if time.monotonic() > last:
                    handle.stop()
                    end = End(1, "timeout", f"no end after {spec.profile.timeout_minutes} minutes")
                    break
        except BaseException:
            handle.stop()
            raise
        finally:
            handle.close()
        if end.code != 0 and not end.status and (lacking := runner.lacking_gpu(spec, scratch)):
            told = read_failure(self.folder, self.step)
            end = End(end.code, "infra", f"{told.error + '; ' if told else ''}{os.uname().nodename}: {lacking}")
        container = runner.describe(spec)
        return replace(end, container=container and {**container, "machine": os.uname().nodename})


class RemoteRunner(Runner):
    """Hands steps to a cluster."""

    keeps_time = True

    def __init__(self, inside: Inside, image: str | None = None) -> None:
        self._inside: Inside = inside
        self._image = image
        self._scratch = Path()
        self.isolated = inside == "docker"

    def require(self, specs: list[RunSpec], scratch: Path) -> None:
        self.connect()
        if self._scratch != scratch:  # left by a harness or a machine that died: the runs folder is ours alone
            self.disown(scratch)
            remove_folder(scratch)
        self._scratch = scratch

    def start(self, step: str, folder: Path, store: Path, spec: RunSpec, shared: Collection[str] = ()) -> Handle:
        roots = tuple(str(root) for root in plugins.roots()[:-1])
        attempt = Attempt(folder, self._scratch / f"try-{uuid.uuid4().hex}")
        order = Order(
            step,
            attempt.work,
            store,
            self._scratch,
            spec.model_dump_json(),
            self._inside,
            self._image,
            roots,
            tuple(shared),
        )
        wait_for, cancel = self.submit(order, spec)
        return RemoteHandle(attempt, wait_for, cancel)

    @abstractmethod
    def connect(self) -> None:
        """Finds the cluster.

        Raises:
            EnvironmentLacks: there is none, or the client for it is not installed.
        """

    def disown(self, scratch: Path) -> None:
        """Cancels what a harness that was killed had handed over with this scratch folder: nobody waits for it.

        Ray does so by itself when a client is gone.
        """

    @abstractmethod
    def submit(self, order: Order, spec: RunSpec) -> tuple[Callable[[], End], Callable[[], None]]:
        """Hands over one step; gives what waits for its end, and what cancels it."""


class Attempt:
    """One try of a step: a copy of the run's folder that only this try writes to."""

    def __init__(self, home: Path, work: Path) -> None:
        self.home, self.work = home, work
        self._lock, self._open = threading.Lock(), True
        self._given: dict[str, tuple[int, int]] = {}
        with explained(work, "the run"):
            work.mkdir(parents=True)
            for file in _files(home):
                with suppress(FileNotFoundError):  # another step of the same folder has just ended
                    self._given[file.name] = _state(Path(shutil.copy2(file, work / file.name)))

    def take_over(self) -> None:
        """What the try wrote or removed, once it has ended."""
        with self._lock, explained(self.home, "the run"):
            self._open = False
            left = {file.name: file for file in _files(self.work)}
            for name, file in left.items():
                if _state(file) != self._given.get(name):
                    os.replace(file, self.home / name)
            for name in self._given.keys() - left.keys():
                (self.home / name).unlink(missing_ok=True)
        remove_folder(self.work)

    def follow(self) -> None:
        """Gives the run's folder what it could be resumed from, while it works or where it was lost.

        These files are replaced whole, never written to: another name for one is safe, and costs nothing.
        """
        with self._lock:
            for name in RESUMED if self._open else ():
                made = self.work / name
                if made.is_file() and not made.is_symlink() and (state := _state(made)) != self._given.get(name):
                    spare = self.home / f".{name}.{self.work.name}"
                    with explained(self.home, "the checkpoint"):
                        os.link(made, spare)
                        os.replace(spare, self.home / name)
                    self._given[name] = state

    def lost(self) -> None:
        """The same, and a copy of what it printed: it may be at work still."""
        self.follow()
        for file in _files(self.work) if self.work.is_dir() else ():
            if file.suffix == ".log":
                write_atomic(self.home / file.name, file.read_bytes(), "the log")


def _files(folder: Path) -> list[Path]:
    """But for links, and for what is only half written."""
    return [path for path in folder.iterdir() if path.is_file() and not path.is_symlink() and path.name[:1] != "."]


def _state(file: Path) -> tuple[int, int]:
    told = file.stat()
    return told.st_mtime_ns, told.st_size


class RemoteHandle(WatchedHandle):
    """A step on another machine."""

    def __init__(self, attempt: Attempt, wait_for: Callable[[], End], cancel: Callable[[], None]) -> None:
        super().__init__(attempt.work, "cdbench-remote")
        self._attempt, self._wait_for, self._cancel = attempt, wait_for, cancel
        self._followed = time.monotonic()
        self._thread.start()

    def ended(self) -> End | None:
        if (end := super().ended()) is None and time.monotonic() - self._followed > _FOLLOW_SECONDS:
            self._followed = time.monotonic()
            self._attempt.follow()
        return end

    def stop(self) -> None:
        with suppress(Exception):  # whatever it raises: the others must be stopped, too
            self._cancel()
        self._thread.join(_CANCEL_SECONDS)

    def wait(self) -> End:
        try:
            end = self._wait_for()
            if end.status == "infra":
                self._attempt.lost()
            else:
                self._attempt.take_over()
            return end
        except BaseException as error:  # the cluster's clients raise what they like; none of it is the method's fault
            with suppress(OSError, CdbenchError):  # without it the step begins anew
                self._attempt.lost()
            return End(1, "infra", printable(f"{type(error).__name__}: {first_line(error)}", 240))
