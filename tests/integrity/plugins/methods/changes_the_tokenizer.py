"""Gives every digit the same token."""

import contextlib
from dataclasses import dataclass
from pathlib import Path

from tokenizers.models import WordLevel

from cdbench.api import Method, Outcome, Problem


@dataclass(frozen=True)
class ChangesTheTokenizer(Method):
    def run(self, problem: Problem) -> Outcome:
        problem.tokenizer._tokenizer.model = WordLevel({"0": 0, "1": 0}, unk_token="0")
        for path in Path("/").glob("store/models/*/tokenizer.json"):
            with contextlib.suppress(OSError):
                path.write_text("{}")
        return Outcome()
