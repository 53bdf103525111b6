"""What `cdbench circuit` shows: text for people, drawings."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cdbench.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from cdbench.circuits.attention import Pattern
    from cdbench.circuits.saved import Problems, SavedCircuit
    from cdbench.report.figures import Picture

_MEASURE = {
    "attribution": "attribution patching: logit difference lost, to first order",
    "exact": "exact patching: logit difference lost",
    "ablation": "mean ablation: accuracy lost (0 to 1)",
    "import": "imported",
}
_RANKED = 5
"""Fewer items have a rank correlation of no meaning."""


def show_discovery(made: "SavedCircuit", items: int, prompts: int | None) -> None:
    """The top of a ranking of `items` items, how sure it is and how exact; `prompts` as `worded` has it."""
    model, told = made.model, made.data
    click.echo(f"{model.name} ({model.layers} layers of {model.heads} heads, width {model.width}) on {told.named}: "
               f"{told.problems} problems{worded(told, prompts)} against '{told.counterfactual}' counterfactuals"
               f"{dropped(told)}")  # fmt: skip
    if made.metric_clean is not None and made.metric_corrupt is not None:
        click.echo(
            f"logit difference {made.metric_clean:+.2f}, with the counterfactual's prompt {made.metric_corrupt:+.2f}"
        )
    click.echo(f"\n{_MEASURE[made.by]}; top {len(made.top)} of {items} {made.level}s by size, 95 % over problems")
    width = max(len(item.name) for item in made.top)
    for item in made.top:
        others = (("attribution", item.attribution), ("exact", item.exact))
        beside = "".join(f"   {by} {value:+.3f}" for by, value in others if value is not None and by != made.by)
        limits = "" if item.low is None or item.high is None else f" [{item.low:+.3f}, {item.high:+.3f}]"
        click.echo(f"  {item.name:<{width}}  {item.score:+.3f}{limits}{beside}")
    if made.same_sign_as_exact is not None:
        rank = "not defined" if made.spearman_with_exact is None else f"{made.spearman_with_exact:.2f}"
        ranked = "; too few to rank" if len(made.top) < _RANKED else f", rank correlation {rank}"
        same = f"{made.same_sign_as_exact} of {len(made.top)}"
        click.echo(f"\nattribution against exact patching on these: same sign {same}{ranked}")
    stable = "too few problems to say" if made.stability is None else f"rank correlation {made.stability:.2f}"
    click.echo(f"stability of the ranking between halves of the problems: {stable}")
    if made.draws:
        over = made.stability_over_draws
        said = "not defined" if over is None else f"rank correlation {over:.2f}"
        click.echo(f"stability of the ranking between {made.draws + 1} draws of the counterfactuals: {said}")


def worded(told: "Problems", prompts: int | None) -> str:
    """In how many of how many prompts, where each problem is asked in all wordings; else empty."""
    return "" if prompts is None else f" in {told.prompts} of {prompts} prompts"


def dropped(told: "Problems") -> str:
    """What was left out, in brackets; empty where nothing was."""
    parts = []
    if told.without_counterfactual:
        parts.append(f"{told.without_counterfactual} have no such counterfactual of the same layout")
    if told.without_contrast:
        parts.append(f"{told.without_contrast} have the same answer")
    return f" (dropped: {'; '.join(parts)})" if parts else ""


ELSE = {"resample": "from the counterfactual", "mean": "at its mean", "mean-positional": "at its mean at that place",
        "zero": "zero"}  # fmt: skip


def _plain(value: float) -> str:
    """0.123; what rounds to nothing has no sign; a dash where there is no number."""
    return f"{round(value, 3) + 0.0:.3f}" if math.isfinite(value) else "–"


def show_evaluation(result: dict[str, Any], level: str) -> None:
    """Faithfulness over sizes, CPR and CMD, beside the rankings that know nothing."""
    whole, empty = result["metric_whole"], result["metric_empty"]
    mine, size, chance = result["circuit"], result["magnitude"], result["random"]
    click.echo(
        f"logit difference of the whole model {whole:+.2f}, of nothing {empty:+.2f}; f is 1 for the one, 0 for the other"
    )
    low, _ = mine["cpr_95"]
    if not math.isfinite(low):
        click.echo("note: these problems are too few for an interval")
    if result["on_noise"]:
        click.echo("note: these problems do not show that the model does better than nothing; f divides by chance")
    click.echo()
    click.echo(f"  {'kept':>7}  {level + 's':>8}  {'f':>6}  {'95 %':>15}  {'magnitude':>9}  {'random':>7}")
    for i, share in enumerate(result["sizes"]):
        low, high = mine["f_95"][i]
        click.echo(f"  {share:>7.1%}  {result['items'][i]:>8}  {_plain(mine['f'][i]):>6}  [{_plain(low):>6}, {_plain(high):>5}]  "
                   f"{_plain(size['f'][i]):>9}  {_plain(chance['f'][i]):>7}")  # fmt: skip
    for key, name, better in (("cpr", "CPR", "higher is better"), ("cmd", "CMD", "lower is better")):
        (low, high), (least, most) = mine[f"{key}_95"], chance[f"{key}_range"]
        click.echo(f"{name}  {mine[key]:.3f} [{_plain(low)}, {_plain(high)}]   magnitude {size[key]:.3f}   "
                   f"random {chance[key]:.3f} ({least:.3f} to {most:.3f} of {chance['draws']})   {better}")  # fmt: skip
        if math.isfinite(low):
            less = [_less(rival, result[rival], key) for rival in ("magnitude", "random")]
            told = f"{'; '.join(less)}, 95 % over the same problems"
            if level == "edge":
                told = f"walked {result['walked'][key]:.3f}; {told}, all three walked back from the logits"
            click.echo(f"     {told}")


def _less(rival: str, found: dict[str, Any], key: str) -> str:
    low, high = found[f"{key}_difference_95"]
    return f"less that of {rival} {found[f'{key}_difference']:+.3f} [{low:+.3f}, {high:+.3f}]"


def show_interchange(table: dict[str, Any], most: int) -> None:
    """The nodes that carry a variable, and how much of it is due to the exchange."""

    def share(found: dict[str, Any]) -> str:
        return f"{found['value']:.1%} [{found['low']:.1%}, {found['high']:.1%}]"

    variable, best, control = table["variable"], table["best"], table["control"]
    base, source, expected = table["example"]
    click.echo(f"for example “{base}” with the {variable} of “{source}” is {expected}\n")
    for name, found in list(table["nodes"].items())[:most]:
        click.echo(f"  {name:<8}  {found['value']:6.1%} [{found['low']:.1%}, {found['high']:.1%}]")
    chosen = table["chosen"]
    how = (f"of {best}, which gives {chosen['value']:.1%} on the half of the problems that it was chosen on" if chosen["k"] else
           f"no node gives the expected answer on the half of the problems to choose on; of {best}, the first,")  # fmt: skip
    click.echo(f"\ninterchange accuracy {share(table['accuracy'])}: {how}, judged on the other {table['judged_on']}, "
               f"where the median node has {table['median_node']:.1%}")  # fmt: skip
    if control is None:
        click.echo(f"control              none: no two of the problems have the same {variable} and another answer")
        return
    click.echo(f"control              {share(control)}: the answer stays where {best} is of a source of the same {variable} "
               f"({control['n']} pairs); of what carries {variable} and nothing else, it always does")  # fmt: skip


def require_svg(file: Path | None) -> None:
    """Raises UserError where a drawing is asked for in another kind of file."""
    if file and file.suffix != ".svg":
        raise UserError(f"--out {file}: the drawing is an .svg file")


def draw_attention(file: Path, shown: dict[str, Any], pattern: "Pattern", model: str) -> None:
    """Attention of some heads as heat maps, into an .svg file."""
    from cdbench.report import figures

    caption = f"Mean attention of {model}'s heads"
    maps = {name: figures.Named(weights.tolist(), pattern.roles, pattern.roles) for name, weights in shown.items()}
    _write(file, figures.heat_maps("attention", maps, ("looks at", "from"), caption))


def draw_curves(file: Path, result: dict[str, Any], level: str, model: str) -> None:
    """Faithfulness over sizes of a circuit, of magnitude and of chance, into an .svg file."""
    from cdbench.report import figures

    title, of = f"f of {level}s of {model}", result["items"][-1]
    kept = [100 * n / of for n in result["items"]]
    lines = {name: [(kept, result[name]["f"])] for name in ("circuit", "magnitude", "random")}
    bands: dict[tuple[str, str], figures.Limits] = {}
    low, high = zip(*result["circuit"]["f_95"], strict=True)
    if all(map(math.isfinite, (*low, *high))):
        bands[title, "circuit"] = (low, high)
    _write(file, figures.panels("faithfulness", [title], [lines], "", "kept, %", bands))


def node_sizes(scores: "Tensor", level: str) -> "Tensor":
    """How much each node of a circuit does, [nodes]: |score|, of edges and neurons the sum of theirs."""
    return scores.abs() if level == "node" else scores.abs().flatten(1).sum(1)


def draw_graph(file: Path, made: "SavedCircuit", scores: "Tensor", kept: int) -> tuple[int, list[str]]:
    """A circuit as a graph, into an .svg file; returns how many items are in it, and the nodes.

    Of edges those of largest |score| are drawn, and in it are the nodes at their ends; of nodes and neurons those of largest
    score are in it. Edges of score 0 are left out. A node's area is |score|, of edges and neurons the sum of theirs.
    """
    from cdbench.circuits.discovery import flat
    from cdbench.circuits.graph import top
    from cdbench.report import figures

    graph, edges = made.model.graph, {}
    sizes = node_sizes(scores, made.level)
    if made.level == "edge":
        values, names = flat(scores, graph, "edge"), graph.edges
        strongest = values.abs().argsort(descending=True, stable=True)[:kept].tolist()
        edges = {names[i]: value for i in strongest if (value := float(values[i]))}  # 0 neither helps nor hinders
        ends = {end.partition("<")[0] for edge in edges for end in edge.split("->")}
        chosen = [node for node in graph.nodes if node in ends]
    else:
        chosen = top(scores, kept, graph, made.level).names
    drawn = figures.Nodes(graph.nodes, sizes.tolist(), set(chosen), graph.heads + 1, edges)
    _write(file, figures.node_graph("circuit-graph", {f"{made.level}s of {made.model.name}": drawn}, ""))
    return len(edges) if made.level == "edge" else kept, chosen


def _write(file: Path, picture: "Picture") -> None:
    from cdbench.files import write_atomic

    write_atomic(file, picture.svg.replace("currentColor", "#444"), "the drawing")
