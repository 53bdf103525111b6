"""One step on another machine: what a cluster's task calls there, and what waits for it here.

Runs folder and store must lie on a file system that all machines share, under one path. A step is idempotent: it begins with
a fresh folder, and what it leaves is taken over only when it has ended; so a step that was lost with its machine is simply
started again elsewhere.
"""

import os
import time
import uuid
from abc import abstractmethod
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import wait
from pathlib import Path
from typing import Literal

from cdbench import plugins
from cdbench.config import RunSpec
from cdbench.containers.waiting import remove_folder
from cdbench.errors import EnvironmentLacks, first_line
from cdbench.files import printable
from cdbench.runners import End, Handle, Runner, WatchedHandle
from cdbench.runners.docker import DockerRunner
from cdbench.runners.local import LocalRunner

_CANCEL_SECONDS = 60
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
        handle = runner.start(self.step, self.folder, self.store, spec)
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
        if self._scratch != scratch:
            remove_folder(scratch)  # left by a harness or a machine that died: the runs folder is ours alone
        self._scratch = scratch
        self.connect()

    def start(self, step: str, folder: Path, store: Path, spec: RunSpec) -> Handle:
        roots = tuple(str(root) for root in plugins.roots()[:-1])
        order = Order(step, folder, store, self._scratch, spec.model_dump_json(), self._inside, self._image, roots)
        return self.submit(order, spec)

    @abstractmethod
    def connect(self) -> None:
        """Finds the cluster.

        Raises:
            EnvironmentLacks: there is none, or the client for it is not installed.
        """

    @abstractmethod
    def submit(self, order: Order, spec: RunSpec) -> Handle:
        """Hands over one step."""


class RemoteHandle(WatchedHandle):
    """A step on another machine."""

    def __init__(self, folder: Path, wait_for: Callable[[], End], cancel: Callable[[], None]) -> None:
        super().__init__(folder, "cdbench-remote")
        self._wait_for, self._cancel = wait_for, cancel
        self._thread.start()

    def stop(self) -> None:
        with suppress(Exception):  # whatever it raises: the others must be stopped, too
            self._cancel()
        self._thread.join(_CANCEL_SECONDS)

    def wait(self) -> End:
        try:
            return self._wait_for()
        except BaseException as error:  # the cluster's clients raise what they like; none of it is the method's fault
            return End(1, "infra", printable(f"{type(error).__name__}: {first_line(error)}", 240))
