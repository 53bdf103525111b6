"""Containers that wait for their step: made ahead, each with a folder of its own, gone with their harness.

Those in which no method runs wait for another step after one that ended well.

A container holds on to its harness by its stdin; what even that left behind, the next start removes by its owner label.
"""

import contextlib
import os
import stat
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from cdbench.config import RunSpec
from cdbench.containers import AGAIN, ENDED
from cdbench.containers.engine import connect
from cdbench.containers.options import DEADLINE, KIND, OWNER, USER, Promises, is_alive, made_by, require_promises
from cdbench.files import explained

PRINTED_BYTES = 256 << 20
"""What a step may print."""


class Box:
    """A fresh folder that a container can write to; removed by `remove`."""

    def __init__(self, scratch: Path) -> None:
        with explained(scratch, "the runs folder"):
            scratch.mkdir(parents=True, exist_ok=True)
            self.path = Path(tempfile.mkdtemp(dir=scratch))
        self.give(self.path)

    def give(self, path: Path) -> None:
        """Lets the container's user have a file or folder."""
        if os.getuid() == 0:
            os.chown(path, USER, USER)

    def remove(self) -> None:
        """Removes it, whatever is in it."""
        remove_folder(self.path)

    def empty(self) -> bool:
        """Removes what is in it (the folder itself is mounted); whether nothing is left."""
        subprocess.run(["rm", "-rf", "--", *self.path.iterdir()], capture_output=True)
        return not any(self.path.iterdir())


class WaitingContainer:
    """A container that waits for its step, made by a thread of its own (half a second).

    Attributes:
        kind: of steps that it is for.
        again: whether it can do another step after one that ended well.
        free: whether it has done one, and can.
        shared: the artefacts that it sees.
        printed: bytes that its step has printed.
        asked_for: when the engine was asked for it.
    """

    def __init__(
        self,
        image: str,
        options: dict[str, Any],
        promises: Promises,
        spec: RunSpec,
        box: Box,
        shared: frozenset[str],
    ) -> None:
        self.promises, self.box, self.shared = promises, box, shared
        self.kind = options["labels"][KIND]
        self.again, self.free = options["command"][-1] == AGAIN, False
        self.printed = 0
        self._deadline = float(options["labels"][DEADLINE])
        self._writer = threading.Thread()
        self._profile = spec.profile
        self._made: Any = None
        self._client: Any = None
        self._attached: Any = None
        self._error: Exception | None = None
        self._gone = False
        self.asked_for = time.time()
        self._thread = threading.Thread(target=self._make, args=(image, options), name="cdbench-container", daemon=True)
        self._thread.start()

    def fits(self, spec: RunSpec, shared: frozenset[str]) -> bool:
        """Whether it was made for such a spec, still waits, and will not be removed by somebody before its step has ended."""
        late = time.time() + spec.profile.timeout_minutes * 60 > self._deadline
        if late or made_by(spec.profile) != made_by(self._profile) or self.shared != shared:
            return False
        with contextlib.suppress(Exception):  # whatever is wrong with it: it is of no use
            container = self.get()
            container.reload()
            return bool(container.status == "running")
        return False

    def _make(self, image: str, options: dict[str, Any]) -> None:
        try:
            self._client = connect()
            self._made = self._client.containers.create(image, **options)
            require_promises(self._made, self.promises)
            self._attached = self._made.attach_socket(params={"stdin": 1, "stdout": 1, "stderr": 1, "stream": 1})
            self._made.start()
        except Exception as error:  # it is told where the container is wanted
            self._error = error

    def get(self) -> Any:
        """The engine's container.

        Raises:
            Exception: what kept it from being made.
        """
        self._thread.join()
        if self._error:
            raise self._error
        return self._made

    def begin(self, step: str, logs: Sequence[Path]) -> None:
        """Names its step to it; what it prints is written down as it comes, stdout and stderr apart."""
        self.get()
        self.printed, self.free = 0, False
        self._writer = threading.Thread(target=self._write_down, args=(logs,), name="cdbench-logs", daemon=True)
        self._writer.start()
        getattr(self._attached, "_sock", self._attached).sendall(f"{step}\n".encode())

    def _write_down(self, logs: Sequence[Path]) -> None:
        from docker.utils.socket import STDERR, STDOUT, frames_iter

        held = {STDOUT: b"", STDERR: b""}
        with logs[0].open("wb") as out, logs[1].open("wb") as err, contextlib.suppress(OSError, ValueError):
            files = {STDOUT: out, STDERR: err}
            for stream, data in frames_iter(self._attached, tty=False):
                self.printed += len(data)
                if self.again:
                    data, held[stream] = before_end(held[stream] + data)
                if self.printed <= PRINTED_BYTES:  # read on, or the step would wait for somebody to read
                    files[stream].write(data)
                    files[stream].flush()
                if all(each == ENDED for each in held.values()):
                    self.free = True
                    return
            for stream, data in held.items():
                files[stream].write(data)

    def ended(self, seconds: float) -> bool:
        """Whether its step has ended, or the container has, after so many seconds at most."""
        from requests.exceptions import ConnectionError, ReadTimeout

        if self.again:
            self._writer.join(seconds)
            if self._writer.is_alive() or self.free:
                return self.free
        try:
            self.get().wait(timeout=seconds)
        except (ReadTimeout, ConnectionError):
            return False
        return True

    def unheard(self) -> bool:
        """Whether its step might end without anybody to hear it: it is at work, and what it prints is no longer read."""
        if not self.again or self._writer.is_alive() or self.free:  # in this order: it says so before it ends
            return False
        self.get().reload()
        return bool(self.get().status == "running")

    def finish_logs(self, seconds: float) -> None:
        """Waits until what it printed is written down, so many seconds at most."""
        self._writer.join(seconds)

    def end(self) -> bool:
        """Ends and removes it; whether it is certainly gone."""
        from docker.errors import NotFound

        if self._gone or not self._made:
            return True
        try:
            self._made.remove(force=True, v=True)
        except NotFound:
            self._gone = True
        except Exception:  # the engine may be away; the next start removes it by its label
            return False
        self._gone = True
        return True

    def remove(self) -> None:
        """Ends and removes it; its folder too."""
        self._thread.join()
        self.end()
        for open_one in (getattr(self._attached, "_sock", None), self._attached, self._client):
            with contextlib.suppress(OSError):
                if open_one:
                    open_one.close()
        self.box.remove()


