"""`cdbench circuit`: find circuits, judge them, exchange them with MIB."""

import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cdbench import __version__, plan
from cdbench.circuit_output import (
    ELSE,
    draw_attention,
    dropped,
    require_svg,
    show_discovery,
    show_evaluation,
    show_interchange,
)
from cdbench.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from cdbench.api import Example
    from cdbench.circuit_session import Data, Studied
    from cdbench.circuits.graph import Graph
    from cdbench.circuits.saved import SavedCircuit
    from cdbench.circuits.scores import Scores
    from cdbench.stats import Proportion

Command = Callable[..., None]
_VARIABLES = ["ones_carry", "tens_carry", "ones_op1", "tens_op1", "ones_op2", "tens_op2"]
_KINDS = ["random", *_VARIABLES]
_SAID_EVERY = 10
"""Seconds between two words of progress where there is no terminal."""
_SHOWN = 10
_PROBLEMS = 500
_DRAWS = 3
_HEADS = 4


@click.group()
def circuit() -> None:
    """Find the circuit of a task in a model, judge it as MIB does, exchange it with MIB's code.

    \b
    cdbench circuit discover teacher --task addition_2digit
    cdbench circuit evaluate runs/circuits/teacher-addition_2digit-node-attribution
    """


def _where_options(command: Command) -> Command:
    command = click.option("--store", help="Folder of shared artefacts [CDBENCH_STORE; RUNS/store].")(command)
    command = click.option("--runs", help="Folder of records and reports [CDBENCH_RUNS; ./runs].")(command)
    command = click.option(
        "--device",
        type=click.Choice(["cpu", "cuda"]),
        help="Where the model runs [as the profile says: all but paper on the CPU].",
    )(command)
    return click.option("--json", "as_json", is_flag=True, help="The result as JSON on stdout.")(command)


def _batch_option(command: Command) -> Command:
    return click.option(
        "--batch-size",
        type=click.IntRange(1),
        default=100,
        show_default=True,
        help="Problems at a time: fewer take less memory and change no score. Edges take as much as all readers' streams.",
    )(command)


def _model_options(command: Command) -> Command:
    command = _where_options(command)
    command = click.option(
        "--profile",
        help="Whose models and splits: tiny (if not said), tiny_lengths, smoke, paper, or a .toml file. A run has its own.",
    )(command)
    return click.option("--task", help="addition_2digit, if not said. A run has its own.")(command)


def _source_options(command: Command) -> Command:
    command = click.option(
        "--revision", help="Commit of MIB's data, 40 hex digits [the additions are pinned, the subtractions are not]."
    )(command)
    return click.option(
        "--data",
        "source",
        type=click.Choice(["task", "mib", "mib-subtraction", "mib-generated", "mib-generated-subtraction"]),
        default="task",
        show_default=True,
        help="The task's problems; MIB's additions or subtractions, from the Hugging Face cache; problems made in their schema.",
    )(command)


