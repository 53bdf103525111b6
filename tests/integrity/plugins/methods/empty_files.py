"""Writes a million empty files, which take no space but every place that the file system has for files."""

from dataclasses import dataclass

from cdbench.api import Method, Outcome, Problem


@dataclass(frozen=True)
class EmptyFiles(Method):
    def run(self, problem: Problem) -> Outcome:
        for i in range(1_000_000):
            with open(f"empty-{i}", "wb"):
                pass
        return Outcome()