def before_end(printed: bytes) -> tuple[bytes, bytes]:
    """Parts what a step printed from the word that it has ended, or from what may become that word."""
    for count in range(min(len(ENDED), len(printed)), 0, -1):
        if printed.endswith(ENDED[:count]):
            return printed[:-count], printed[-count:]
    return printed, b""


def containers_of(client: Any, folder: Path) -> list[Any]:
    """Containers, running or not, whose step's folder lies below this one."""
    found = client.containers.list(all=True, filters={"label": OWNER}, ignore_removed=True)
    return [each for each in found if any(folder in Path(m["Source"]).parents for m in each.attrs["Mounts"])]


def held_by_deleted(container: Any, folder: Path) -> int:
    """Bytes on the disk of `folder` in files that the container's processes hold open or mapped, and nobody can find any more.

    0 where its processes cannot be looked at: an engine in a virtual machine, or another user's.
    """
    disk = folder.stat().st_dev
    mapped: dict[int, int] = {}
    opened: dict[int, int] = {}
    with contextlib.suppress(Exception):  # it may have ended
        told = container.top()
        place = told["Titles"].index("PID")
        for process in told["Processes"]:
            own = Path(f"/proc/{int(process[place])}")
            mapped.update(_mapped_deleted(own, disk))
            opened.update(_open_deleted(own, disk))
    # Of a file that somebody has open its size on the disk is known; of one that is only mapped, what is mapped.
    return sum((mapped | opened).values())


def _open_deleted(process: Path, disk: int) -> Iterator[tuple[int, int]]:
    """Inode and bytes of files without a name that a process of /proc has open."""
    with contextlib.suppress(OSError):
        for opened in (process / "fd").iterdir():
            with contextlib.suppress(OSError):
                state = opened.stat()
                if stat.S_ISREG(state.st_mode) and state.st_nlink == 0 and state.st_dev == disk:
                    yield state.st_ino, 512 * state.st_blocks


def _mapped_deleted(process: Path, disk: int) -> Iterator[tuple[int, int]]:
    """The same of those that it has mapped, which it may have closed."""
    with contextlib.suppress(OSError):
        for line in (process / "maps").read_text(errors="replace").splitlines():
            span, _, offset, device, inode, *_ = line.split()
            if line.endswith("(deleted)") and device == f"{os.major(disk):02x}:{os.minor(disk):02x}":
                begin, end = (int(each, 16) for each in span.split("-"))
                yield int(inode), end - begin + int(offset, 16)


def reap(client: Any) -> int:
    """Removes containers whose harness is gone or whose deadline has passed; how many."""
    dead = [
        each
        for each in client.containers.list(all=True, filters={"label": OWNER}, ignore_removed=True)
        if not is_alive(each.labels[OWNER]) or time.time() > float(each.labels.get(DEADLINE, "inf"))
    ]
    return sum(map(_removed, dead))


def clear(client: Any, folder: Path) -> None:
    """Removes a folder that steps were given their folders in, and what containers still have one there."""
    for container in containers_of(client, folder):
        _removed(container)
    remove_folder(folder)


def _removed(container: Any) -> bool:
    from docker.errors import APIError

    with contextlib.suppress(APIError):  # somebody else removes it too
        container.remove(force=True, v=True)
        return True
    return False


def remove_folder(folder: Path) -> None:
    """Removes a folder that may be nested to any depth, or closed against us; rm copes with both, shutil does not."""
    if folder.exists():
        subprocess.run(["chmod", "-R", "u+rwX", "--", folder], capture_output=True)
        subprocess.run(["rm", "-rf", "--", folder], capture_output=True)