def _data_options(command: Command) -> Command:
    return click.option(
        "--counterfactual",
        type=click.Choice(_KINDS),
        default="random",
        show_default=True,
        help="What the other problem of a pair differs in: any problem, a digit, a carry.",
    )(_source_options(command))


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
@_data_options
@_model_options
@_batch_option
def discover(model: str, **options: Any) -> None:
    """Rank a model's nodes, edges or neurons by what they do for a task, and hold attribution against exact patching on the top.

    Positive importance helps: importance is the logit difference (right answer − counterfactual's answer) that is lost when the
    item carries the counterfactual's activation. Attribution takes as long for a million items as for ten; exact patching and
    ablation take a pass for each: small models, or nodes.

    \b
    cdbench circuit discover teacher --task addition_2digit
    cdbench circuit discover student --level edge --by exact
    cdbench circuit discover 3f2a9c0d1b7e4f60 --level edge --steps 5
    cdbench circuit discover ./my-llama --counterfactual ones_carry --json
    cdbench circuit discover meta-llama/Llama-3.2-1B --data mib --device cuda    # from the local hub cache
    """
    from cdbench.circuits import discovery, saved
    from cdbench.circuits.graph import Graph
    from cdbench.circuits.scores import stability_over

    wanted = _data(options)
    search = discovery.Search(options["by"], options["level"], options["steps"])
    if search.by != "attribution" and search.steps > 1:
        raise UserError(
            f"--steps {search.steps}: integrated gradients are attribution's; --by {search.by} has no steps"
        )
    draws = _draws(search, wanted, options["draws"])
    studied = _studied(model, options)
    studied.start()
    graph = Graph.of(studied.model)
    _require_top("--top", options["top"] or 1, graph.items(search.level), f"{search.level}s")
    contrasts, told = studied.contrasts(wanted, "train", options["problems"])
    examples = [clean for clean, _ in contrasts.pairs]
    work = _work(f"{search.by} of {search.level}s", options["batch_size"])
    split = studied.encoded(examples)
    scores = discovery.discover(studied.model, contrasts, split, search, work)
    values = discovery.flat(scores.mean, graph, search.level)
    saved.require_finite(values, f"{model} on {told.named}")
    count = options["top"] or min(_SHOWN, len(values))
    slopes = scores
    if search.by != "attribution":  # which is held against exact patching whatever ranks
        work = _work("attribution", options["batch_size"])
        slopes = discovery.discover(studied.model, contrasts, split, discovery.Search(level=search.level), work)
    exists = graph.edge_mask if search.level == "edge" else _all(scores)
    redrawn = [scores]
    for draw in range(1, draws + 1):
        work = _work(f"draw {draw} of {draws} more", options["batch_size"])
        others, _ = studied.contrasts(wanted, "train", options["problems"], draw)
        redrawn.append(discovery.discover(studied.model, others, split, search, work))
    work = _work("exact patching of the top", options["batch_size"])
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
        "top": _top(scores, graph, checked.items, checked),
        **_ends(studied, contrasts),
    }
    made = saved.write(folder, table, scores)
    _clear()
    if options["as_json"]:
        click.echo(json.dumps({"folder": str(folder), **made.model_dump(mode="json")}, indent=1))
        return
    show_discovery(made, len(values))
    click.echo(f"written to {folder}; next: cdbench circuit evaluate {folder}")


def _require_top(option: str, asked: int, there: int, what: str) -> None:
    """Raises UserError where more are asked for than there are: fewer would be shown in silence."""
    if asked > there:
        raise UserError(f"{option} {asked}: the model has {there} {what}")


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


def _data(options: dict[str, Any]) -> "Data":
    from cdbench.circuit_session import Data

    return Data(options["source"], options["counterfactual"], options["revision"])


def _data_of(made: "SavedCircuit") -> "Data":
    from cdbench.circuit_session import Data

    return Data(made.data.source, made.data.counterfactual, made.data.revision)


def _studied(model: str, options: dict[str, Any]) -> "Studied":
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


def _work(what: str, batch_size: int) -> Any:
    from cdbench.circuits.attribution import Work

    tell = _told(what)
    return Work(batch_size, progress=lambda done, total: tell(done, total, "problems"))


def _clear() -> None:
    if sys.stderr.isatty():
        click.echo("\r\033[K", nl=False, err=True)


def _folder(studied: "Studied", search: Any, wanted: "Data", options: dict[str, Any]) -> Path:
    """A name of its own for each search; of a model without a short name, with the first digits of its content."""
    name = studied.name if "/" not in studied.name else f"{Path(studied.name).name.split('@')[0]}-{studied.content[:8]}"
    own = [] if studied.is_run or studied.profile.name == "tiny" else [studied.profile.name]
    parts = [name, *own, studied.workspace.task if wanted.source == "task" else wanted.source, search.level, search.by]
    kind = wanted.counterfactual
    parts += [f"{search.steps}steps"] * (search.steps > 1) + [kind] * (kind != "random")
    n, draws, commit = options["problems"], options["draws"], wanted.revision or ""
    parts += [f"n{n}"] * (n != _PROBLEMS) + [f"{draws}draws"] * (draws is not None) + [commit[:8]] * bool(commit)
    return studied.where.runs / "circuits" / "-".join(parts)


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _all(scores: "Scores") -> "Tensor":
    import torch

    return torch.ones(scores.rows.shape[1:], dtype=torch.bool)


def _ends(studied: "Studied", contrasts: Any) -> dict[str, float]:
    from cdbench.circuits.faithfulness import circuit_metric
    from cdbench.circuits.graph import Circuit, Graph

    graph = Graph.of(studied.model)
    metric = circuit_metric(studied.model, contrasts, [Circuit.whole(graph), Circuit.empty(graph)]).double().mean(1)
    return {"metric_clean": metric[0].item(), "metric_corrupt": metric[1].item()}


