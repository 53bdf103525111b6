"""`cdbench circuit`: find circuits, judge them, exchange them with MIB."""

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cdbench import __version__, plan
from cdbench.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from cdbench.circuit_session import Studied
    from cdbench.circuits.saved import SavedCircuit
    from cdbench.circuits.scores import Scores

Command = Callable[..., None]
_VARIABLES = ["ones_carry", "tens_carry", "ones_op1", "tens_op1", "ones_op2", "tens_op2"]
_KINDS = ["random", *_VARIABLES]
_MODEL = """
    MODEL is teacher or student (of the profile), the id of a run (its trained student), a folder in Hugging Face format, or
    owner/name@revision on the hub (which must be in the local cache).
"""


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
    return click.option("--json", "as_json", is_flag=True, help="The result as JSON on stdout.")(command)


def _model_options(command: Command) -> Command:
    command = _where_options(command)
    command = click.option(
        "--profile",
        default="tiny",
        show_default=True,
        help="Whose models and splits: tiny, smoke, paper, or a .toml file.",
    )(command)
    return click.option("--task", default="addition_2digit", show_default=True)(command)


def _data_options(command: Command) -> Command:
    command = click.option(
        "--data",
        "source",
        type=click.Choice(["task", "mib", "mib-generated"]),
        default="task",
        show_default=True,
        help="The task's problems, MIB's addition data (from the Hugging Face cache), or problems made in its schema.",
    )(command)
    return click.option(
        "--counterfactual",
        type=click.Choice(_KINDS),
        default="random",
        show_default=True,
        help="What the other problem of a pair differs in: any problem, a digit, a carry.",
    )(command)


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
    "-n", "--problems", type=click.IntRange(1), default=500, show_default=True, help="Training problems to use."
)
@click.option(
    "--top", type=click.IntRange(1), default=10, show_default=True, help="Items to show, and to patch exactly."
)
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Where to write it [RUNS/circuits/NAME].")
@_data_options
@_model_options
def discover(model: str, **options: Any) -> None:
    """Rank a model's nodes, edges or neurons by what they do for a task, and hold the top of the ranking against exact patching.

    Positive importance helps: importance is the logit difference (right answer − counterfactual's answer) that is lost when the
    item carries the counterfactual's activation.

    \b
    cdbench circuit discover teacher --task addition_2digit
    cdbench circuit discover 3f2a9c0d1b7e4f60 --level edge --steps 5
    cdbench circuit discover ./my-llama --counterfactual ones_carry --json
    """
    from cdbench.circuits import discovery, saved
    from cdbench.circuits.graph import Graph

    studied = _studied(model, options)
    _start(studied)
    search = discovery.Search(options["by"], options["level"], options["steps"])
    contrasts, told = studied.contrasts(options["source"], options["counterfactual"], "train", options["problems"])
    examples = [clean for clean, _ in contrasts.pairs]
    work = _work(f"{search.by} of {search.level}s")
    scores = discovery.discover(studied.model, contrasts, studied.encoded(examples), search, work)
    graph = Graph.of(studied.model)
    values = discovery.flat(scores.mean, graph, search.level)
    saved.require_finite(values, f"{model} on {told.task}")
    count = min(options["top"], len(values))
    checked = discovery.agreement(studied.model, contrasts, scores, count) if search.by == "attribution" else None
    folder = options["out"] or _folder(studied, search)
    table: dict[str, object] = {
        "cdbench": __version__,
        "model": studied.subject,
        "data": told,
        "by": search.by,
        "level": search.level,
        "steps": search.steps,
        "stability": _number(scores.stability(graph.edge_mask if search.level == "edge" else _all(scores))),
        "spearman_with_exact": _number(checked.spearman) if checked else None,
        "same_sign_as_exact": checked.same_sign if checked else None,
        "top": _top(scores, graph, count, checked),
        **_ends(studied, contrasts),
    }
    made = saved.write(folder, table, scores)
    _clear()
    if options["as_json"]:
        click.echo(json.dumps({"folder": str(folder), **made.model_dump(mode="json")}, indent=1))
        return
    _show_discovery(made, len(values))
    click.echo(f"written to {folder}; next: cdbench circuit evaluate {folder}")


def _studied(model: str, options: dict[str, Any]) -> "Studied":
    from cdbench.circuit_session import Studied

    where = plan.places(options["runs"], options["store"])
    return Studied(model, options["profile"], options["task"], where, _told("models"))


