"""`cdbench new`: a plug-in file that already runs, to be changed into one's own."""

from importlib import resources
from pathlib import Path
from string import Template

import click

from cdbench.config import TEACHER
from cdbench.discover import find
from cdbench.errors import UserError
from cdbench.files import explained

_NEXT = {
    "method": "cdbench run {file} --profile smoke",
    "task": "cdbench run finetune --task {file} --profile smoke",
}


def write_starter(kind: str, name: str, folder: Path) -> Path:
    """Writes FOLDER/NAME.py, or FOLDER/tasks/NAME.py: tasks are found by folder.

    Raises:
        UserError: the name is no Python name, or taken, or the file is there.
        EnvironmentLacks: no permission, no space.
    """
    if not name.isidentifier() or not name.islower() or name == TEACHER:
        raise UserError(f"'{name}' cannot be the name of a {kind}: use small letters, digits and '_'")
    there = find("methods" if kind == "method" else "tasks").get(name)
    if there:
        raise UserError(f"there is a {kind} '{name}' already ({there}); take another name")
    file = (folder / f"{name}.py") if kind == "method" else (folder / "tasks" / f"{name}.py")
    if file.exists():
        raise UserError(f"{file} is there already; it is not overwritten")
    starter = (resources.files("cdbench") / "starters" / f"{kind}.py.txt").read_text()
    words = name.split("_")
    text = Template(starter).substitute(
        {"title": " ".join(words).capitalize(), "class": "".join(word.capitalize() for word in words)}
    )
    with explained(file.parent, "the folder"):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return file


@click.command()
@click.argument("kind", type=click.Choice(["method", "task"]))
@click.argument("name")
@click.option("--into", "folder", type=click.Path(path_type=Path, file_okay=False), default=".", show_default=True,
              help="Folder to write to.")  # fmt: skip
def new(kind: str, name: str, folder: Path) -> None:
    """Write a commented plug-in file that already runs.

    \b
    cdbench new method my_method        # my_method.py; then: cdbench run my_method.py --profile smoke
    cdbench new task my_task            # tasks/my_task.py; then: cdbench run finetune --task tasks/my_task.py
    """
    file = write_starter(kind, name, folder)
    click.echo(f"{file}: change it; it runs as it is:")
    click.echo(f"  {_NEXT[kind].format(file=file)}")
