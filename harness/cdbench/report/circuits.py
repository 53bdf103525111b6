"""Circuits in the report: how faithful a row's circuit is, what it can do alone and carries; even heads (errata C6)."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr

from cdbench.inference import Spread, differing_interval
from cdbench.record import (
    CircuitJudgement,
    Faithfulness,
    InterchangeJudgement,
    PairingSupport,
    Record,
    number_at,
)
from cdbench.report import figures
from cdbench.report.collect import UNTRAINED, Group, StudyData, mean_of, trained_first
from cdbench.report.figures import Picture
from cdbench.report.formats import Measured
from cdbench.report.sampled import of_one_run, possible, spread_of, variance_of
from cdbench.seeds import seed_for

Row = dict[str, Any]
_DRAWN = 20_000
_SHOWN_HEADS = 2
_LINES = figures.COLOURS - len(UNTRAINED) - 1
"""Trained rows in a picture of lines: more than colours cannot be told apart."""


def judged(record: Record) -> CircuitJudgement | None:
    """What the evaluator says of a run's circuit; None in records from before it did, and where there is no contrast."""
    return record.metrics.circuit if record.metrics else None


def measured(group: Group, name: str) -> Measured | None:
    """A number that the evaluator takes of each run, over seeds and, where records tell, problems; None where no run has it.

    Nor is there one of faithfulness where f divides by chance.
    """
    summary, faithful, _ = name.partition(".faithfulness")
    having = [r.metrics for r in group.records if r.metrics and number_at(r.metrics, name) is not None]
    values = group.values(name)
    mean = mean_of(values)
    if mean is None or (faithful and group.metric(f"{summary}{faithful}.on_noise")):
        return None
    if len(values) == 1:
        interval = of_one_run(having[0], name)
    else:
        spread = spread_of(values, [group], name)
        interval = spread.around(mean) if spread else differing_interval(values)
    runs = len(group.records)
    return Measured(
        mean,
        interval.within(*possible(name)) if interval else None,
        f"{len(values)} of {runs} runs" if len(values) < runs else "",
    )


def circuit_notes(data: StudyData, rows: Sequence[Row]) -> list[str]:
    """What whoever reads the tables of circuits should know, a sentence each; for every form of the report."""
    if not rows:
        return []
    told, last = [], rows[-1]
    if last["kept"]:
        told.append(
            f"Of {last['of']} nodes the ten sizes keep {', '.join(map(str, last['kept']))}: with few nodes their areas rest "
            f"on one or two sizes, and those of {last['edges'] or 'the'} edges say more."
        )
    told += [
        f"{row['name']}: in {row['on_noise']} of its runs the problems do not show that the model does better than nothing, "
        "and f divides by chance: nothing is shown of it."
        for row in rows
        if row["on_noise"]
    ]
    tasks = dict.fromkeys(row["task"] for row in rows)
    for task in tasks:
        found = _of_task([row for row in rows if row["task"] == task])
        told += [f"{task}: {each[0].lower()}{each[1:]}" for each in found] if len(tasks) > 1 else found
    if worked := [group.name for group in data.groups if group.metric("worked")]:
        told.append(
            "Faithfulness, accuracy alone, interchange and perplexity are of bare answers. A row that works its problems out "
            f"({', '.join(worked)}) has been taught not to give them: its numbers here are not comparable."
        )
    return told


def _of_task(rows: Sequence[Row]) -> list[str]:
    told = [
        f"Circuits are found on {found_on} training problems; of these and the held-out ones {left_out} have no counterfactual "
        "of the same layout and are left out."
        for found_on, left_out in dict.fromkeys((row["found_on"], row["left_out"]) for row in rows if row["found_on"])
    ]
    supports = [row["support"] for row in rows if row["support"]]
    return told + [_of_pairing(each) for i, each in enumerate(supports) if each not in supports[:i]]