def _start(studied: "Studied") -> None:
    """Loads the model, with the threads that the profile names: two give other last digits than one."""
    import torch
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    torch.set_num_threads(studied.profile.threads)
    torch.use_deterministic_algorithms(True)
    _ = studied.model


def _told(what: str) -> Callable[[int, int, str], None]:
    """Progress on a terminal; a pipe is told nothing."""
    shown = sys.stderr.isatty()

    def tell(done: int, total: int, note: str) -> None:
        if shown:
            of = f" {done} of {total}" if total else ""
            click.echo(f"\r\033[K{what}{of} {note}\r", nl=False, err=True)

    return tell


def _work(what: str) -> Any:
    from cdbench.circuits.attribution import Work

    tell = _told(what)
    return Work(progress=lambda done, total: tell(done, total, "problems"))


def _clear() -> None:
    if sys.stderr.isatty():
        click.echo("\r\033[K", nl=False, err=True)


def _folder(studied: "Studied", search: Any) -> Path:
    name = Path(studied.name).name.replace("@", "-") if "/" in studied.name else studied.name
    steps = f"-{search.steps}steps" if search.steps > 1 else ""
    return studied.where.runs / "circuits" / f"{name}-{studied.workspace.task}-{search.level}-{search.by}{steps}"


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


def _top(scores: "Scores", graph: Any, count: int, checked: Any) -> list[dict[str, Any]]:
    from cdbench.circuits.discovery import flat

    names, mean = list(graph.names(scores.level)), flat(scores.mean, graph, scores.level)
    items = mean.abs().argsort(descending=True, stable=True)[:count].tolist()
    low, high = (flat(limit, graph, scores.level) for limit in scores.interval())
    exact = dict(zip(checked.items, checked.exact, strict=True)) if checked else {}
    return [
        {
            "name": names[i],
            "score": mean[i].item(),
            "low": low[i].item(),
            "high": high[i].item(),
            "exact": exact.get(i),
        }
        for i in items
    ]


_MEASURE = {
    "attribution": "attribution patching: logit difference lost, to first order",
    "exact": "exact patching: logit difference lost",
    "ablation": "mean ablation: accuracy lost (0 to 1)",
    "import": "imported",
}


def _show_discovery(made: "SavedCircuit", items: int) -> None:
    model, told = made.model, made.data
    click.echo(f"{model.name} ({model.layers} layers of {model.heads} heads, width {model.width}) on {told.task}: "
               f"{told.problems} problems against '{told.counterfactual}' counterfactuals" + _dropped(told))  # fmt: skip
    if made.metric_clean is not None and made.metric_corrupt is not None:
        click.echo(
            f"logit difference {made.metric_clean:+.2f}, with the counterfactual's prompt {made.metric_corrupt:+.2f}"
        )
    click.echo(f"\n{_MEASURE[made.by]}; top {len(made.top)} of {items} {made.level}s by size, 95 % over problems")
    width = max(len(item.name) for item in made.top)
    for item in made.top:
        exact = "" if item.exact is None else f"   exact {item.exact:+.3f}"
        click.echo(f"  {item.name:<{width}}  {item.score:+.3f} [{item.low:+.3f}, {item.high:+.3f}]{exact}")
    if made.same_sign_as_exact is not None:
        rank = "not defined" if made.spearman_with_exact is None else f"{made.spearman_with_exact:.2f}"
        click.echo(f"\nagreement with exact patching on these: rank correlation {rank}, "
                   f"same sign {made.same_sign_as_exact} of {len(made.top)}")  # fmt: skip
    stable = "too few problems to say" if made.stability is None else f"rank correlation {made.stability:.2f}"
    click.echo(f"stability of the ranking between halves of the problems: {stable}")


