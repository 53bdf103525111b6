"""What is looked at of containers that wait and work, without an engine."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from cdbench.containers.waiting import held_by_deleted

MIB = 1 << 20
HOLDS = """
import mmap, os, sys
how, name = sys.argv[1:]
file = os.open(name, os.O_CREAT | os.O_RDWR)
os.write(file, bytes(8 << 20))
if how != "open":
    kept = mmap.mmap(file, 8 << 20)
if how == "mapped":
    os.close(file)
if how != "named":
    os.unlink(name)
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture(params=["open", "mapped", "both", "named"])
def holder(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, int]]:
    """How a process holds eight MiB, and its number."""
    command = [sys.executable, "-c", HOLDS, request.param, str(tmp_path / "part")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout and process.stdout.readline() == "ready\n"
        yield request.param, process.pid
        process.kill()


def test_what_a_container_holds_of_deleted_files_is_counted_once(holder: tuple[str, int], tmp_path: Path) -> None:
    """Open, mapped and closed, or both; what has a name is counted where it lies."""
    how, pid = holder
    top = {"Titles": ["UID", "PID", "CMD"], "Processes": [["0", str(pid), "python"]]}
    found = held_by_deleted(SimpleNamespace(top=lambda: top), tmp_path)
    assert found == (0 if how == "named" else pytest.approx(8 * MIB, rel=0.01))


def test_a_container_that_has_ended_holds_nothing(tmp_path: Path) -> None:
    def top() -> None:
        raise RuntimeError("container is not running")

    assert held_by_deleted(SimpleNamespace(top=top), tmp_path) == 0