def _of_pairing(found: PairingSupport) -> str:
    count = len(found.correlations)
    return (
        f"The functional pairs of the models before training ({count}): over training problems the scores of the two correlate "
        f"with {sum(found.correlations) / count:.2f} on average, and a pair comes back in "
        f"{100 * sum(found.kept) / count:.0f} % of pairings of problems drawn anew. Found on one half of the problems, the pairs "
        f"correlate with {found.held_out:.2f} on the other half, all that could have been paired with {found.others:.2f} "
        f"(p = {found.p:.3f} if it did not matter who goes with whom)."
    )


def stability_over_seeds(found: Sequence[CircuitJudgement]) -> float | None:
    """Mean rank correlation (Spearman) of nodes' importance between every two seeds; None where there are not two rankings."""
    rankings = [each.importance for each in found if len(set(each.importance)) > 1]
    if all(ranking == rankings[0] for ranking in rankings):  # one model, looked at more than once
        return None
    pairs = [(a, b) for i, a in enumerate(rankings) for b in rankings[:i]]
    return mean_of([float(spearmanr(a, b).statistic) for a, b in pairs])


_NUMBERS = {
    "cpr": "faithfulness.cpr",
    "cmd": "faithfulness.cmd",
    "alone": "accuracy.value",
    "alone_share": "alone_share",
    "alone_random": "random_alone_share",
    "without": "ablated.value",
    "without_share": "ablated_share",
    "without_random": "random_ablated_share",
    "without_first": "one_by_one.share",
    "without_other": "one_by_one.others_share",
    "first_needed": "one_by_one.needed_beyond_chance",
    "exact": "exact.spearman",
    "halves": "stability",
    "edge_cpr": "edges.faithfulness.cpr",
    "edge_cmd": "edges.faithfulness.cmd",
    "edge_alone": "edges.accuracy.value",
    "edge_exact": "edges.exact.spearman",
    "edge_halves": "edges.stability",
    "walked_cpr": "edges.faithfulness.walked.cpr",
    "walked_cmd": "edges.faithfulness.walked.cmd",
    "over_moved": "edges.faithfulness.magnitude.cpr_difference",
    "over_random": "edges.faithfulness.random.cpr_difference",
    "cmd_over_moved": "edges.faithfulness.magnitude.cmd_difference",
    "cmd_over_random": "edges.faithfulness.random.cmd_difference",
    "moved_cpr": "edges.faithfulness.magnitude.cpr",
    "moved_cmd": "edges.faithfulness.magnitude.cmd",
    "random_cpr": "edges.faithfulness.random.cpr",
    "random_cmd": "edges.faithfulness.random.cmd",
    "interchange": "interchange.accuracy.value",
    "control": "interchange.control.value",
    "pairs": "interchange.accuracy.n",
    "cka": "cka.debiased_mean",
    "cka_biased": "cka.biased_mean",
    "best": "cka.best_mean",
}


def circuit_rows(data: StudyData) -> list[Row]:
    """One row a row of Table 1: what the evaluator says of its circuits, over seeds."""
    rows = []
    for group in data.groups:
        found = [j for r in group.records if (j := judged(r))]
        if not found:
            continue
        digits = list(dict.fromkeys(name for j in found for name in j.interchange_digits))
        shifts = sorted({name for r in group.records if r.metrics for name in r.metrics.perplexity} - {"test"})
        kept = next((j.faithfulness.items for j in found if j.faithfulness), [])
        numbers = {key: measured(group, f"circuit.{name}") for key, name in _NUMBERS.items()}
        rows.append(
            {
                "name": group.name,
                "task": group.task,
                **numbers,
                "nodes": _nodes(j.interchange for j in found),
                "first": ", ".join(dict.fromkeys(j.one_by_one.node for j in found if j.one_by_one)),
                "digits": {
                    name: {
                        "accuracy": measured(group, f"circuit.interchange_digits.{name}.accuracy.value"),
                        "control": measured(group, f"circuit.interchange_digits.{name}.control.value"),
                        "nodes": _nodes(j.interchange_digits.get(name) for j in found),
                    }
                    for name in digits
                },
                "stability": stability_over_seeds(found),
                "perplexity": group.metric("perplexity.test"),
                "shift_perplexity": {
                    name.removeprefix("shift_"): group.metric(f"perplexity.{name}") for name in shifts
                },
                "missing": sorted({f"{part}: {why}" for j in found for part, why in j.not_judged.items()}),
                "support": next((j.cka.support for j in found if j.cka and j.cka.support), None),
                "found_on": found[0].found_on,
                "left_out": found[0].left_out,
                "changed": group.metric("parameters_changed"),
                "parameters": group.metric("parameters"),
                "kept": kept,
                "of": len(found[0].nodes),
                "edges": found[0].edges.edges if found[0].edges else None,
                "on_noise": sum(j.faithfulness.on_noise for j in found if j.faithfulness),
                "run_ids": [r.run_id for r in group.records if judged(r)],
            }
        )
    return rows