def _dropped(told: Any) -> str:
    parts = []
    if told.without_counterfactual:
        parts.append(f"{told.without_counterfactual} have no such counterfactual of equal token length")
    if told.without_contrast:
        parts.append(f"{told.without_contrast} have the same answer")
    return f" (dropped: {'; '.join(parts)})" if parts else ""


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
def evaluate(folder: Path, **options: Any) -> None:
    """Judge a circuit on held-out problems as MIB does: faithfulness over sizes, CPR, CMD, beside random and magnitude rankings.

    \b
    cdbench circuit evaluate runs/circuits/teacher-addition_2digit-node-attribution
    cdbench circuit evaluate runs/circuits/teacher-addition_2digit-edge-attribution --ablation mean --json
    """
    from cdbench.circuits import faithfulness, saved
    from cdbench.circuits.patching import mean_outputs

    made, scores = saved.read(folder)
    studied = _again(made, options)
    contrasts, told = studied.contrasts(made.data.source, made.data.counterfactual, "test", options["problems"])
    means = None
    if options["ablation"] == "mean":
        means = mean_outputs(studied.model, studied.encoded([clean for clean, _ in contrasts.pairs]))
    exchange = faithfulness.Exchange(options["ablation"], means)
    rankings = {
        "circuit": scores,
        "magnitude": faithfulness.magnitude(studied.model, contrasts, made.level),
        **{f"random {i}": faithfulness.random_scores(made.model.graph, made.level, i) for i in range(options["draws"])},
    }
    try:
        found = {
            name: [
                faithfulness.curve(
                    studied.model, contrasts, ranking, absolute=absolute, exchange=exchange, work=_work(name)
                )
                for absolute in (False, True)
            ]
            for name, ranking in rankings.items()
        }
    except ValueError as error:
        raise UserError(f"{folder}: {error}") from None
    _clear()
    result = _evaluation(found, options["draws"])
    table = {"circuit": str(folder), "problems": told.problems, "ablation": options["ablation"], **result}
    if options["as_json"]:
        click.echo(json.dumps(table, indent=1))
        return
    click.echo(f"{made.model.name}, {made.level}s by {made.by}: {told.problems} held-out problems of {told.task}"
               f"{_dropped(told)}, all else {_ELSE[options['ablation']]}")  # fmt: skip
    _show_evaluation(result, made.level)


_ELSE = {"resample": "from the counterfactual", "mean": "at its mean", "zero": "zero"}


def _again(made: "SavedCircuit", options: dict[str, Any]) -> "Studied":
    """The model of a saved circuit; refused if it is another one by now."""
    studied = _studied(made.model.name, options | {"profile": made.model.profile, "task": made.data.task})
    _start(studied)
    if studied.content != made.model.content:
        raise UserError(
            f"the circuit is of another model: '{made.model.name}' was {made.model.content[:12]} when it was found, and is "
            f"{studied.content[:12]} now"
        )
    return studied


def _evaluation(found: dict[str, Any], draws: int) -> dict[str, Any]:
    """Curves and areas with their intervals; the random rankings as mean, least and most."""
    import torch

    from cdbench.circuits.faithfulness import SIZES, cmd, cpr

    def limits(values: "Tensor") -> list[float]:
        tail = torch.tensor([0.025, 0.975], dtype=torch.float64)
        return [float(x) for x in torch.quantile(values, tail, dim=0)]

    rows = {}
    for name, (signed, absolute) in found.items():
        f, g = signed.faithfulness(), absolute.faithfulness()
        draws_f, draws_g = signed.bootstrap(), absolute.bootstrap()
        rows[name] = {
            "f": f.tolist(),
            "f_absolute": g.tolist(),
            "f_95": torch.quantile(draws_f, torch.tensor([0.025, 0.975], dtype=torch.float64), dim=0).T.tolist(),
            "cpr": float(cpr(f)),
            "cpr_95": limits(cpr(draws_f)),
            "cmd": float(cmd(g)),
            "cmd_95": limits(cmd(draws_g)),
        }
    chance = [rows.pop(f"random {i}") for i in range(draws)]
    first = found["circuit"][0]
    return {
        "sizes": list(SIZES),
        "items": list(first.items),
        "metric_whole": first.whole.double().mean().item(),
        "metric_empty": first.empty.double().mean().item(),
        **rows,
        "random": {
            "f": [sum(column) / draws for column in zip(*(row["f"] for row in chance), strict=True)],
            "cpr": sum(row["cpr"] for row in chance) / draws,
            "cpr_range": [min(row["cpr"] for row in chance), max(row["cpr"] for row in chance)],
            "cmd": sum(row["cmd"] for row in chance) / draws,
            "cmd_range": [min(row["cmd"] for row in chance), max(row["cmd"] for row in chance)],
            "draws": draws,
        },
    }


def _plain(value: float) -> str:
    """0.123; what rounds to nothing has no sign."""
    return f"{round(value, 3) + 0.0:.3f}"


