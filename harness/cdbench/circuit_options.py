"""What the commands of `cdbench circuit` share: options, the model that they ask for, progress."""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cdbench import plan
from cdbench.errors import UserError

if TYPE_CHECKING:
    from cdbench.circuit_session import Data, Studied
    from cdbench.circuits.graph import Graph
    from cdbench.circuits.saved import SavedCircuit
    from cdbench.circuits.scores import Scores

Command = Callable[..., None]
VARIABLES = ["ones_carry", "tens_carry", "ones_op1", "tens_op1", "ones_op2", "tens_op2"]
_KINDS = ["random", *VARIABLES]
SHOWN = 10
"""Items that are shown if nobody says how many."""
_SAID_EVERY = 10
"""Seconds between two words of progress where there is no terminal."""


def where_options(command: Command) -> Command:
    """--store, --runs, --device, --json."""
    command = click.option("--store", help="Folder of shared artefacts [CDBENCH_STORE; RUNS/store].")(command)
    command = click.option("--runs", help="Folder of records and reports [CDBENCH_RUNS; ./runs].")(command)
    command = click.option(
        "--device",
        type=click.Choice(["cpu", "cuda"]),
        help="Where the model runs [as the profile says: all but paper on the CPU].",
    )(command)
    return click.option("--json", "as_json", is_flag=True, help="The result as JSON on stdout.")(command)


def batch_option(command: Command) -> Command:
    """--batch-size."""
    return click.option(
        "--batch-size",
        type=click.IntRange(1),
        default=100,
        show_default=True,
        help="Prompts at a time: fewer take less memory and change no score. Edges take as much as all readers' streams.",
    )(command)


def model_options(command: Command) -> Command:
    """Those of where, and --profile and --task."""
    command = where_options(command)
    command = click.option(
        "--profile",
        help="Whose models and splits: tiny (if not said), tiny_lengths, smoke, paper, or a .toml file. A run has its own.",
    )(command)
    return click.option("--task", help="addition_2digit, if not said. A run has its own.")(command)


def source_options(command: Command) -> Command:
    """--data and --revision."""
    command = click.option("--revision", help="Commit of MIB's data, 40 hex digits [the pinned one].")(command)
    return click.option(
        "--data",
        "source",
        type=click.Choice(["task", "mib", "mib-subtraction", "mib-generated", "mib-generated-subtraction"]),
        default="task",
        show_default=True,
        help="The task's problems; MIB's additions or subtractions, from the Hugging Face cache; problems made in their schema.",
    )(command)


def data_options(command: Command) -> Command:
    """Those of the source, --wordings and --counterfactual."""
    command = click.option(
        "--wordings",
        type=click.Choice(["first", "all"]),
        default="first",
        show_default=True,
        help="MIB asks each problem in several wordings: take the first, or all as MIB does, with intervals over problems.",
    )(command)
    return click.option(
        "--counterfactual",
        type=click.Choice(_KINDS),
        default="random",
        show_default=True,
        help="What the other problem of a pair differs in: any problem, a digit, a carry.",
    )(source_options(command))


def data_wanted(options: dict[str, Any]) -> "Data":
    """The problems that the options ask for."""
    from cdbench.circuit_session import Data

    return Data(options["source"], options["counterfactual"], options["revision"], options.get("wordings", "first"))


def data_of(made: "SavedCircuit") -> "Data":
    """The problems that a circuit was found on."""
    from cdbench.circuit_session import Data, Wordings

    wordings: Wordings = "first" if made.data.prompts is None else "all"
    return Data(made.data.source, made.data.counterfactual, made.data.revision, wordings)


def studied_of(model: str, options: dict[str, Any]) -> "Studied":
    """The model that is asked for, not loaded yet.

    Raises:
        UserError: a run on another task, or under another profile, than its own.
    """
    from cdbench.circuit_session import Studied

    where = plan.places(options["runs"], options["store"])
    task = options["task"] or "addition_2digit"
    studied = Studied(model, options["profile"] or "tiny", task, where, _told("models"), options["device"])
    if studied.is_run and options["task"] not in (None, studied.workspace.task):
        raise UserError(f"run {model} was made on task '{studied.workspace.task}'; it is studied on no other")
    asked = options["profile"] and Path(options["profile"]).stem
    if studied.is_run and asked not in (None, studied.profile.name):
        raise UserError(f"run {model} was made under profile '{studied.profile.name}'; it is studied under no other")
    return studied


def studied_again(made: "SavedCircuit", options: dict[str, Any]) -> "Studied":
    """The model of a saved circuit; refused if it is another one by now."""
    studied = studied_of(made.model.name, options | {"profile": made.model.profile, "task": made.data.task})
    studied.start()
    if studied.content != made.model.content:
        raise UserError(
            f"the circuit is of another model: '{made.model.name}' was {made.model.content[:12]} when it was found, and is "
            f"{studied.content[:12]} now"
        )
    require_graph(made.model.graph, studied, f"the circuit of '{made.model.name}'")
    return studied


def require_graph(graph: "Graph", studied: "Studied", what: str) -> "Graph":
    """The model's graph; refused if `what` is of another."""
    from cdbench.circuits.graph import Graph

    own = Graph.of(studied.model)
    if graph != own:
        raise UserError(
            f"{what} is of another model: {graph.layers} layers, {graph.heads} heads, width {graph.width}; "
            f"'{studied.name}' has {own.layers}, {own.heads}, {own.width}"
        )
    return own


def require_top(option: str, asked: int, there: int, what: str) -> None:
    """Raises UserError where more are asked for than there are: fewer would be shown in silence."""
    if asked > there:
        raise UserError(f"{option} {asked}: the model has {there} {what}")


def _told(what: str) -> Callable[[int, int, str], None]:
    """Progress on a terminal; a pipe is told every ten seconds."""
    shown, last = sys.stderr.isatty(), time.monotonic()

    def tell(done: int, total: int, note: str) -> None:
        nonlocal last
        of = f" {done} of {total}" if total else ""
        if shown:
            click.echo(f"\r\033[K{what}{of} {note}\r", nl=False, err=True)
        elif time.monotonic() - last >= _SAID_EVERY:
            last = time.monotonic()
            click.echo(f"{what}{of} {note}".rstrip(), err=True)

    return tell


def work_told(what: str, batch_size: int) -> Any:
    """Work that tells how far it is."""
    from cdbench.circuits.attribution import Work

    tell = _told(what)
    return Work(batch_size, progress=lambda done, total: tell(done, total, "prompts"))


def clear_line() -> None:
    """Takes the progress off a terminal."""
    if sys.stderr.isatty():
        click.echo("\r\033[K", nl=False, err=True)


def top_rows(scores: "Scores", graph: Any, items: tuple[int, ...], checked: Any = None) -> list[dict[str, Any]]:
    """Items with their scores, intervals, and what attribution and exact patching say, as circuit.json has them."""
    import torch

    from cdbench.circuits.discovery import flat

    names, mean = list(graph.names(scores.level)), flat(scores.mean, graph, scores.level)
    count, some = len(items), list(items)
    places = graph.edge_mask.flatten().nonzero().flatten()[some] if scores.level == "edge" else torch.tensor(some)
    limits = scores.interval(places)
    low, high = ([None] * count, [None] * count) if limits is None else (limit.tolist() for limit in limits)
    return [
        {
            "name": names[i],
            "score": mean[i].item(),
            "low": low[rank],
            "high": high[rank],
            "attribution": checked and checked.approximate[rank],
            "exact": checked and checked.exact[rank],
        }
        for rank, i in enumerate(items)
    ]
