"""A Hugging Face cache as the hub's own client lays it out, with files that a test made."""

import shutil
from pathlib import Path


def cached(cache: Path, repo: str, commit: str, files: dict[str, str]) -> Path:
    """Puts the files of a data set at a commit into the cache."""
    folder = _snapshot(cache / f"datasets--{repo.replace('/', '--')}", commit)
    folder.mkdir()
    for name, text in files.items():
        (folder / name).write_text(text)
    return folder


def cached_model(cache: Path, repo: str, commit: str, made: Path) -> Path:
    """Puts a model's folder into the cache as what main is."""
    return Path(shutil.copytree(made, _snapshot(cache / f"models--{repo.replace('/', '--')}", commit)))


def _snapshot(base: Path, commit: str) -> Path:
    """The folder of a commit, not made yet; main is that commit."""
    (base / "snapshots").mkdir(parents=True, exist_ok=True)
    (base / "refs").mkdir(exist_ok=True)
    (base / "refs" / "main").write_text(commit)
    return base / "snapshots" / commit
