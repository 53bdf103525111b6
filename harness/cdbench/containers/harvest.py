"""What is taken of what a step left, when nobody is left who could still write: plain files of a sane size, nothing else."""

import os
import stat
from contextlib import suppress
from pathlib import Path

from cdbench.containers.options import GIB
from cdbench.errors import CdbenchError
from cdbench.files import explained, open_plain
from cdbench.record import PREPARED, failure_file, progress_file

_SMALL = 64 << 20
"""Bytes that a file other than tensors may have."""
_LEAVES: dict[str, tuple[str, ...]] = {
    "circuits": (PREPARED,),
    # The outcome last: where it is, the rest is.
    "train": ("history.jsonl", "student.safetensors", "masks.safetensors", "outcome.json"),
    "evaluate": ("metrics.json", "predictions.jsonl"),
}
RESUMED = ("checkpoint.pt", "history.jsonl")
"""What a training goes on from; the history last, of which what goes too far is cut."""
_TENSORS = ("student.safetensors", "masks.safetensors", "checkpoint.pt")


class NotPlain(CdbenchError):
    """A step left something else than a plain file of a sane size."""


def harvest(step: str, box: Path, target: Path, *, ended_well: bool, limit: int) -> None:
    """Takes what a step may leave.

    Raises:
        NotPlain: something is no plain file, or larger than `limit` bytes where it holds tensors.
    """
    left = _LEAVES.get(step, ()) if ended_well else RESUMED
    for name in (*left, failure_file(step), progress_file(step)):
        _take(box / name, target / name, limit if name in _TENSORS else _SMALL)


Kept = dict[str, tuple[int, int, int]]
"""Which files `keep` has copied: inode, time of change and size by name."""


def keep(box: Path, target: Path, limit: int, seen: Kept) -> None:
    """Copies what a training that is at work could be gone on from, should all of this be lost, unless `seen` has it.

    What is no plain file, is larger than `harvest` allows or hollow, and what cannot be written here, is passed over: `harvest`
    will say so. Without a copy the training would begin anew.
    """
    for name in RESUMED:
        spare = target / f".{name}.kept"
        with suppress(OSError), open_plain(box / name) as source:
            found = os.fstat(source.fileno())
            state = (found.st_ino, found.st_mtime_ns, found.st_size)
            large = found.st_size > (limit if name in _TENSORS else _SMALL)
            # A hole takes no space there, and would here; a file system that compresses saves less than that.
            hollow = found.st_size > (1 << 20) and 4 * 512 * found.st_blocks < found.st_size
            if found.st_nlink == 1 and not (large or hollow or seen.get(name) == state):
                with spare.open("wb") as copy:
                    left = found.st_size  # whoever writes could go on and on
                    while left and (part := source.read(min(left, 1 << 20))):
                        left -= copy.write(part)
                os.replace(spare, target / name)
                seen[name] = state
        spare.unlink(missing_ok=True)


def _take(source: Path, target: Path, limit: int) -> None:
    """Moves a file out of a folder that a method could write to."""
    try:
        found = source.lstat()
    except FileNotFoundError:
        return
    except OSError as error:
        raise NotPlain(f"{source.name} cannot be looked at: {error.strerror}") from None
    if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1:
        raise NotPlain(f"{source.name} is a {_kind(found.st_mode)}; only plain files are taken")
    if found.st_size > limit:
        raise NotPlain(f"{source.name} has {found.st_size / GIB:.2f} GiB, more than the {limit / GIB:.2f} allowed")
    try:
        handle = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise NotPlain(f"{source.name} cannot be opened: {error.strerror}") from None
    try:
        if os.getuid() == 0:
            os.fchown(handle, 0, 0)
        os.fchmod(handle, 0o644)
    finally:
        os.close(handle)
    with explained(target, "the run"):
        os.replace(source, target)


def _kind(mode: int) -> str:
    kinds = {stat.S_IFLNK: "symbolic link", stat.S_IFIFO: "pipe", stat.S_IFDIR: "folder", stat.S_IFSOCK: "socket"}
    return kinds.get(stat.S_IFMT(mode), "hard link" if stat.S_ISREG(mode) else "device")
