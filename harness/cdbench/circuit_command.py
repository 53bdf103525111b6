"""`cdbench circuit`: find circuits, judge them, exchange them with MIB."""

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cdbench import __version__
from cdbench.circuit_inside_command import attention, draw, interchange
from cdbench.circuit_mib_command import export, import_
from cdbench.circuit_options import (
    SHOWN,
    batch_option,
    clear_line,
    data_of,
    data_options,
    data_wanted,
    model_options,
    require_top,
    studied_again,
    studied_of,
    top_rows,
    where_options,
    work_told,
)
from cdbench.circuit_output import ELSE, draw_curves, dropped, require_svg, show_discovery, show_evaluation, worded
from cdbench.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from cdbench.circuit_session import Data, Studied
    from cdbench.circuits.scores import Scores

_PROBLEMS = 500
_DRAWS = 3


@click.group()
def circuit() -> None:
    """Find the circuit of a task in a model, judge it as MIB does, exchange it with MIB's code.

    \b
    cdbench circuit discover teacher --task addition_2digit
    cdbench circuit evaluate runs/circuits/teacher-addition_2digit-node-attribution
    """


@circuit.command()
@click.argument("model")
@click.option(
    "--by",
    type=click.Choice(["attribution", "ablation", "exact"]),
    default="attribution",
    show_default=True,
    help="Attribution patching; accuracy lost under mean ablation; patching each node in turn.",
)
@click.option(
    "--level",
    type=click.Choice(["node", "edge", "neuron"]),
    default="node",
    show_default=True,
    help="Heads and MLPs; edges between them; residual dimensions of each node.",
)
@click.option(
    "--steps", type=click.IntRange(1), default=1, show_default=True, help="Steps of integrated gradients; 1: none."
)
@click.option(
    "-n", "--problems", type=click.IntRange(1), default=_PROBLEMS, show_default=True, help="Training problems to use."
)
@click.option("--top", type=click.IntRange(1), help="Items to show, and to patch exactly [10, or all there are].")
@click.option(
    "--draws",
    type=click.IntRange(0),
    help="Draws more of a task's counterfactuals, to tell how far the ranking hangs on the draw [3 by attribution, else 0].",
)
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Where to write it [RUNS/circuits/NAME].")
@data_options
@model_options
@batch_option
def discover(model: str, **options: Any) -> None:
    """Rank a model's nodes, edges or neurons by what they do for a task, and hold attribution against exact patching on the top.

    Positive importance helps: importance is the logit difference (right answer − counterfactual's answer) that is lost when the
    item carries the counterfactual's activation. Attribution takes a few passes, however many items there are; exact patching and
    ablation take one for each: small models, or nodes.

    \b
    cdbench circuit discover teacher --task addition_2digit
    cdbench circuit discover student --level edge --by exact
    cdbench circuit discover 3f2a9c0d1b7e4f60 --level edge --steps 5
    cdbench circuit discover ./my-llama --counterfactual ones_carry --json
    cdbench circuit discover meta-llama/Llama-3.2-1B --data mib --device cuda    # from the local hub cache
    cdbench circuit discover meta-llama/Llama-3.2-1B --data mib --wordings all   # each problem in all of MIB's wordings
    """
    from cdbench.circuits import discovery, saved
    from cdbench.circuits.graph import Graph
    from cdbench.circuits.scores import stability_over

    wanted = data_wanted(options)
    search = discovery.Search(options["by"], options["level"], options["steps"])
    if search.by != "attribution" and search.steps > 1:
        raise UserError(
            f"--steps {search.steps}: integrated gradients are attribution's; --by {search.by} has no steps"
        )
    if search.by == "ablation" and wanted.wordings == "all":
        raise UserError(
            "--by ablation --wordings all: accuracies are of single prompts; take attribution or exact patching"
        )
    draws = _draws(search, wanted, options["draws"])
    studied = studied_of(model, options)
    studied.start()
    graph = Graph.of(studied.model)
    require_top("--top", options["top"] or 1, graph.items(search.level), f"{search.level}s")
    contrasts, told, prompts = studied.contrasts(wanted, "train", options["problems"])
    examples = [clean for clean, _ in contrasts.pairs]
    work = work_told(f"{search.by} of {search.level}s", options["batch_size"])
    split = studied.encoded(examples)
    scores = discovery.discover(studied.model, contrasts, split, search, work)
    values = discovery.flat(scores.mean, graph, search.level)
    saved.require_finite(values, f"{model} on {told.named}")
    count = options["top"] or min(SHOWN, len(values))
    slopes = scores
    if search.by != "attribution":  # which is held against exact patching whatever ranks
        work = work_told("attribution", options["batch_size"])
        slopes = discovery.discover(studied.model, contrasts, split, discovery.Search(level=search.level), work)
    exists = graph.edge_mask if search.level == "edge" else _all(scores)
    redrawn = [scores]
    for again in range(1, draws + 1):
        work = work_told(f"draw {again} of {draws} more", options["batch_size"])
        others, *_ = studied.contrasts(wanted, "train", options["problems"], again)
        redrawn.append(discovery.discover(studied.model, others, split, search, work))
    work = work_told("exact patching of the top", options["batch_size"])
    checked = discovery.agreement(studied.model, contrasts, slopes, discovery.strongest(scores, graph, count), work)
    folder = options["out"] or _folder(studied, search, wanted, options)
    table: dict[str, object] = {
        "cdbench": __version__,
        "model": studied.subject,
        "data": told,
        "by": search.by,
        "level": search.level,
        "steps": search.steps,
        "stability": _number(scores.stability(exists)),
        "draws": draws,
        "stability_over_draws": _number(stability_over(redrawn, exists)),
        "spearman_with_exact": _number(checked.spearman),
        "same_sign_as_exact": checked.same_sign,
        "top": top_rows(scores, graph, checked.items, checked),
        **_ends(studied, contrasts, work_told("whole and empty circuit", options["batch_size"])),
    }
    made = saved.write(folder, table, scores)
    clear_line()
    if options["as_json"]:
        click.echo(
            json.dumps({"folder": str(folder), "prompts_drawn": prompts, **made.model_dump(mode="json")}, indent=1)
        )
        return
    show_discovery(made, len(values), prompts)
    click.echo(f"written to {folder}; next: cdbench circuit evaluate {folder}")


