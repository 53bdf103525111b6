"""Fails with words that would take over a terminal or a page."""

from dataclasses import dataclass

from cdbench.api import Method, Outcome, Problem


@dataclass(frozen=True)
class SpeaksInTongues(Method):
    def run(self, problem: Problem) -> Outcome:
        raise RuntimeError("\x1b[2J\x1b]0;owned\x07<script>alert(1)</script>" + "x" * 100_000)
