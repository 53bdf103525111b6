"""What is taken of what a step left, when nobody is left who could still write: plain files of a sane size, nothing else."""

import os
import stat
from pathlib import Path

from cdbench.containers.options import GIB
from cdbench.errors import CdbenchError
from cdbench.files import explained
from cdbench.record import PREPARED, failure_file, progress_file

_SMALL = 64 << 20
"""Bytes that a file other than tensors may have."""
_LEAVES: dict[str, tuple[str, ...]] = {
    "circuits": (PREPARED,),
    # The outcome last: where it is, the rest is.
    "train": ("history.jsonl", "student.safetensors", "masks.safetensors", "outcome.json"),
    "evaluate": ("metrics.json", "predictions.jsonl"),
}
_UNFINISHED = ("history.jsonl", "checkpoint.pt")
"""What is worth keeping of a step that did not come to its end."""
_TENSORS = ("student.safetensors", "masks.safetensors", "checkpoint.pt")


class NotPlain(CdbenchError):
    """A step left something else than a plain file of a sane size."""


def harvest(step: str, box: Path, target: Path, *, ended_well: bool, limit: int) -> None:
    """Takes what a step may leave.

    Raises:
        NotPlain: something is no plain file, or larger than `limit` bytes where it holds tensors.
    """
    left = _LEAVES.get(step, ()) if ended_well else _UNFINISHED
    for name in (*left, failure_file(step), progress_file(step)):
        _take(box / name, target / name, limit if name in _TENSORS else _SMALL)


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
