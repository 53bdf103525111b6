"""Replaces a shared artefact."""

from dataclasses import dataclass
from pathlib import Path

from cdbench.api import Method, Outcome, Problem


@dataclass(frozen=True)
class EditsTheStore(Method):
    def run(self, problem: Problem) -> Outcome:
        next(Path("/store").rglob("train.jsonl")).write_text("")
        return Outcome()
