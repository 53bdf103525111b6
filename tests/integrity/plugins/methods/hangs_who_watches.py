"""Puts a pipe, a link and a number without end where whoever watches the run reads its log and its progress."""

import os
import time
from dataclasses import dataclass
from pathlib import Path

from cdbench.api import Method, Outcome, Problem


@dataclass(frozen=True)
class HangsWhoWatches(Method):
    def run(self, problem: Problem) -> Outcome:
        print("what it really prints", flush=True)  # noqa: T201
        os.mkfifo("train.stdout.log")
        os.symlink("/etc/passwd", "train.stderr.log")
        Path("progress-train.json").write_text('{"step": "train", "done": 1, "total": 1' + "0" * 400 + "}")
        time.sleep(2)
        return Outcome()
