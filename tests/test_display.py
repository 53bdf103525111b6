"""What whoever watches is shown of a step, whatever the step has put where it is looked for."""

import io
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from cdbench.display import LiveTable, Logs
from cdbench.files import one_line
from cdbench.record import log_file, progress_file
from cdbench.runners.schedule import Job, Told
from conftest import World


@pytest.fixture
def job(world: World, tmp_path: Path) -> Job:
    return Job("run", "train", tmp_path, "a run", set(), world.spec("base"))


def link(path: Path) -> None:
    (path.parent / "secret").write_text("a secret\n")
    path.symlink_to("secret")


@pytest.mark.timeout(20)
@pytest.mark.parametrize("put", [os.mkfifo, os.mkdir, link], ids=["a pipe", "a folder", "a link"])
def test_what_is_no_plain_file_in_a_logs_place_is_not_read(put: Callable[[Path], None], job: Job) -> None:
    shown = io.StringIO()
    logs = Logs(Console(file=shown))
    put(job.folder / log_file("train", "stdout"))
    (job.folder / log_file("train", "stderr")).write_text("a word\n")
    logs.follow([job])
    assert shown.getvalue() == "a run, train ! a word\n"


@pytest.mark.parametrize(
    "told",
    [
        '{"step": "train", "done": 1, "total": 1' + "0" * 400 + "}",
        '{"step": "train", "done": 1' + "0" * 20 + ', "total": 2}',
        '{"step": "train", "done": 1, "begun": 1e999}',
        '{"step": "train", "done": -1}',
    ],
    ids=["without end", "done without end", "begun never", "negative"],
)
def test_numbers_that_no_step_has_are_no_progress(told: str, job: Job) -> None:
    (job.folder / progress_file("train")).write_text(told)
    assert job.progress() == Told(step="train")
    with LiveTable(Console(file=io.StringIO(), force_terminal=True), 1) as table:
        table.update([job], 0)


def test_what_somebody_says_stays_in_its_line_and_in_its_columns() -> None:
    assert (
        one_line("failed      \x1b[31mno\n  0123  kl / 100 %\u2028more")
        == "failed       [31mno   0123  kl / 100 % more"
    )
