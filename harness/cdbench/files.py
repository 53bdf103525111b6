"""Files that are never half there: write beside, flush, rename."""

import contextlib
import errno
import hashlib
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from cdbench.errors import EnvironmentLacks, UserError

_ADVICE = {
    errno.ENOSPC: "the disk is full: free some space, or choose another folder (--runs, --store, --out)",
    errno.EDQUOT: "the disk quota is used up: free some space, or choose another folder (--runs, --store, --out)",
    errno.EACCES: "no permission to write there: change its owner, or choose another folder (--runs, --store, --out)",
    errno.EPERM: "no permission to write there: change its owner, or choose another folder (--runs, --store, --out)",
    errno.EROFS: "the file system is read-only: choose another folder (--runs, --store, --out)",
}
_UMASK = os.umask(0)
os.umask(_UMASK)


@contextlib.contextmanager
def explained(path: Path, what: str) -> Iterator[None]:
    """Turns a full disk or a missing permission into a sentence that names the path.

    Raises:
        EnvironmentLacks: the operating system refused to write `path`.
    """
    try:
        yield
    except Exception as error:
        # Writers in C++ report a full disk as RuntimeError, SafetensorError or an OSError without number.
        number = (error.errno or 0) if isinstance(error, OSError) else 0
        if number == 0 and _is_full(path):
            number = errno.ENOSPC
        if number == 0:
            raise
        advice = _ADVICE.get(number, f"{os.strerror(number)}; choose another folder (--runs, --store, --out)")
        raise EnvironmentLacks(f"cannot write {what} {path}: {advice}") from error


def _is_full(path: Path) -> bool:
    folder = path
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free < 1 << 20


def write_atomic(path: Path, data: str | bytes, what: str = "the file") -> None:
    """Writes `path` whole or not at all, also when the process is killed in the middle."""
    with explained(path, what):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data.encode() if isinstance(data, str) else data)
                file.flush()
                os.fsync(file.fileno())
            open_to_all(Path(name))
            os.replace(name, path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise


def open_to_all(path: Path) -> None:
    """Gives a temporary file or folder the mode of any other: 0600 and 0700 would shut out colleagues and containers."""
    path.chmod((0o777 if path.is_dir() else 0o666) & ~_UMASK)


def write_json(path: Path, value: object, what: str = "the file") -> None:
    """Writes a JSON value atomically, indented, keys in the order given. NaN is refused: it is not JSON."""
    write_atomic(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n", what)


def read_json(path: Path, what: str) -> dict[str, object]:
    """Reads a JSON object.

    Raises:
        UserError: the file is missing, cut short, or not a JSON object; the message names it.
    """
    try:
        value = json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{what} {path} does not exist") from None
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{what} {path} is not valid JSON ({error}); it was cut short or altered") from None
    if not isinstance(value, dict):
        raise UserError(f"{what} {path} holds {type(value).__name__}, expected a JSON object")
    return value


def json_lines(rows: Iterable[object]) -> str:
    """JSON lines, a value each, in the order given. ASCII: what a model or a plug-in says, UTF-8 may have no bytes for."""
    return "".join(json.dumps(row) + "\n" for row in rows)


def parse_json_lines(text: str) -> list[Any]:
    """What `json_lines` wrote, or others.

    Parsed at once, as that is faster; and not by `splitlines`: a text may hold U+2028, which ends no line of JSON.
    """
    lines = filter(None, text.split("\n"))
    values: list[Any] = json.loads(f"[{','.join(lines)}]")
    return values


def read_plain(path: Path, limit: int) -> bytes:
    """Reads a file that somebody hostile may have placed: no link is followed, no pipe waited for.

    Raises:
        OSError: missing, or not a plain file of at most `limit` bytes.
    """
    with open_plain(path) as file:
        if os.fstat(file.fileno()).st_size > limit:
            raise OSError(errno.EFBIG, f"{path} has more than {limit} bytes")
        return file.read(limit)


def open_plain(path: Path) -> BinaryIO:
    """Opens such a file for reading.

    Raises:
        OSError: missing, or not a plain file.
    """
    file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb")
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, f"{path} is not a plain file")
    return file


def printable(text: str, limit: int = 2000) -> str:
    """A text that somebody hostile may have written, fit for a terminal and a record: no control characters, cut."""
    clean = "".join(c if c.isprintable() or c == "\n" else " " for c in text[:limit])
    return clean if len(text) <= limit else f"{clean} [...]"


def one_line(text: str) -> str:
    """The same in one line: what somebody says must not look like a line, or a row of a table, of ours."""
    return " ".join(printable(text).splitlines())


def sha256(path: Path) -> str:
    """SHA-256 of a file, read in blocks."""
    hasher = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            hasher.update(block)
    return hasher.hexdigest()
