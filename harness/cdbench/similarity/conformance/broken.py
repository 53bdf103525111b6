"""A broken law."""

from collections.abc import Callable

from cdbench.files import printable
from cdbench.similarity.conformance.causes import Cause


class Broken(Exception):
    """An implementation breaks a law: what was seen, and what usually causes exactly that."""

    def __init__(self, seen: str, *causes: Cause, failed: bool = False) -> None:
        super().__init__(seen)
        self.seen = seen
        self.causes = causes
        self.failed = failed
        """It gave no finite number at all."""


def told(thing: object, how: Callable[[object], str] = str) -> str:
    """What somebody's exception or result says of itself, in letters that every form of a report holds; its type if it cannot."""
    try:
        text = how(thing)
    except Exception:  # theirs, whatever it is
        return f"a {type(thing).__name__} that cannot say what it is"
    return printable(text, len(text))