def _nodes(found: Iterable[InterchangeJudgement | None]) -> str:
    """Which nodes stand for a variable; "none" where no node gave the expected answer on any pair that it was chosen on."""
    return ", ".join(
        dict.fromkeys("none" if each.chosen and not each.chosen.k else each.node for each in found if each)
    )


def digit_names(rows: Sequence[Row]) -> list[str]:
    """The digits that any row's nodes were asked for."""
    return list(dict.fromkeys(name for row in rows for name in row["digits"]))


def circuit_table(rows: Sequence[Row]) -> list[Row]:
    """The same for a spreadsheet: mean and interval of each number in columns of their own."""
    found = []
    shifts, digits = sorted({name for row in rows for name in row["shift_perplexity"]}), digit_names(rows)
    for row in rows:
        flat: Row = {"row": row["name"]}
        of_digits = {
            f"interchange_digits.{name}.{key}.value": row["digits"].get(name, {}).get(key)
            for name in digits
            for key in ("accuracy", "control")
        }
        for name, value in ({name: row[key] for key, name in _NUMBERS.items()} | of_digits).items():
            low, high = value.interval if value and value.interval else (None, None)
            flat |= {name: value.mean if value else None, f"{name} low": low, f"{name} high": high}
        flat |= {key: row[key] for key in ("stability", "nodes", "perplexity", "changed", "parameters")}
        flat |= {f"perplexity {name}": row["shift_perplexity"].get(name) for name in shifts}
        found.append(flat | {"run_ids": row["run_ids"]})
    return found


@dataclass(frozen=True)
class EvenHeads:
    """Whether importance sits in even-numbered heads of middle to late layers (errata C6), by a permutation test.

    Heads are shuffled within their layers: that late heads matter more than early ones, whatever their number, decides nothing.

    Attributes:
        share: of all heads' |importance|, how much even heads of the later half of the layers have.
        expected: what shuffled heads give, their mean.
        late: what all heads of the later half have.
        p: one-sided, the share of shuffles with as much.
        p_two_sided: the same for as far from what is expected, either way.
        low, high: 95 % interval of share − expected: what shifts of the share the shuffles do not reject.
        heads: how many heads there are.
        least_p: two-sided, what no arrangement of so few heads can fall below.
    """

    share: float
    expected: float
    late: float
    p: float
    p_two_sided: float
    low: float
    high: float
    heads: int
    least_p: float


@cache
def _orders(layers: int, heads: int) -> NDArray[np.int64]:
    """[20,000, layers * heads] orders in which each layer's heads are shuffled among themselves; the first is as it is."""
    draw = np.random.default_rng(seed_for("even-heads", layers, heads))
    own = np.arange(layers * heads).reshape(layers, heads)
    return np.array([own.ravel(), *(draw.permuted(own, axis=1).ravel() for _ in range(_DRAWN - 1))])


