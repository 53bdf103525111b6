"""Where steps execute. A runner starts one step on one folder; everything else is the schedule's."""

import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cdbench.config import RunSpec
from cdbench.errors import EnvironmentLacks
from cdbench.record import Status


@dataclass(frozen=True)
class End:
    """How a step ended.

    Attributes:
        code: its exit code; negative when a signal ended it.
        status: set where the runner knows better than the files that the step left.
        text: why, with `status`.
        container: in what it ran, where `Runner.describe` cannot know: on another machine.
        seconds: how long it took, by the word of whoever had it locked in.
    """

    code: int
    status: Status | None = None
    text: str = ""
    container: dict[str, Any] | None = None
    seconds: float | None = None


class Handle(ABC):
    """A step under way."""

    folder: Path
    """Where its progress can be watched; where a method is locked in, it may have written whatever is there."""

    @property
    def logs(self) -> Path:
        """Where what it prints is kept as it comes; where a method is locked in, it cannot write there."""
        return self.folder

    @property
    @abstractmethod
    def waitable(self) -> int:
        """A file descriptor that becomes readable when the step ends."""

    @abstractmethod
    def ended(self) -> End | None:
        """None while it works."""

    @abstractmethod
    def stop(self) -> None:
        """Ends it now; returns when it is gone."""

    def close(self) -> None:  # noqa: B027  (a process needs nothing)
        """Lets go of what was held to watch it; it has ended."""


class WatchedHandle(Handle):
    """A step that a thread of its own waits for, and a pipe that tells of its end."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder = folder
        self._end: End | None = None
        self._readable, self._writable = os.pipe()
        self._thread = threading.Thread(target=self._watch, name=name, daemon=True)

    @abstractmethod
    def wait(self) -> End:
        """Until it ends; raises nothing."""

    @property
    def waitable(self) -> int:
        return self._readable

    def ended(self) -> End | None:
        return self._end

    def close(self) -> None:
        os.close(self._readable)

    def _watch(self) -> None:
        self._end = self.wait()
        os.close(self._writable)


class Runner(ABC):
    """Starts steps."""

    name: str
    isolated: bool
    """Whether a method is locked in."""
    keeps_time: bool = False
    """Whether the runner itself ends what takes too long; what waits in a queue takes no time."""

    @property
    def capacity(self) -> int | None:
        """How many steps it can run at a time; None where only the user says."""
        return None

    @abstractmethod
    def start(self, step: str, folder: Path, store: Path, spec: RunSpec, shared: Collection[str] = ()) -> Handle:
        """Starts `python -m cdbench.execute STEP FOLDER STORE`, what it prints going to FOLDER/STEP.{stdout,stderr}.log.

        `shared` names the artefacts that were made for its profile and task, as kind/name: where a method is locked in, it sees
        no data and no models but these.
        """

    def require(self, specs: list[RunSpec], scratch: Path) -> None:  # noqa: B027  (a plain process needs nothing)
        """Checks that steps of these specs can be started here. `scratch` is a folder for what is not yet anybody's.

        Raises:
            EnvironmentLacks: they cannot; says what to do.
        """

    def look_again(self, spec: RunSpec, scratch: Path) -> None:
        """Checks, when a step has failed on a GPU, that there still is one.

        Raises:
            EnvironmentLacks: there is none.
        """
        self.require([spec], scratch)

    def lacking_gpu(self, spec: RunSpec, scratch: Path) -> str:
        """What is lacking now of a step that failed on a GPU: a card that fell off the bus is no method's fault. Else empty."""
        if spec.profile.device != "cuda":
            return ""
        try:
            self.look_again(spec, scratch)
        except EnvironmentLacks as error:
            return str(error)
        return ""

    def expect(self, step: str, store: Path, spec: RunSpec, shared: Collection[str] = ()) -> None:  # noqa: B027
        """Says which step will come, so that something can be held ready for it."""

    def close(self) -> None:  # noqa: B027
        """Ends what it holds ready."""

    def describe(self, spec: RunSpec) -> dict[str, Any] | None:
        """In what the steps of a spec are run, for the record; None for a plain process."""
        return None