def _show_evaluation(result: dict[str, Any], level: str) -> None:
    whole, empty = result["metric_whole"], result["metric_empty"]
    click.echo(
        f"logit difference of the whole model {whole:+.2f}, of nothing {empty:+.2f}; f is 1 for the one, 0 for the other\n"
    )
    mine, size, chance = result["circuit"], result["magnitude"], result["random"]
    click.echo(f"  {'kept':>7}  {level + 's':>8}  {'f':>6}  {'95 %':>15}  {'magnitude':>9}  {'random':>7}")
    for i, share in enumerate(result["sizes"]):
        low, high = mine["f_95"][i]
        click.echo(f"  {share:>7.1%}  {result['items'][i]:>8}  {_plain(mine['f'][i]):>6}  [{_plain(low):>6}, {_plain(high):>5}]  "
                   f"{_plain(size['f'][i]):>9}  {_plain(chance['f'][i]):>7}")  # fmt: skip
    for key, name, better in (("cpr", "CPR", "higher is better"), ("cmd", "CMD", "lower is better")):
        (low, high), (least, most) = mine[f"{key}_95"], chance[f"{key}_range"]
        click.echo(f"{name}  {mine[key]:.3f} [{low:.3f}, {high:.3f}]   magnitude {size[key]:.3f}   "
                   f"random {chance[key]:.3f} ({least:.3f} to {most:.3f} of {chance['draws']})   {better}")  # fmt: skip


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
@click.option("--top", type=click.IntRange(1), default=10, show_default=True, help="Nodes to show.")
@_model_options
def interchange(model: str, **options: Any) -> None:
    """Ask which node carries a variable: give it the activation of another problem, and see if the answer is the causal model's.

    \b
    cdbench circuit interchange teacher --variable ones_carry
    cdbench circuit interchange student --variable tens_op1 --json
    """
    import torch

    from cdbench.circuits.graph import Graph
    from cdbench.circuits.interchange import best_node, interchange_hits, make_interchanges
    from cdbench.seeds import rng_for
    from cdbench.stats import wilson

    studied = _studied(model, options)
    _start(studied)
    examples = studied.examples("test", options["problems"])
    rng = rng_for("interchange", studied.workspace.task, options["variable"])
    problems = make_interchanges(studied.tokenizer, examples, options["variable"], rng)
    names = Graph.of(studied.model).nodes
    hits = interchange_hits(studied.model, problems, range(len(names)), _work("interchange"))
    _clear()
    shares = [wilson(int(k), len(hits)) for k in hits.sum(0).tolist()]
    order = torch.tensor([share.value for share in shares]).argsort(descending=True, stable=True).tolist()
    best, held = best_node(hits)
    judged = wilson(int(held.sum()), len(held))
    if options["as_json"]:
        table = {
            "model": model, "variable": options["variable"], "problems": len(hits), "without_source": len(examples) - len(hits),
            "best": names[best], "accuracy": judged.model_dump(),
            "nodes": {name: share.model_dump() for name, share in zip(names, shares, strict=True)},
        }  # fmt: skip
        click.echo(json.dumps(table, indent=1))
        return
    variable = options["variable"]
    click.echo(f"{model} on {studied.workspace.task}: {len(hits)} of {len(examples)} held-out problems have a source that "
               f"differs in {variable}")  # fmt: skip
    (base, source), expected = problems.pairs[0], problems.expected[0]
    click.echo(
        f"for example {base.prompt}{base.answer} with the {variable} of {source.prompt}{source.answer} is {expected}\n"
    )
    for i in order[: options["top"]]:
        click.echo(f"  {names[i]:<8}  {shares[i].value:6.1%} [{shares[i].low:.1%}, {shares[i].high:.1%}]")
    click.echo(f"\ninterchange accuracy {judged.value:.1%} [{judged.low:.1%}, {judged.high:.1%}]: of {names[best]}, chosen on "
               f"one half of the problems and judged on the other {len(held)}")  # fmt: skip


@circuit.command()
@click.argument("folder", metavar="CIRCUIT", type=click.Path(path_type=Path))
@click.option(
    "--heads", type=click.IntRange(1, 8), default=4, show_default=True, help="How many heads, most important first."
)
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
    from cdbench.circuits.attention import attention_pattern

    made, scores = saved.read(folder)
    studied = _again(made, options)
    pattern = attention_pattern(studied.model, studied.tokenizer, studied.examples("test", options["problems"]))
    graph, mean = made.model.graph, scores.mean
    size = mean.abs() if made.level == "node" else mean.abs().flatten(1).sum(1)
    order = [i for i in size.argsort(descending=True, stable=True).tolist() if graph.nodes[i].startswith("a")]
    chosen = [divmod(i - 1, graph.heads + 1) for i in order[: options["heads"]]]
    shown = {f"a{layer}.h{head}": pattern.weights[layer, head] for layer, head in chosen}
    if options["out"]:
        _draw_attention(options["out"], shown, pattern, made.model.name)
    if options["as_json"]:
        table = {"circuit": str(folder), "roles": pattern.roles, "prompts": pattern.prompts, "of": pattern.of}
        click.echo(json.dumps(table | {"heads": {name: w.tolist() for name, w in shown.items()}}, indent=1))
        return
    click.echo(f"{made.model.name} on {made.data.task}: mean over the {pattern.prompts} of {pattern.of} held-out prompts laid "
               f"out as {' | '.join(pattern.roles)}")  # fmt: skip
    click.echo(f"from the last token, '{pattern.roles[-1]}', each head looks at")
    for name, weights in shown.items():
        seen = sorted(zip(weights[-1].tolist(), pattern.roles, strict=True), reverse=True)
        click.echo(f"  {name:<7}" + ", ".join(f"{role} {weight:.0%}" for weight, role in seen if weight >= 0.005))
    if options["out"]:
        click.echo(f"drawn in {options['out']}")


