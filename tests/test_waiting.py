"""What is looked at of containers that wait and work, without an engine."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cdbench.containers.options import is_alive, owner
from cdbench.containers.waiting import held_by_deleted
from cdbench.runners.docker import _used

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


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that everybody may enter; pytest's own are the user's."""
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    folder.chmod(0o777)
    yield folder
    subprocess.run(["chmod", "-R", "u+rwx", folder], check=True)
    shutil.rmtree(folder)


def as_nobody(call: Callable[[], object]) -> Any:
    """What a call gives in a process of a user who is not root; whoever runs the tests, if that is not root."""
    reads, writes = os.pipe()
    if (child := os.fork()) == 0:
        try:
            if os.getuid() == 0:
                os.setgid(65534)
                os.setuid(65534)
            os.write(writes, json.dumps(call()).encode())
        finally:
            os._exit(0)
    os.close(writes)
    with os.fdopen(reads) as told:
        text = told.read()
    os.waitpid(child, 0)
    return json.loads(text)


def test_a_folder_that_the_harness_may_not_list_is_told_and_not_counted_as_nothing(open_folder: Path) -> None:
    def fill() -> tuple[int, str]:
        hidden = open_folder / "a\nb"
        hidden.mkdir()
        (hidden / "part").write_bytes(os.urandom(1 << 20))
        before = _used(open_folder, "--block-size=1")
        hidden.chmod(0o300)
        return (*before, *_used(open_folder, "--block-size=1"))  # type: ignore[return-value]

    seen, nothing, left, complaint = as_nobody(fill)
    assert seen > MIB > left and nothing == ""
    assert complaint.startswith("du: cannot read directory") and complaint.isprintable()
    assert _used(open_folder / "not there", "--inodes") == (0, "")


@pytest.mark.parametrize("part", ["user", "namespace", "host"])
def test_of_a_process_that_cannot_be_looked_up_nobody_says_that_it_is_dead(part: str) -> None:
    place, pid, start = owner().rsplit(":", 2)
    host, user, namespace = place.split("/")
    dead = f"{host}/{user}/{namespace}:{pid}:1{start}"
    assert is_alive(owner()) and not is_alive(dead)
    other = {"host": host, "user": user, "namespace": namespace} | {part: "1234567"}
    assert is_alive("/".join(other.values()) + f":{pid}:1{start}")