def _draws(search: Any, wanted: "Data", asked: int | None) -> int:
    """How often to draw the counterfactuals anew.

    Raises:
        UserError: asked of what has none to draw.
    """
    fixed = (
        "mean ablation ranks without counterfactuals" if search.by == "ablation" else
        "MIB's problems come with their counterfactuals" if wanted.source != "task" else None
    )  # fmt: skip
    if asked and fixed:
        raise UserError(f"--draws {asked}: {fixed}; there is none to draw anew")
    default = _DRAWS if search.by == "attribution" and not fixed else 0
    return default if asked is None else asked


def _folder(studied: "Studied", search: Any, wanted: "Data", options: dict[str, Any]) -> Path:
    """A name of its own for each search; of a model without a short name, with the first digits of its content."""
    name = studied.name if "/" not in studied.name else f"{Path(studied.name).name.split('@')[0]}-{studied.content[:8]}"
    own = [] if studied.is_run or studied.profile.name == "tiny" else [studied.profile.name]
    parts = [name, *own, studied.workspace.task if wanted.source == "task" else wanted.source, search.level, search.by]
    kind = wanted.counterfactual
    parts += [f"{search.steps}steps"] * (search.steps > 1) + [kind] * (kind != "random")
    parts += ["all-wordings"] * (wanted.wordings == "all")
    n, draws, commit = options["problems"], options["draws"], wanted.revision or ""
    parts += [f"n{n}"] * (n != _PROBLEMS) + [f"{draws}draws"] * (draws is not None) + [commit[:8]] * bool(commit)
    return studied.where.runs / "circuits" / "-".join(parts)


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _all(scores: "Scores") -> "Tensor":
    import torch

    return torch.ones(scores.rows.shape[1:], dtype=torch.bool)


def _ends(studied: "Studied", contrasts: Any, work: Any) -> dict[str, float]:
    from cdbench.circuits.faithfulness import circuit_metric
    from cdbench.circuits.graph import Circuit, Graph

    graph = Graph.of(studied.model)
    both = [Circuit.whole(graph), Circuit.empty(graph)]
    metric = circuit_metric(studied.model, contrasts, both, work=work).double().mean(1)
    return {"metric_clean": metric[0].item(), "metric_corrupt": metric[1].item()}


