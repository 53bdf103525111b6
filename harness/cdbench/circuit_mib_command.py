"""`cdbench circuit export` and `import`: circuits to and from MIB's files."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cdbench import __version__
from cdbench.circuit_options import SHOWN, data_options, data_wanted, model_options, require_graph, studied_of, top_rows
from cdbench.errors import UserError

if TYPE_CHECKING:
    from cdbench.circuits.saved import Subject
    from cdbench.circuits.scores import Scores


@click.command("export")
@click.argument("folder", metavar="CIRCUIT", type=click.Path(path_type=Path))
@click.option("--format", "form", type=click.Choice(["mib"]), default="mib", show_default=True)
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="A .json or .pt file [CIRCUIT/mib.json].")
@click.option(
    "--keep", type=int, metavar="K", help="Also mark the top K items as the circuit [none: importances only]."
)
@click.option("--json", "as_json", is_flag=True, help="The result as JSON on stdout.")
def export(folder: Path, form: str, out: Path | None, keep: int | None, as_json: bool) -> None:
    """Write a circuit as MIB's code reads it (EAP-IG's Graph.from_json and Graph.from_pt).

    \b
    cdbench circuit export runs/circuits/teacher-addition_2digit-edge-attribution --format mib
    cdbench circuit export runs/circuits/teacher-addition_2digit-edge-attribution --out importances.json
    cdbench circuit export runs/circuits/teacher-addition_2digit-edge-attribution --out circuit.pt --keep 50
    """
    from cdbench.circuits import mib, saved
    from cdbench.circuits.graph import top

    made, scores = saved.read(folder)
    graph = made.model.graph
    if keep is not None and not 1 <= keep <= graph.items(made.level):
        raise UserError(f"--keep {keep}: a circuit of 1 to {graph.items(made.level)} {made.level}s can be marked")
    chosen = None if keep is None else top(scores.mean, keep, graph, made.level)
    out = out or folder / f"{form}.json"
    if out.resolve() in {(folder / own).resolve() for own in (saved.CIRCUIT, saved.SCORES)}:
        raise UserError(f"--out {out} is the circuit itself; take another name")
    mib.write(out, graph, made.level, scores.mean, chosen)
    kept = None if chosen is None else len(chosen)
    if as_json:
        click.echo(json.dumps({"file": str(out), "format": form, "level": made.level, "kept": kept}))
        return
    if kept != keep:
        click.echo(f"{kept} of the top {keep} edges lead from the input to the logits and are marked", err=True)
    click.echo(out)


def _is_held(folder: Path, subject: "Subject", scores: "Scores") -> bool:
    """Whether a folder's circuit is of this model, with these scores and no others."""
    from cdbench.circuits import saved

    try:
        made, held = saved.read(folder)
    except UserError:  # what is left of one, of which nobody can say what it was
        return False
    same = held.rows.double().equal(scores.rows.float().double()) and held.sizes.long().equal(scores.sizes.long())
    return (made.model, made.level) == (subject, scores.level) and same


@click.command("import")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--format", "form", type=click.Choice(["mib"]), default="mib", show_default=True)
@click.option("--model", required=True, help="The model that it is of, named as for discover.")
@click.option(
    "--level", type=click.Choice(["node", "edge", "neuron"]), help="Which scores [the only ones in the file]."
)
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Where to write it [RUNS/circuits/FILE].")
@data_options
@model_options
def import_(file: Path, form: str, **options: Any) -> None:
    """Read importances that MIB's code has written, as a circuit of a model of ours.

    \b
    cdbench circuit import importances.json --format mib --model teacher
    cdbench circuit import importances.pt --model ./my-llama --level edge --out my-circuit
    """
    from cdbench.circuits import mib, saved
    from cdbench.circuits.discovery import strongest
    from cdbench.circuits.scores import single

    wanted = data_wanted(options)
    found = mib.read(file, options["level"])
    level = options["level"] or next(iter(found.scores))
    if options["level"] is None and len(found.scores) > 1:
        raise UserError(f"{file} has scores of {' and '.join(found.scores)}s; say which with --level")
    studied = studied_of(options["model"], options)
    studied.start()
    graph = require_graph(found.graph, studied, str(file))
    folder = options["out"] or studied.where.runs / "circuits" / file.stem
    scores = single(level, found.scores[level])
    data = {
        "task": studied.workspace.task, "source": wanted.source, "counterfactual": wanted.counterfactual,
        "revision": wanted.commit, "problems": 0, "prompts": 0 if wanted.wordings == "all" else None,
        "without_counterfactual": 0, "without_contrast": 0,
    }  # fmt: skip
    unknown = ("metric_clean", "metric_corrupt", "stability", "spearman_with_exact", "same_sign_as_exact")
    table = {
        "cdbench": __version__, "model": studied.subject, "data": data, "by": "import", "level": level, "steps": 1,
        "top": top_rows(scores, graph, strongest(scores, graph, min(SHOWN, graph.items(level)))), **dict.fromkeys(unknown),
    }  # fmt: skip
    if (folder / saved.CIRCUIT).exists() and not _is_held(folder, studied.subject, scores):
        raise UserError(f"{folder} holds another circuit, which would be lost: name another folder with --out")
    made = saved.write(folder, table, scores)
    if options["as_json"]:
        click.echo(json.dumps({"folder": str(folder), **made.model_dump(mode="json")}, indent=1))
        return
    click.echo(f"{graph.items(level)} {level} scores of {options['model']} written to {folder}; "
               f"next: cdbench circuit evaluate {folder}")  # fmt: skip