def _top(scores: "Scores", graph: Any, items: tuple[int, ...], checked: Any = None) -> list[dict[str, Any]]:
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


@circuit.command()
@click.argument("folder", metavar="CIRCUIT", type=click.Path(path_type=Path))
@click.option(
    "--ablation",
    type=click.Choice(["resample", "mean", "zero"]),
    default="resample",
    show_default=True,
    help="What stands in for everything outside: the counterfactual's activations (MIB), the mean, or zero.",
)
@click.option(
    "-n", "--problems", type=click.IntRange(2), default=500, show_default=True, help="Held-out problems to use."
)
@click.option(
    "--random", "draws", type=click.IntRange(1), default=5, show_default=True, help="Random rankings to compare with."
)
@_where_options
@_batch_option
def evaluate(folder: Path, **options: Any) -> None:
    """Judge a circuit on held-out problems as MIB does: faithfulness over sizes, CPR, CMD, beside random and magnitude rankings.

    \b
    cdbench circuit evaluate runs/circuits/teacher-addition_2digit-node-attribution
    cdbench circuit evaluate runs/circuits/teacher-addition_2digit-edge-attribution --ablation mean --json
    """
    from cdbench.circuits import evaluation, faithfulness, saved
    from cdbench.circuits.patching import mean_outputs

    made, scores = saved.read(folder)
    studied = _again(made, options)
    wanted = _data_of(made)
    contrasts, told = studied.contrasts(wanted, "test", options["problems"])
    # Means and magnitudes are found where scores are: on the training problems of the search, if the circuit says how many.
    training, _ = studied.contrasts(wanted, "train", made.data.drawn or options["problems"])
    means = None
    if options["ablation"] == "mean":  # of training prompts, as everywhere (errata A6)
        means = mean_outputs(studied.model, studied.encoded([clean for clean, _ in training.pairs]))
    exchange = faithfulness.Exchange(options["ablation"], means)
    work = _work("faithfulness", options["batch_size"])
    rivals = evaluation.Rivals(options["draws"], faithfulness.magnitude(studied.model, training, scores.level, work))
    result = evaluation.evaluate(studied.model, contrasts, scores, rivals, exchange=exchange, work=work)
    _clear()
    if options["as_json"]:
        result["circuit"]["nfs"] = result["circuit"]["f"]  # paper B's name for it (errata C3)
        table = {"circuit": str(folder), "problems": told.problems, "ablation": options["ablation"], **result}
        click.echo(json.dumps(_finite(table), indent=1, allow_nan=False))
        return
    click.echo(f"{made.model.name}, {made.level}s by {made.by}: {told.problems} held-out problems of {told.named}"
               f"{dropped(told)}, all else {ELSE[options['ablation']]}")  # fmt: skip
    show_evaluation(result, made.level)


def _finite(value: Any) -> Any:
    """The same for JSON, which has no NaN and no infinity: null."""
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _again(made: "SavedCircuit", options: dict[str, Any]) -> "Studied":
    """The model of a saved circuit; refused if it is another one by now."""
    studied = _studied(made.model.name, options | {"profile": made.model.profile, "task": made.data.task})
    studied.start()
    if studied.content != made.model.content:
        raise UserError(
            f"the circuit is of another model: '{made.model.name}' was {made.model.content[:12]} when it was found, and is "
            f"{studied.content[:12]} now"
        )
    _require_graph(made.model.graph, studied, f"the circuit of '{made.model.name}'")
    return studied


def _require_graph(graph: "Graph", studied: "Studied", what: str) -> "Graph":
    """The model's graph; refused if `what` is of another."""
    from cdbench.circuits.graph import Graph

    own = Graph.of(studied.model)
    if graph != own:
        raise UserError(
            f"{what} is of another model: {graph.layers} layers, {graph.heads} heads, width {graph.width}; "
            f"'{studied.name}' has {own.layers}, {own.heads}, {own.width}"
        )
    return own