def _draw_attention(file: Path, shown: dict[str, Any], pattern: Any, model: str) -> None:
    from cdbench.files import write_atomic
    from cdbench.report import figures

    if file.suffix != ".svg":
        raise UserError(f"--out {file}: the drawing is an .svg file")
    caption = f"Mean attention of {model}'s heads"
    maps = {name: weights.tolist() for name, weights in shown.items()}
    picture = figures.heat_maps("attention", maps, ("looks at", "from"), caption, 1.0, pattern.roles)
    write_atomic(file, picture.svg.replace("currentColor", "#444"), "the drawing")


@circuit.command("export")
@click.argument("folder", metavar="CIRCUIT", type=click.Path(path_type=Path))
@click.option("--format", "form", type=click.Choice(["mib"]), default="mib", show_default=True)
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), required=True, help="A .json or .pt file.")
@click.option(
    "--keep", type=int, metavar="K", help="Also mark the top K items as the circuit [none: importances only]."
)
def export(folder: Path, form: str, out: Path, keep: int | None) -> None:
    """Write a circuit as MIB's code reads it (EAP-IG's Graph.from_json and Graph.from_pt).

    \b
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
    mib.write(out, graph, made.level, scores.mean, chosen)
    click.echo(out)


@circuit.command("import")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--model", required=True, help="The model that it is of, named as for discover.")
@click.option(
    "--level", type=click.Choice(["node", "edge", "neuron"]), help="Which scores [the only ones in the file]."
)
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Where to write it [RUNS/circuits/FILE].")
@_data_options
@_model_options
def import_(file: Path, **options: Any) -> None:
    """Read importances that MIB's code has written, as a circuit of a model of ours.

    \b
    cdbench circuit import importances.json --model teacher
    cdbench circuit import importances.pt --model ./my-llama --level edge --out my-circuit
    """
    from cdbench.circuits import mib, saved
    from cdbench.circuits.graph import Graph
    from cdbench.circuits.scores import single

    found = mib.read(file)
    studied = _studied(options["model"], options)
    _start(studied)
    graph = Graph.of(studied.model)
    if found.graph != graph:
        raise UserError(
            f"{file} is of another model: {found.graph.layers} layers, {found.graph.heads} heads, width {found.graph.width}; "
            f"{options['model']} has {graph.layers}, {graph.heads}, {graph.width}"
        )
    level = options["level"] or next(iter(found.scores))
    if options["level"] is None and len(found.scores) > 1:
        raise UserError(f"{file} has scores of {' and '.join(found.scores)}s; say which with --level")
    if level not in found.scores:
        raise UserError(f"{file} has no scores of {level}s; it has scores of {' and '.join(found.scores)}s")
    folder = options["out"] or studied.where.runs / "circuits" / file.stem
    scores = single(level, found.scores[level])
    data = {
        "task": studied.workspace.task, "source": options["source"], "counterfactual": options["counterfactual"],
        "problems": 0, "without_counterfactual": 0, "without_contrast": 0,
    }  # fmt: skip
    unknown = ("metric_clean", "metric_corrupt", "stability", "spearman_with_exact", "same_sign_as_exact")
    table = {
        "cdbench": __version__, "model": studied.subject, "data": data, "by": "import", "level": level, "steps": 1,
        "top": _top(scores, graph, min(10, graph.items(level)), None), **dict.fromkeys(unknown),
    }  # fmt: skip
    made = saved.write(folder, table, scores)
    if options["as_json"]:
        click.echo(json.dumps({"folder": str(folder), **made.model_dump(mode="json")}, indent=1))
        return
    click.echo(f"{graph.items(level)} {level} scores of {options['model']} written to {folder}; "
               f"next: cdbench circuit evaluate {folder}")  # fmt: skip
