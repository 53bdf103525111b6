"""Artefacts shared by runs: models, splits, teacher signals, impacts.

An artefact's address is the hash of its key (a JSON value that names all it depends on). It is built once, in a
temporary folder, under a lock, and renamed into place with a manifest of SHA-256 sums; who opens it checks them.
"""

import fcntl
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

from cdbench.errors import UserError
from cdbench.files import explained, open_to_all, read_json, sha256, write_json
from cdbench.seeds import digest

MANIFEST = "MANIFEST.json"
OWN_KINDS = ("data", "models")
"""What a method may see of its own profile and task: among another's could be a student that it hands in as its own."""
OPEN_KINDS = ("circuits", "counterfactuals", "signals", "solutions")
"""What a method may see. Held-out splits, and what a model computes on them, are of other kinds."""
KINDS = (*OWN_KINDS, *OPEN_KINDS, "heldout", "heldout-signals")
Key = dict[str, object]


class Store:
    """A folder of content-addressed artefacts. Safe for several processes at once.

    `own` is where new artefacts go when the shared folder must not be written, as in a container: what stands in neither is
    built there, and the harness adopts it if it trusts the step that built it.
    """

    def __init__(self, root: Path, own: Path | None = None) -> None:
        self.root = root
        self.own = own or root
        self._verified: set[Path] = set()
        self.building_seconds = 0.0
        """Spent on artefacts that were not there, for everybody who reads them later."""
        self._depth = 0

    def path(self, kind: str, key: Key) -> Path:
        """Where the artefact of this key lies, or would lie."""
        shared = self.root / kind / digest(key)
        return shared if (shared / MANIFEST).exists() else self.own / kind / shared.name

    def adopt(self, other: Path) -> None:
        """Takes over the artefacts of another folder that are not here yet; each is checked against its manifest first.

        Raises:
            UserError: one was cut short or altered.
            EnvironmentLacks: no space or no permission.
        """
        for manifest in sorted(other.glob(f"*/*/{MANIFEST}")):
            source = manifest.parent
            kind = source.parent.name
            if kind not in KINDS:
                continue
            _require_plain(source)
            Store(other).open(source)
            key = read_json(manifest, "store manifest").get("key")
            if not isinstance(key, dict) or digest(key) != source.name:
                raise UserError(f"{source} is not the artefact of its key; it was altered")
            self.artefact(kind, key, lambda scratch, source=source: _move(source, scratch))  # type: ignore[misc]

    def artefact(self, kind: str, key: Key, build: Callable[[Path], None]) -> Path:
        """The artefact's folder, built first if it is not there.

        Raises:
            UserError: a file of it was cut short or altered.
            EnvironmentLacks: no space or no permission.
        """
        path = self.path(kind, key)
        if not (path / MANIFEST).exists():
            with self._lock(kind, path.name):
                if not (path / MANIFEST).exists():
                    with self._timed():
                        self._build(path, key, build)
        return self.open(path)

    def open(self, path: Path) -> Path:
        """Checks an artefact's files against its manifest (once a process) and returns its folder."""
        if path in self._verified:
            return path
        for name, expected in manifest_files(path).items():
            file = path / name
            actual = sha256(file) if file.is_file() else "missing"
            if actual != expected:
                what = "is missing" if actual == "missing" else "was cut short or altered (its SHA-256 differs)"
                raise UserError(f"store file {file} {what}; delete the folder {path} to have it made again")
        self._verified.add(path)
        return path

    def opened(self) -> list[str]:
        """The artefacts opened so far, as `kind/name`."""
        return sorted(f"{path.parent.name}/{path.name}" for path in self._verified)

    def has(self, names: Sequence[str]) -> bool:
        """Whether artefacts, as `kind/name`, are all here.

        Raises:
            UserError: a file of one was cut short or altered.
        """
        paths = [self.root / kind / name for kind, _, name in (each.partition("/") for each in names) if kind in KINDS]
        there = len(paths) == len(names) and all((path / MANIFEST).is_file() for path in paths)
        return there and all(map(self.open, paths))

    def _build(self, path: Path, key: Key, build: Callable[[Path], None]) -> None:
        with explained(self.own, "the store"):
            scratch_root = self.own / "tmp"
            scratch_root.mkdir(parents=True, exist_ok=True)
            for dead in scratch_root.glob(f"{path.name}.*"):  # we hold the lock: whoever made it was killed
                shutil.rmtree(dead, ignore_errors=True)
            scratch = Path(tempfile.mkdtemp(dir=scratch_root, prefix=f"{path.name}."))
            try:
                build(scratch)
                for made in (scratch, *scratch.rglob("*")):
                    open_to_all(made)
                sums = {
                    str(file.relative_to(scratch)): sha256(file)
                    for file in sorted(scratch.rglob("*"))
                    if file.is_file()
                }
                write_json(scratch / MANIFEST, {"key": key, "files": sums})
                path.parent.mkdir(parents=True, exist_ok=True)
                shutil.rmtree(path, ignore_errors=True)  # an artefact without a manifest is no artefact
                scratch.rename(path)
            finally:
                shutil.rmtree(scratch, ignore_errors=True)

    @contextmanager
    def _timed(self) -> Iterator[None]:
        """Counts the outermost of builds that need each other."""
        began, self._depth = time.perf_counter(), self._depth + 1
        try:
            yield
        finally:
            self._depth -= 1
            self.building_seconds += 0.0 if self._depth else time.perf_counter() - began

    @contextmanager
    def _lock(self, kind: str, name: str) -> Iterator[None]:
        folder = self.own / "locks"
        with explained(folder, "the store"):
            folder.mkdir(parents=True, exist_ok=True)
            handle = (folder / f"{kind}-{name}").open("w")
        with handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield


def _require_plain(folder: Path) -> None:
    for path in (folder, *folder.rglob("*")):
        if path.is_symlink() or not (path.is_dir() or path.is_file()):
            raise UserError(f"{path} is no plain file; an artefact holds nothing else")


def _move(source: Path, target: Path) -> None:
    for name in manifest_files(source):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.move(source / name, target / name)


def recipe(*modules: str) -> dict[str, str]:
    """What an artefact depends on besides its inputs: the source of the modules that make it, and the libraries."""
    package = Path(__file__).parent
    sources = {name: sha256(package / f"{name}.py")[:16] for name in sorted(modules)}
    return sources | {name: metadata.version(name) for name in ("torch", "transformers", "numpy")}


def manifest_files(path: Path) -> dict[str, str]:
    """File name -> SHA-256, as an artefact's manifest has it."""
    files = read_json(path / MANIFEST, "store manifest").get("files")
    if not isinstance(files, dict):
        raise UserError(f"store manifest {path / MANIFEST} lists no files; delete the folder to have it made again")
    if outside := [name for name in files if Path(name).is_absolute() or ".." in Path(name).parts]:
        raise UserError(f"store manifest {path / MANIFEST} names {outside[0]}, which lies outside its folder")
    return {str(name): str(value) for name, value in files.items()}


def content_hash(path: Path) -> str:
    """One hash for all files of an artefact."""
    return digest(manifest_files(path))