@circuit.command()
@click.argument("model")
@click.option(
    "--variable",
    type=click.Choice(_VARIABLES),
    default="ones_carry",
    show_default=True,
    help="The causal model's variable: a carry, or a digit of an operand.",
)
@click.option(
    "-n", "--problems", type=click.IntRange(4), default=500, show_default=True, help="Held-out problems to use."
)
@click.option("--top", type=click.IntRange(1), help="Nodes to show [10, or all there are].")
@click.option("--all", "every", is_flag=True, help="Also problems that the model gets wrong.")
@_source_options
@_model_options
@_batch_option
def interchange(model: str, **options: Any) -> None:
    """Ask which node carries a variable: give it the activation of another problem, and see if the answer is the causal model's.

    \b
    cdbench circuit interchange teacher --variable ones_carry
    cdbench circuit interchange student --variable tens_op1 --json
    cdbench circuit interchange ./my-llama --data mib-generated
    """
    import torch

    from cdbench.circuits.graph import Graph
    from cdbench.circuits.interchange import best_node, interchange_hits, make_interchanges, solved
    from cdbench.seeds import rng_for
    from cdbench.stats import wilson

    studied = _studied(model, options)
    studied.start()
    names = Graph.of(studied.model).nodes
    _require_top("--top", options["top"] or 1, len(names), "nodes")
    # Sources are drawn here, so that a problem needs no counterfactual of the variable's kind.
    wanted = _data({**options, "counterfactual": "random"})
    drawn = studied.prompts(wanted, options["problems"])
    if not drawn:
        raise UserError(f"--data {wanted.source} has no held-out problem")
    examples = list(drawn) if options["every"] else solved(studied.model, studied.tokenizer, drawn)
    if not examples:
        raise UserError(
            f"{model} answers none of {len(drawn)} held-out problems right; --all takes those that it gets wrong, too"
        )
    variable = options["variable"]
    rng = rng_for("interchange", studied.workspace.task, variable)
    problems = make_interchanges(studied.tokenizer, examples, variable, rng)
    hits = interchange_hits(studied.model, problems, range(len(names)), _work("interchange", options["batch_size"]))
    _clear()
    shares = [wilson(int(k), len(hits)) for k in hits.sum(0).tolist()]
    order = torch.tensor([share.value for share in shares]).argsort(descending=True, stable=True).tolist()
    best, held = best_node(hits)
    judged = wilson(int(held.sum()), len(held))
    control, others = _control_of(studied, examples, best, options), hits[len(hits) - len(held) :].float().mean(0)
    (base, source), expected = problems.pairs[0], problems.expected[0]
    table = {
        "model": model, "variable": variable, "problems": len(hits),
        "not_solved": None if options["every"] else len(drawn) - len(examples),  # with --all nobody asks
        "without_source": len(examples) - len(hits),
        "example": [f"{base.prompt}{base.answer}", f"{source.prompt}{source.answer}", expected],
        "best": names[best], "judged_on": len(held), "accuracy": judged.model_dump(), "median_node": float(others.median()),
        "control": control.model_dump() if control else None,
        "nodes": {names[i]: shares[i].model_dump() for i in order},
    }  # fmt: skip
    if options["as_json"]:
        click.echo(json.dumps(table, indent=1))
        return
    which = "" if options["every"] else " (those that it answers right)"
    what = studied.workspace.task if wanted.source == "task" else f"--data {wanted.source}"
    click.echo(f"{model} on {what}: {len(examples)} of {len(drawn)} held-out problems{which}, "
               f"{len(hits)} with a source that differs in {variable}")  # fmt: skip
    show_interchange(table, options["top"] or _SHOWN)


def _control_of(
    studied: "Studied", examples: Sequence["Example"], node: int, options: dict[str, Any]
) -> "Proportion | None":
    """How often the answer stays where the source has the same value; None where there is no such source."""
    from cdbench.circuits.interchange import interchange_hits, make_interchanges
    from cdbench.seeds import rng_for
    from cdbench.stats import wilson

    rng = rng_for("interchange", studied.workspace.task, options["variable"], "control")
    try:
        problems = make_interchanges(studied.tokenizer, examples, options["variable"], rng, same=True)
    except UserError:
        return None
    hits = interchange_hits(studied.model, problems, [node], _work("control", options["batch_size"]))
    _clear()
    return wilson(int(hits.sum()), len(hits))


