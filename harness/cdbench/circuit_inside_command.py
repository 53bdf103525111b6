"""`cdbench circuit interchange`, `attention` and `draw`: what nodes carry, what heads look at, what a circuit looks like."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cdbench import __version__
from cdbench.circuit_options import (
    SHOWN,
    VARIABLES,
    batch_option,
    clear_line,
    data_of,
    data_wanted,
    model_options,
    require_top,
    source_options,
    studied_again,
    studied_of,
    where_options,
    work_told,
)
from cdbench.circuit_output import draw_attention, draw_graph, node_sizes, require_svg, show_interchange
from cdbench.errors import UserError

if TYPE_CHECKING:
    from cdbench.api import Example
    from cdbench.circuit_session import Studied
    from cdbench.stats import Proportion

_HEADS = 4
_EDGES = 40
"""As many as a report draws; more hide each other."""


@click.command()
@click.argument("model")
@click.option(
    "--variable",
    type=click.Choice(VARIABLES),
    default="ones_carry",
    show_default=True,
    help="The causal model's variable: a carry, or a digit of an operand.",
)
@click.option(
    "-n", "--problems", type=click.IntRange(4), default=500, show_default=True, help="Held-out problems to use."
)
@click.option("--top", type=click.IntRange(1), help="Nodes to show [10, or all there are].")
@click.option("--all", "every", is_flag=True, help="Also problems that the model gets wrong.")
@source_options
@model_options
@batch_option
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

    studied = studied_of(model, options)
    studied.start()
    names = Graph.of(studied.model).nodes
    require_top("--top", options["top"] or 1, len(names), "nodes")
    # Sources are drawn here, so that a problem needs no counterfactual of the variable's kind.
    wanted = data_wanted({**options, "counterfactual": "random"})
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
    if len(problems) < 2:
        raise UserError(
            f"one pair of problems differs in {variable}: a node is chosen on one half and judged on the other"
        )
    hits = interchange_hits(studied.model, problems, range(len(names)), work_told("interchange", options["batch_size"]))
    clear_line()
    shares = [wilson(int(k), len(hits)) for k in hits.sum(0).tolist()]
    order = torch.tensor([share.value for share in shares]).argsort(descending=True, stable=True).tolist()
    best, held = best_node(hits)
    judged, first = wilson(int(held.sum()), len(held)), hits[: len(hits) - len(held), best]
    chosen = wilson(int(first.sum()), len(first))
    control, others = _control_of(studied, examples, best, options), hits[len(first) :].float().mean(0)
    (base, source), expected = problems.pairs[0], problems.expected[0]
    table = {
        "cdbench": __version__, "model": model, "subject": studied.subject.model_dump(), "variable": variable,
        "data": {"task": studied.workspace.task, "source": wanted.source, "revision": wanted.commit}, "problems": len(hits),
        "not_solved": None if options["every"] else len(drawn) - len(examples),  # with --all nobody asks
        "without_source": len(examples) - len(hits),
        "example": [f"{base.prompt}{base.answer}", f"{source.prompt}{source.answer}", expected],
        "best": names[best], "chosen": chosen.model_dump(), "judged_on": len(held), "accuracy": judged.model_dump(),
        "median_node": float(others.median()),
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
    show_interchange(table, options["top"] or SHOWN)


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
    hits = interchange_hits(studied.model, problems, [node], work_told("control", options["batch_size"]))
    clear_line()
    return wilson(int(hits.sum()), len(hits))


@click.command()
@click.argument("folder", metavar="CIRCUIT", type=click.Path(path_type=Path))
@click.option("--heads", type=click.IntRange(1, 8), help="How many heads, most important first [4, or all there are].")
@click.option(
    "-n", "--problems", type=click.IntRange(1), default=500, show_default=True, help="Held-out problems to use."
)
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Also draw it, into this .svg file.")
@where_options
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
    require_top("--heads", options["heads"] or 1, graph.layers * graph.heads, "heads")
    require_svg(options["out"])
    studied = studied_again(made, options)
    prompts = studied.prompts(data_of(made), options["problems"])
    pattern = attention_pattern(studied.model, studied.tokenizer, prompts)
    heads = top_heads(graph, node_sizes(mean, made.level), options["heads"] or min(_HEADS, graph.layers * graph.heads))
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


@click.command()
@click.argument("folder", metavar="CIRCUIT", type=click.Path(path_type=Path))
@click.option("--keep", type=int, metavar="K", help="Items in it: edges [40, or all], nodes or neurons [half of them].")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="An .svg file [CIRCUIT/circuit.svg].")
@click.option("--json", "as_json", is_flag=True, help="The result as JSON on stdout.")
def draw(folder: Path, keep: int | None, out: Path | None, as_json: bool) -> None:
    """Draw a circuit as a graph: a row a layer, input below, logits above, heads on the left, the MLP on the right.

    Area of a node: |score|; filled: in the circuit. Arrows: the edges of largest |score|, solid where they help, dashed where
    they hinder.

    \b
    cdbench circuit draw runs/circuits/teacher-addition_2digit-edge-attribution
    cdbench circuit draw runs/circuits/teacher-addition_2digit-node-attribution --keep 5 --out runs/circuit.svg
    """
    from cdbench.circuits import saved

    out = out or folder / "circuit.svg"
    require_svg(out)
    made, scores = saved.read(folder)
    there = made.model.graph.items(made.level)
    if keep is None:
        keep = min(_EDGES, there) if made.level == "edge" else math.ceil(there / 2)
    if not 1 <= keep <= there:
        raise UserError(f"--keep {keep}: a circuit of 1 to {there} {made.level}s can be drawn")
    kept, chosen = draw_graph(out, made, scores.mean, keep)
    if as_json:
        click.echo(json.dumps({"file": str(out), "level": made.level, "kept": kept, "nodes": chosen}))
        return
    if kept < keep:
        click.echo(f"{keep - kept} of the top {keep} edges have score 0 and are left out", err=True)
    click.echo(f"{kept} of {there} {made.level}s of {made.model.name}, nodes {', '.join(chosen)}: drawn in {out}")