@circuit.command()
@click.argument("folder", metavar="CIRCUIT", type=click.Path(path_type=Path))
@click.option(
    "--ablation",
    type=click.Choice(["resample", "mean", "mean-positional", "zero"]),
    default="resample",
    show_default=True,
    help="What stands in for everything outside: the counterfactual's activations (MIB), the mean over prompts, the mean at each "
    "place of a prompt, or zero.",
)
@click.option(
    "-n", "--problems", type=click.IntRange(2), default=500, show_default=True, help="Held-out problems to use."
)
@click.option(
    "--random", "draws", type=click.IntRange(1), default=5, show_default=True, help="Random rankings to compare with."
)
@click.option(
    "--out", type=click.Path(path_type=Path, dir_okay=False), help="Also draw f over sizes, into this .svg file."
)
@where_options
@batch_option
def evaluate(folder: Path, **options: Any) -> None:
    """Judge a circuit on held-out problems as MIB does: faithfulness over sizes, CPR, CMD, beside random and magnitude rankings.

    \b
    cdbench circuit evaluate runs/circuits/teacher-addition_2digit-node-attribution
    cdbench circuit evaluate runs/circuits/teacher-addition_2digit-edge-attribution --ablation mean --json
    cdbench circuit evaluate runs/circuits/teacher-addition_2digit-edge-attribution --out runs/faithfulness.svg
    """
    from cdbench.circuits import evaluation, faithfulness, saved
    from cdbench.circuits.patching import mean_outputs, placed_means

    require_svg(options["out"])
    made, scores = saved.read(folder)
    studied = studied_again(made, options)
    wanted = data_of(made)
    if wanted.wordings == "all" and options["ablation"] == "mean-positional":
        raise UserError(
            "--ablation mean-positional: a place means something in one wording; this circuit is of all; take mean"
        )
    contrasts, told, prompts = studied.contrasts(wanted, "test", options["problems"])
    # Means and magnitudes are found where scores are: on the training problems of the search, if the circuit says how many.
    training, *_ = studied.contrasts(wanted, "train", made.data.drawn or options["problems"])
    exchange = faithfulness.Exchange(options["ablation"])
    if "mean" in options["ablation"]:  # of training prompts, as everywhere (errata A6)
        split = studied.encoded([clean for clean, _ in training.pairs])
        means_of = mean_outputs if options["ablation"] == "mean" else placed_means
        means = means_of(studied.model, split, batch_size=options["batch_size"])
        exchange = faithfulness.Exchange(options["ablation"], means)
    work = work_told("faithfulness", options["batch_size"])
    rivals = evaluation.Rivals(options["draws"], faithfulness.magnitude(studied.model, training, scores.level, work))
    result = evaluation.evaluate(studied.model, contrasts, scores, rivals, exchange=exchange, work=work)
    clear_line()
    if options["out"]:
        draw_curves(options["out"], result, made.level, made.model.name)
    if options["as_json"]:
        result["circuit"]["nfs"] = result["circuit"]["f"]  # paper B's name for it (errata C3)
        table = {
            "cdbench": __version__, "folder": str(folder), "by": made.by, "level": made.level, "steps": made.steps,
            "model": made.model.model_dump(), "data": told.model_dump(),
            "problems": told.problems, "prompts_drawn": prompts, "ablation": options["ablation"], **result,
        }  # fmt: skip
        click.echo(json.dumps(_finite(table), indent=1, allow_nan=False))
        return
    click.echo(f"{made.model.name}, {made.level}s by {made.by}: {told.problems} held-out problems of {told.named}"
               f"{worded(told, prompts)}{dropped(told)}, all else {ELSE[options['ablation']]}")  # fmt: skip
    show_evaluation(result, made.level)
    if options["out"]:
        click.echo(f"drawn in {options['out']}")


def _finite(value: Any) -> Any:
    """The same for JSON, which has no NaN and no infinity: null."""
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


for command in (interchange, attention, draw, export, import_):
    circuit.add_command(command)