@circuit.command()
@click.argument("folder", metavar="CIRCUIT", type=click.Path(path_type=Path))
@click.option("--heads", type=click.IntRange(1, 8), help="How many heads, most important first [4, or all there are].")
@click.option(
    "-n", "--problems", type=click.IntRange(1), default=500, show_default=True, help="Held-out problems to use."
)
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Also draw it, into this .svg file.")
@_where_options
def attention(folder: Path, **options: Any) -> None:
    """Show what a circuit's top heads look at, by the role of a token: tens of the first operand, ones of the second, "=".

    \b
    cdbench circuit attention runs/circuits/teacher-addition_2digit-node-attribution
    cdbench circuit attention runs/circuits/teacher-addition_2digit-node-attribution --heads 2 --out heads.svg
    """
    from cdbench.circuits import saved
    from cdbench.circuits.attention import attention_pattern, top_heads

    made, scores = saved.read(folder)
    graph, mean = made.model.graph, scores.mean
    _require_top("--heads", options["heads"] or 1, graph.layers * graph.heads, "heads")
    require_svg(options["out"])
    studied = _again(made, options)
    prompts = studied.prompts(_data_of(made), options["problems"])
    pattern = attention_pattern(studied.model, studied.tokenizer, prompts)
    size = mean.abs() if made.level == "node" else mean.abs().flatten(1).sum(1)
    heads = top_heads(graph, size, options["heads"] or _HEADS)
    shown = {name: pattern.weights[layer, head] for name, (layer, head) in heads.items()}
    if options["out"]:
        draw_attention(options["out"], shown, pattern, made.model.name)
    if options["as_json"]:
        table = {"circuit": str(folder), "roles": pattern.roles, "prompts": pattern.prompts, "of": pattern.of}
        click.echo(json.dumps(table | {"heads": {name: w.tolist() for name, w in shown.items()}}, indent=1))
        return
    click.echo(f"{made.model.name} on {made.data.named}: mean over the {pattern.prompts} of {pattern.of} held-out prompts laid "
               f"out as {' | '.join(pattern.roles)}")  # fmt: skip
    click.echo(f"from the last token, '{pattern.roles[-1]}', each head looks at")
    for name, weights in shown.items():
        seen = sorted(zip(weights[-1].tolist(), pattern.roles, strict=True), reverse=True)
        click.echo(f"  {name:<7}" + ", ".join(f"{role} {weight:.0%}" for weight, role in seen if weight >= 0.005))
    if options["out"]:
        click.echo(f"drawn in {options['out']}")


@circuit.command("export")
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


@circuit.command("import")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--format", "form", type=click.Choice(["mib"]), default="mib", show_default=True)
@click.option("--model", required=True, help="The model that it is of, named as for discover.")
@click.option(
    "--level", type=click.Choice(["node", "edge", "neuron"]), help="Which scores [the only ones in the file]."
)
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Where to write it [RUNS/circuits/FILE].")
@_data_options
@_model_options
def import_(file: Path, form: str, **options: Any) -> None:
    """Read importances that MIB's code has written, as a circuit of a model of ours.

    \b
    cdbench circuit import importances.json --format mib --model teacher
    cdbench circuit import importances.pt --model ./my-llama --level edge --out my-circuit
    """
    from cdbench.circuits import mib, saved
    from cdbench.circuits.discovery import strongest
    from cdbench.circuits.scores import single

    wanted = _data(options)
    found = mib.read(file, options["level"])
    level = options["level"] or next(iter(found.scores))
    if options["level"] is None and len(found.scores) > 1:
        raise UserError(f"{file} has scores of {' and '.join(found.scores)}s; say which with --level")
    studied = _studied(options["model"], options)
    studied.start()
    graph = _require_graph(found.graph, studied, str(file))
    folder = options["out"] or studied.where.runs / "circuits" / file.stem
    scores = single(level, found.scores[level])
    data = {
        "task": studied.workspace.task, "source": wanted.source, "counterfactual": wanted.counterfactual,
        "revision": wanted.commit, "problems": 0, "without_counterfactual": 0, "without_contrast": 0,
    }  # fmt: skip
    unknown = ("metric_clean", "metric_corrupt", "stability", "spearman_with_exact", "same_sign_as_exact")
    table = {
        "cdbench": __version__, "model": studied.subject, "data": data, "by": "import", "level": level, "steps": 1,
        "top": _top(scores, graph, strongest(scores, graph, min(_SHOWN, graph.items(level)))), **dict.fromkeys(unknown),
    }  # fmt: skip
    made = saved.write(folder, table, scores)
    if options["as_json"]:
        click.echo(json.dumps({"folder": str(folder), **made.model_dump(mode="json")}, indent=1))
        return
    click.echo(f"{graph.items(level)} {level} scores of {options['model']} written to {folder}; "
               f"next: cdbench circuit evaluate {folder}")  # fmt: skip