def even_heads(found: CircuitJudgement) -> EvenHeads | None:
    """The test on one model's heads; None where no head matters at all."""
    heads = [(name, abs(x)) for name, x in zip(found.nodes, found.importance, strict=True) if name.startswith("a")]
    places = [tuple(int(part) for part in name[1:].split(".h")) for name, _ in heads]
    sizes = np.array([size for _, size in heads])
    if not sizes.sum() > 0:
        return None
    layers = 1 + max(layer for layer, _ in places)
    late = np.array([layer >= layers / 2 for layer, _ in places])
    wanted = late & np.array([head % 2 == 0 for _, head in places])
    shares = sizes[_orders(layers, len(sizes) // layers)][:, wanted].sum(1) / sizes.sum()
    more, less = float((shares >= shares[0] - 1e-12).mean()), float((shares <= shares[0] + 1e-12).mean())
    (least, most), expected = np.quantile(shares, [0.025, 0.975]), float(shares.mean())
    return EvenHeads(
        share=float(shares[0]),
        expected=expected,
        late=float(sizes[late].sum() / sizes.sum()),
        p=more,
        p_two_sided=min(1.0, 2 * min(more, less)),
        low=max(float(shares[0] - most), -expected),  # a share is not below 0 and not above 1
        high=min(float(shares[0] - least), 1 - expected),
        heads=len(sizes),
        least_p=2 / math.comb(per_layer := len(sizes) // layers, (per_layer + 1) // 2) ** (layers // 2),
    )


def even_head_rows(data: StudyData) -> list[Row]:
    """The test for the teacher, the student before training, and the first run of each row that the pictures of lines show."""
    return [
        {"name": group.name, "seed": record.spec.seed, "run_id": record.run_id, "found": found}
        for group, record, judgement in _shown(data, _LINES)
        if (found := even_heads(judgement))
    ]


def _shown(data: StudyData, trained: int) -> list[tuple[Group, Record, CircuitJudgement]]:
    """The teacher, the student before training, and so many trained rows; of each the first run that was judged."""
    found = [
        (group, record, judgement)
        for group in data.groups
        if (record := next((r for r in group.records if judged(r)), None)) and (judgement := judged(record))
    ]
    chosen = {group.name for group in trained_first([group for group, _, _ in found], trained)}
    return [each for each in found if each[0].method in UNTRAINED or each[0].name in chosen]


def draw_faithfulness(data: StudyData, rows: Sequence[Row]) -> Picture | None:
    """f over the share of nodes and of edges that is kept."""
    panels: dict[str, dict[str, list[tuple[list[float], list[float]]]]] = {"f of nodes": {}, "f of edges": {}}
    limits: dict[tuple[str, str], figures.Limits] = {}
    for group, _, _ in _shown(data, _LINES):
        found = [j for r in group.records if (j := judged(r))]
        by_level = {
            "f of nodes": [(j.faithfulness, len(j.nodes)) for j in found],
            "f of edges": [(j.edges.faithfulness, j.edges.edges) for j in found if j.edges],
        }
        for title, curves in by_level.items():
            lines = [([100 * n / of for n in f.items], f.f) for f, of in curves if f]
            if lines:
                panels[title][group.name] = lines
            told = [f for f, _ in curves if f]
            if told and all(f.f_95 and f.problems > 1 and not f.on_noise for f in told):
                limits[title, group.name] = _band(told)
    drawn = {title: curves for title, curves in panels.items() if curves}
    if not drawn:
        return None
    caption = (
        "Faithfulness f of the circuits of each row (MIB): 1 is the model, 0 the counterfactual. Nodes and edges are taken by "
        "attribution score, found on the training split, and judged on held-out problems. Line: mean over seeds; band: 95 % "
        "interval over seeds and problems (of one seed over problems), or all seeds where f divides by chance or the record has "
        "no interval. Of the methods and controls those that a colour is left for, the table has all."
    )
    return figures.panels("faithfulness", list(drawn), list(drawn.values()), caption, "kept, %", limits)


def _band(found: Sequence[Faithfulness]) -> figures.Limits:
    """95 % over seeds and problems at each size, as the areas under the curve have it; of one seed as the record has it."""
    low, high = np.array([each.f_95 for each in found]).transpose(2, 0, 1)  # [seeds, sizes] each
    if len(found) == 1:
        return low[0].tolist(), high[0].tolist()
    f = np.array([each.f for each in found])
    of_problems = variance_of((high - low).mean(0))
    of_seeds, problems = f.var(0, ddof=1) / len(f), min(each.problems for each in found)
    ends = [
        Spread(float(seeds), len(f), float(drawn), problems).around(float(mean))
        for seeds, drawn, mean in zip(of_seeds, of_problems, f.mean(0), strict=True)
    ]
    return [end.low for end in ends], [end.high for end in ends]


def draw_heads(data: StudyData, rows: Sequence[Row]) -> Picture | None:
    """|importance| of each head and MLP, layers downwards."""
    maps = {}
    for group, record, found in _shown(data, 2):
        layers = (len(found.nodes) - 1) // _width(found)
        values = np.abs(np.array(found.importance[1:])).reshape(layers, -1)
        largest = float(values.max()) or 1.0
        columns = [*(f"h{i}" for i in range(_width(found) - 1)), "MLP"]
        maps[f"{group.name}, seed {record.spec.seed}"] = figures.Named(
            (values / largest).tolist(), columns, [str(i) for i in range(layers)]
        )
    if not maps:
        return None
    caption = (
        "Head maps: |importance| of each head and of the MLP of a layer, relative to the model's largest. By attribution "
        "patching on the training split; the first seed of a row."
    )
    return figures.heat_maps("heads", maps, ("component", "layer"), caption)


def _width(found: CircuitJudgement) -> int:
    """Heads and the MLP of a layer."""
    return sum(name.startswith(("a0.", "m0")) for name in found.nodes)


def draw_component_cka(data: StudyData, rows: Sequence[Row]) -> Picture | None:
    """Student x teacher components, before training and after."""
    maps = {}
    for group, record, found in _shown(data, 3):
        if found.cka:
            names = [[short_site(site) for site in sites] for sites in (found.cka.teacher, found.cka.student)]
            maps[f"{group.name}, seed {record.spec.seed}"] = figures.Named(found.cka.matrix, names[0], names[1])
    if not maps:
        return None
    caption = (
        "Debiased linear CKA between the components of largest importance, at the last prompt token, held out; the first seed of "
        "a row."
    )
    return figures.heat_maps("component-cka", maps, ("teacher", "student"), caption)


def short_site(site: str) -> str:
    """`attn.3.head.5` -> `a3.h5`, `mlp.3.out` -> `m3`."""
    parts = site.split(".")
    return f"a{parts[1]}.h{parts[3]}" if parts[0] == "attn" else f"m{parts[1]}"


def draw_attention(data: StudyData, rows: Sequence[Row]) -> Picture | None:
    """What the two most important heads look at, by the role of a token."""
    maps: dict[str, figures.Named] = {}
    for group, record, found in _shown(data, 2):
        if found.attention:
            roles = found.attention.roles
            for name, weights in list(found.attention.heads.items())[:_SHOWN_HEADS]:
                maps[f"{group.name}, seed {record.spec.seed}: {name}"] = figures.Named(weights, roles, roles)
    if not maps:
        return None
    caption = (
        "What the heads of largest |importance| look at (paper B, 6.2): mean attention from the position on the left to the one "
        "below, over the held-out prompts of the commonest layout. Two heads of a row, the first seed of it."
    )
    return figures.heat_maps("attention", maps, ("looks at", "from"), caption)


def draw_graph(data: StudyData, rows: Sequence[Row]) -> Picture | None:
    """The circuit as a graph: a row a layer, heads then the MLP; size by importance, filled what is in the circuit."""
    graphs = {}
    for group, record, found in _shown(data, 1):
        graphs[f"{group.name}, seed {record.spec.seed}"] = figures.Nodes(
            names=found.nodes,
            sizes=[abs(x) for x in found.importance],
            chosen=set(found.circuit),
            per_layer=_width(found),
            edges=found.edges.top if found.edges else {},
        )
    if not graphs:
        return None
    caption = (
        "Circuits as graphs: a row a layer, upwards from input to logits, heads on the left, the MLP on the right. Area of a "
        "node: |importance|; filled: in the circuit of half of the nodes; hollow: not. Arrows: the forty edges of largest "
        "|score|, solid where they help, dashed where they hinder; a head's queries, keys and values have one each. The first "
        "seed of a row."
    )
    return figures.node_graph("circuit-graph", graphs, caption)
