"""A broken law."""

from cdbench.similarity.conformance.causes import Cause


class Broken(Exception):
    """An implementation breaks a law: what was seen, and what usually causes exactly that."""

    def __init__(self, seen: str, *causes: Cause) -> None:
        super().__init__(seen)
        self.seen = seen
        self.causes = causes
