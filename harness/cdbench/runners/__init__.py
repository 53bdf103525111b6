"""Where steps execute. A runner starts one step on one folder; everything else is the schedule's."""

from abc import ABC, abstractmethod
from pathlib import Path


class Handle(ABC):
    """A step under way."""

    @property
    @abstractmethod
    def waitable(self) -> int:
        """A file descriptor that becomes readable when the step ends."""

    @abstractmethod
    def exit_code(self) -> int | None:
        """None while it works; negative when a signal ended it."""

    @abstractmethod
    def stop(self) -> None:
        """Ends it now; returns when it is gone."""


class Runner(ABC):
    """Starts steps."""

    name: str

    @abstractmethod
    def start(self, step: str, folder: Path, store: Path) -> Handle:
        """Starts `python -m cdbench.execute STEP FOLDER STORE`, its output going to FOLDER/<step>.log."""
