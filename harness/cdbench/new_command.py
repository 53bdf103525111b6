"""`cdbench new`: a file that already runs, to be changed into one's own: a plug-in, a study, a profile."""

import keyword
import re
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from string import Template

import click

from cdbench.config import TEACHER, available
from cdbench.discover import find
from cdbench.errors import UserError
from cdbench.files import explained

_NEXT = {
    "method": "cdbench run {file} --profile smoke",
    "task": "cdbench run finetune --task {file} --profile smoke",
    "study": "cdbench reproduce {file} --profile smoke",
    "profile": "cdbench reproduce paper_a --profile {file} --dry-run",
}
_PROFILE = "tiny"
"""What a new profile begins as."""


def write_starter(kind: str, name: str, folder: Path) -> Path:
    """Writes FOLDER/NAME.py, FOLDER/tasks/NAME.py (tasks are found by folder), or FOLDER/NAME.toml.

    Raises:
        UserError: the name is no Python name, or taken, or the file is there.
        EnvironmentLacks: no permission, no space.
    """
    if name == TEACHER:
        raise UserError(
            f"'{name}' cannot be the name of a {kind}: it is the name of the reference row; take another name"
        )
    if not name.isidentifier() or not name.islower():
        raise UserError(f"'{name}' cannot be the name of a {kind}: use small letters, digits and '_'")
    there = _there(kind).get(name)
    if there:
        raise UserError(f"there is a {kind} '{name}' already ({there}); take another name")
    ending = "py" if kind in ("method", "task") else "toml"
    file = (folder / "tasks" if kind == "task" else folder) / f"{name}.{ending}"
    if file.exists():
        raise UserError(f"{file} is there already; it is not overwritten")
    starter = (resources.files("cdbench") / "starters" / f"{kind}.{ending}.txt").read_text()
    if kind == "profile":
        starter += available("profiles")[_PROFILE].read_text().split("\n", 1)[1]  # all but its description
    words = name.split("_")
    text = Template(starter).substitute(
        {
            "title": " ".join(words).capitalize(),
            "class": _class_name(words, kind, starter),
            "file": file,
            "base": _PROFILE,
        }
    )
    with explained(file.parent, "the folder"):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return file


def _class_name(words: Sequence[str], kind: str, starter: str) -> str:
    """CamelCase; with the kind at its end where the bare name would be a keyword, or hide what the file imports."""
    name = "".join(word.capitalize() for word in words)
    return f"{name}{kind.capitalize()}" if keyword.iskeyword(name) or re.search(rf"\b{name}\b", starter) else name


def _there(kind: str) -> dict[str, Path]:
    match kind:
        case "method":
            return find("methods")
        case "task":
            return find("tasks")
        case "study":
            return available("studies")
        case _:
            return available("profiles")


@click.command()
@click.argument("kind", type=click.Choice(["method", "task", "study", "profile"]))
@click.argument("name")
@click.option("--into", "folder", type=click.Path(path_type=Path, file_okay=False), default=".", show_default=True,
              help="Folder to write to.")  # fmt: skip
def new(kind: str, name: str, folder: Path) -> None:
    """Write a commented file that already runs: a method, a task, a study or a profile.

    \b
    cdbench new method my_method        # my_method.py; then: cdbench run my_method.py --profile smoke
    cdbench new task my_task            # tasks/my_task.py; then: cdbench run finetune --task tasks/my_task.py
    cdbench new study my_study          # my_study.toml; then: cdbench reproduce my_study.toml
    cdbench new profile my_models       # my_models.toml; then: cdbench reproduce paper_a --profile my_models.toml
    """
    file = write_starter(kind, name, folder)
    click.echo(f"{file}: change it; it runs as it is:")
    click.echo(f"  {_NEXT[kind].format(file=file)}")
