"""A broken law."""

from collections.abc import Callable

from cdbench.similarity.conformance.causes import Cause


class Broken(Exception):
    """An implementation breaks a law: what was seen, and what usually causes exactly that."""

    def __init__(self, seen: str, *causes: Cause) -> None:
        super().__init__(seen)
        self.seen = seen
        self.causes = causes


def told(thing: object, how: Callable[[object], str] = str) -> str:
    """What somebody's exception or result says of itself, in letters that every form of a report holds; its type if it cannot."""
    try:
        text = how(thing)
    except Exception:  # theirs, whatever it is
        return f"a {type(thing).__name__} that cannot say what it is"
    return readable(text)


def readable(text: str) -> str:
    """Without control characters, halves of surrogate pairs, and what XML 1.0 has no place for."""
    return "".join(c if c in "\t\n" or _stands(ord(c)) else "\N{REPLACEMENT CHARACTER}" for c in text)


def _stands(code: int) -> bool:
    return code >= 0x20 and not 0x7F <= code < 0xA0 and not 0xD800 <= code < 0xE000 and code & 0xFFFE != 0xFFFE
