"""A Hugging Face cache as the hub's own client lays it out, with files that a test made."""

from pathlib import Path


def cached(cache: Path, repo: str, commit: str, files: dict[str, str]) -> Path:
    """Puts the files of a data set at a commit into the cache."""
    base = cache / f"datasets--{repo.replace('/', '--')}"
    folder = base / "snapshots" / commit
    folder.mkdir(parents=True)
    (base / "refs").mkdir()
    (base / "refs" / "main").write_text(commit)
    for name, text in files.items():
        (folder / name).write_text(text)
    return folder
