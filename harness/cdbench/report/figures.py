"""Figures as inline SVG. Text takes the page's colour, so light and dark both read; colours are Okabe and Ito's."""

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import PercentFormatter
from numpy.typing import NDArray

from cdbench.report.formats import percent

_INK = "#010203"  # replaced by currentColor: no drawing library knows the page's colour
_PAPER = "#fdfcfb"  # replaced by the page's background
_ON_LINES = {"boxstyle": "square,pad=0.1", "facecolor": _PAPER, "edgecolor": "none", "alpha": 0.8}
"""Behind a word that lies over lines."""
_COLOURS = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#7A5C00",
    "#5E3C99",
    "#8C8C8C",
    "#A6761D",
)
COLOURS = len(_COLOURS)
"""How many things can be told apart by colour."""
_DASHES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)), (0, (8, 2)), "-", "--")
_STYLE = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # a row may be called $x$
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # each word of a figure names all fonts of this list
    "font.size": 10,
    "text.color": _INK,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.alpha": 0.25,
    "grid.color": _INK,
    "legend.frameon": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
}


Mark = dict[str, str | float | None]


@dataclass(frozen=True)
class Picture:
    """A figure of the report: SVG, caption, what it shows in words (for those who cannot see it), and its data, a row a mark."""

    anchor: str
    svg: str
    caption: str
    alternative: str
    data: Sequence[Mark]
    run_ids: tuple[str, ...] = ()
    """The runs that it shows something of."""


@contextmanager
def _drawing(width: float, height: float, panels: int = 1) -> Iterator[tuple[Figure, list[Axes]]]:
    """A figure with panels side by side, two in a row when there are four or more; sizes in inches, a panel's."""
    columns = 2 if panels >= 4 else panels
    lines = -(-panels // columns)
    with rc_context(_STYLE):
        figure = Figure(figsize=(width * columns, height * lines), layout="constrained")
        axes = figure.subplots(lines, columns, squeeze=False)
        for spare in axes.flat[panels:]:
            spare.remove()
        yield figure, list(axes.flat[:panels])


_LEAST_SCALE = 0.6
"""Of letters of 9 to 10 points this leaves 7 to 8 pixels."""


_SHORT = 12
"""Points of a curve that can be told one by one."""


def _course(curves: Sequence[Sequence[float]]) -> str:
    """What a short mean curve says at each point; of a long one where it begins, is midway, and ends."""
    if len(curves[0]) <= _SHORT and len({len(y) for y in curves}) == 1:
        return ", ".join(f"{float(np.mean(values)):.3g}" for values in zip(*curves, strict=True))
    first, middle, last = (
        float(np.mean([y[round(share * (len(y) - 1))] for y in curves])) for share in (0.0, 0.5, 1.0)
    )
    return f"from {first:.3g} over {middle:.3g} to {last:.3g}"


def _svg(figure: Figure, name: str) -> str:
    buffer = io.StringIO()
    with rc_context({**_STYLE, "svg.hashsalt": name}):
        # Not `savefig`, which draws a figure with a layout twice, once for the layout alone: drawing is most of a report.
        FigureCanvasSVG(figure).print_svg(
            buffer, metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
        )
    text = buffer.getvalue()
    text = text[text.index("<svg") :].replace(_INK, "currentColor").replace(_PAPER, "var(--bg, #fff)")
    # A fixed size would overflow a phone: shrink to the page, keep the proportions, never grow beyond the drawn size. Nor shrink
    # until nothing can be read: what is wider then scrolls in its own frame.
    pixels = round(figure.get_figwidth() * 96)
    least = min(pixels, max(480, round(_LEAST_SCALE * pixels)))
    size = f' style="width:100%;height:auto;max-width:{pixels}px;min-width:{least}px"'
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', rf"\1{size}", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    return re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)


@dataclass(frozen=True)
class Dot:
    """A row of a dot plot: mean, 95 % interval, single seeds, and the paper's value where it has one."""

    name: str
    mean: float
    interval: tuple[float, float]
    per_seed: Sequence[float]
    paper: float | None = None


def dots(name: str, panels: Mapping[str, Sequence[Dot]], caption: str) -> Picture:
    """Accuracies with their intervals, a panel a held-out set; the panels have the same rows and the same axis."""
    rows = max(len(panel) for panel in panels.values())
    lone = len(panels) == 1
    with _drawing(8 if lone else 4.6, 0.9 + (0.38 if lone else 0.3) * rows, len(panels)) as (figure, axes):
        for (title, panel), one in zip(panels.items(), axes, strict=True):
            for y, dot in enumerate(reversed(panel)):
                one.plot(dot.interval, [y, y], color=_COLOURS[0], linewidth=3, solid_capstyle="butt")
                one.plot(dot.per_seed, [y] * len(dot.per_seed), "|", color=_COLOURS[1], markersize=9)
                one.plot(dot.mean, y, "o", color=_COLOURS[0])
                if dot.paper is not None:
                    one.plot(dot.paper, y, marker="D", markerfacecolor="none", markeredgecolor=_INK, linestyle="none")
            one.set_yticks(range(len(panel)), [dot.name for dot in reversed(panel)], fontsize=10 if lone else 8)
            one.locator_params(axis="x", nbins=8 if lone else 4)
            one.xaxis.set_major_formatter(PercentFormatter(xmax=1))
            one.set_title(title, fontsize=10)
        edges = [edge for one in axes for edge in one.get_xlim()]
        for one in axes:  # a length is to be read against the others
            one.set_xlim(min(edges), max(edges))
        figure.supxlabel("accuracy on held-out problems", fontsize=10)
        svg = _svg(figure, name)
    told = "; ".join(
        (f"{title}: " if title else "") + ", ".join(f"{dot.name} {percent(dot.mean)}" for dot in panel)
        for title, panel in panels.items()
    )
    data: list[Mark] = [
        {"panel": title, "row": dot.name, "mean": dot.mean, "low": dot.interval[0], "high": dot.interval[1],
         "single runs": " ".join(f"{value:g}" for value in dot.per_seed), "paper": dot.paper}
        for title, panel in panels.items()
        for dot in panel
    ]  # fmt: skip
    return Picture(f"figure-{name}", svg, caption, told, data)


_HATCHES = ("", "//", "\\\\", "||", "--", "xx", "++", "")  # no dots: each is a path of its own, half a megabyte in all


def stacked_bars(name: str, rows: Mapping[str, Mapping[str, float]], x_label: str, caption: str) -> Picture:
    """A bar a row, made of its parts, told apart by colour and hatching."""
    parts = list(dict.fromkeys(part for row in rows.values() for part in row))
    with _drawing(8, 1.3 + 0.34 * len(rows)) as (figure, (axes,)):
        left, upwards = np.zeros(len(rows)), list(rows.values())[::-1]
        for i, part in enumerate(parts):
            values = np.array([row.get(part, 0.0) for row in upwards])
            if values.any():
                axes.barh(
                    range(len(rows)), values, left=left, label=part, color=_COLOURS[i % len(_COLOURS)],
                    hatch=_HATCHES[i % len(_HATCHES)], edgecolor=_INK, linewidth=0.4,
                )  # fmt: skip
                left += values
        axes.set_yticks(range(len(rows)), list(rows)[::-1])
        axes.set_xlabel(x_label)
        if left.any():
            figure.legend(loc="outside lower center", ncols=4, fontsize=9)
        svg = _svg(figure, name)
    told = "; ".join(f"{row}: " + ", ".join(f"{p} {v:.3g}" for p, v in of.items() if v) for row, of in rows.items())
    data: list[Mark] = [
        {"row": row, "part": part, "value": value} for row, of in rows.items() for part, value in of.items()
    ]
    return Picture(f"figure-{name}", svg, caption, told, data)


def planes(
    name: str, maps: Mapping[str, tuple[NDArray[np.float64], tuple[int, int]]], told: str, caption: str
) -> Picture:
    """Classes over the operand plane, a panel a map: first operand across, second up."""
    classes = 1 + int(max(np.nanmax(values) for values, _ in maps.values()))
    colours = ListedColormap([_COLOURS[i % len(_COLOURS)] for i in range(classes)])
    with _drawing(4.0, 3.6, len(maps)) as (figure, axes):
        for (title, (values, (right, top))), one in zip(maps.items(), axes, strict=True):
            extent = (-0.5, right + 0.5, -0.5, top + 0.5)
            one.imshow(values, cmap=colours, vmin=-0.5, vmax=classes - 0.5, origin="lower", extent=extent,
                       interpolation="nearest", aspect="auto")  # fmt: skip
            one.grid(False)
            one.set_title(title, fontsize=10)
            one.set_xlabel("first operand")
            one.set_ylabel("second operand")
        handles = [Patch(color=colours(i), label=f"class {i}") for i in range(classes)]
        figure.legend(handles=handles, loc="outside lower center", ncols=min(8, classes), fontsize=9)
        svg = _svg(figure, name)
    data: list[Mark] = [
        {"panel": title, "first operand": int(x * (right + 1) // values.shape[1]),
         "second operand": int(y * (top + 1) // values.shape[0]), "class": int(values[y, x])}
        for title, (values, (right, top)) in maps.items() for y, x in np.argwhere(~np.isnan(values))
    ]  # fmt: skip
    told += (
        ". A cell of several operands is named by the smallest; each problem's class stands in the run's record.json."
    )
    return Picture(f"figure-{name}", svg, caption, told, data)


_LONG = 20
"""Characters in a name of which four do not stand beside each other."""
Curves = Mapping[str, Sequence[tuple[Sequence[float], Sequence[float]]]]
"""Name of a row -> one (x, y) curve a seed."""
Limits = tuple[Sequence[float], Sequence[float]]
"""Lower and upper end of a band."""


def panels(
    name: str,
    titles: Sequence[str],
    curves: Sequence[Curves],
    caption: str,
    x_label: str = "step",
    limits: Mapping[tuple[str, str], Limits] = {},
) -> Picture:
    """Panels side by side, one line a row (mean over seeds) and its band: its `limits` by (panel, row), else all seeds."""
    with _drawing(4.6 if len(titles) > 1 else 6.5, 2.9, len(titles)) as (figure, axes):
        names = list(dict.fromkeys(row for panel in curves for row in panel))
        for panel, title, one in zip(curves, titles, axes, strict=True):
            for row, seeds in panel.items():
                index = names.index(row) % len(_COLOURS)
                shortest = min(len(y) for _, y in seeds)
                x = np.asarray(seeds[0][0][:shortest])
                values = np.array([y[:shortest] for _, y in seeds])
                one.plot(x, values.mean(0), color=_COLOURS[index], linestyle=_DASHES[index], label=row, linewidth=1.4)
                low, high = limits.get((title, row), (values.min(0), values.max(0)))
                if len(values) > 1 or (title, row) in limits:
                    one.fill_between(x, low, high, color=_COLOURS[index], alpha=0.15, linewidth=0)
            one.set_title(title, fontsize=10)
            one.set_xlabel(x_label)
        handles: dict[str, Any] = {}
        for one in axes:
            for handle, label in zip(*one.get_legend_handles_labels(), strict=True):
                handles.setdefault(label, handle)
        longest = max(map(len, handles), default=0)
        columns = min(4 if longest < _LONG else 2, len(handles))
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=columns, fontsize=9)
        svg = _svg(figure, name)
    told = "; ".join(
        f"{title}: " + ", ".join(f"{row} {_course([y for _, y in seeds])}" for row, seeds in panel.items())
        for panel, title in zip(curves, titles, strict=True)
    )
    data: list[Mark] = []
    for panel, title in zip(curves, titles, strict=True):
        for row, seeds in panel.items():
            low, high = limits.get((title, row), ((), ()))
            points = zip(seeds[0][0], zip(*(y for _, y in seeds), strict=False), strict=False)
            for i, (where, found) in enumerate(points):
                spread: Mark = {"mean": float(np.mean(found)), "lowest": min(found), "highest": max(found)}
                if limits:
                    spread |= {"95 % low": low[i] if low else None, "95 % high": high[i] if high else None}
                data.append({"panel": title, "row": row, x_label: where, **spread})
    return Picture(f"figure-{name}", svg, caption, told, data)


def ablation_bars(models: Mapping[str, Sequence[tuple[float, float]]], caption: str) -> Picture:
    """Ablation impact of each MLP layer and half of its interval, a panel a model."""
    with _drawing(4.6, 2.7, len(models)) as (figure, axes):
        for (model, found), one, colour in zip(models.items(), axes, _COLOURS, strict=False):
            impacts, halves = zip(*found, strict=True)
            one.bar(range(len(impacts)), impacts, yerr=halves, color=colour, ecolor=_INK, capsize=3)
            one.set_title(model, fontsize=10)
            one.set_xlabel("MLP layer")
            one.set_xticks(range(len(impacts)))
            one.set_ylabel("accuracy lost")
            one.axhline(0, color=_INK, linewidth=0.8)
        svg = _svg(figure, "ablation")
    told = "; ".join(
        f"{m}: " + ", ".join(f"layer {i} {v:+.3f} ± {half:.3f}" for i, (v, half) in enumerate(x))
        for m, x in models.items()
    )
    data: list[Mark] = [
        {"model": m, "layer": i, "accuracy lost": v, "95 % ±": half}
        for m, x in models.items()
        for i, (v, half) in enumerate(x)
    ]
    return Picture("figure-ablation", svg, caption, told, data)


@dataclass(frozen=True)
class Named:
    """A matrix whose columns and rows have names."""

    values: Sequence[Sequence[float]]
    columns: Sequence[str]
    rows: Sequence[str]


def numbered(values: Sequence[Sequence[float]]) -> Named:
    """A matrix whose columns and rows are numbered from 0."""
    return Named(values, [str(i) for i in range(len(values[0]))], [str(i) for i in range(len(values))])


def heat_maps(
    name: str, matrices: Mapping[str, Named], labels: tuple[str, str], caption: str, highest: float = 1.0
) -> Picture:
    """Matrices with the value in each cell where there is room, 0 to `highest`; `labels`: of the columns and of the rows."""
    wide = max(len(each.columns) for each in matrices.values())
    high = max(len(each.rows) for each in matrices.values())
    longest = max(len(text) for each in matrices.values() for text in each.columns)
    room = (1.1 + 0.5 * wide, 1.3 + 0.35 * high + 0.07 * longest) if wide * high <= _CELLS else (0.0, 0.0)
    with _drawing(max(3.4, room[0]), max(3.2, room[1]), len(matrices)) as (figure, axes):
        for (title, each), one in zip(matrices.items(), axes, strict=True):
            values = np.array(each.values)
            one.imshow(values, cmap="cividis", vmin=0, vmax=highest, aspect="auto")
            one.grid(False)
            one.set_title(title, fontsize=10)
            one.set_xlabel(labels[0])
            one.set_ylabel(labels[1])
            slanted: dict[str, Any] = {"rotation": 45, "ha": "right"} if longest > _SHORT else {}
            one.set_xticks(range(len(each.columns)), each.columns, **slanted)
            one.set_yticks(range(len(each.rows)), each.rows)
            if values.size <= _CELLS:
                for (i, j), value in np.ndenumerate(values):
                    ink = "white" if value < 0.6 * highest else "black"
                    # Inside its cell, and so nothing that the layout need measure: a third of the drawing.
                    one.text(j, i, _two_digits(value), ha="center", va="center", color=ink, fontsize=9, in_layout=False)
        svg = _svg(figure, name)
    told = " ".join(f"{title}: {_in_words(each)}." for title, each in matrices.items())
    return Picture(f"figure-{name}", svg, caption, told, _cells(matrices, labels))


def _in_words(each: Named) -> str:
    """A small matrix cell by cell; of a large one what a look would find. The file beside it has all of it."""
    lines = list(zip(each.rows, each.values, strict=True))
    if sum(len(line) for line in each.values) <= _SPOKEN:
        return "; ".join(
            f"{row}: " + ", ".join(f"{column} {_two_digits(v)}" for column, v in zip(each.columns, line, strict=True))
            for row, line in lines
        )
    best = {row: max(zip(line, each.columns, strict=True), key=lambda cell: cell[0]) for row, line in lines}
    values = [value for line in each.values for value in line]
    return (
        f"{len(lines)} by {len(each.columns)} values from {_two_digits(min(values))} to {_two_digits(max(values))}; "
        "highest of each row: "
        + ", ".join(f"{row} {_two_digits(value)} at {column}" for row, (value, column) in best.items())
    )


_SPOKEN = 24
"""Cells of a matrix that somebody can listen to."""
_CELLS = 144
"""Cells of a matrix in which numbers can still be read."""
_SHORT = 3
"""Characters of a column's name that stand beside each other."""


def _two_digits(value: float) -> str:
    return f"{value:.2f}".replace("-0.00", "0.00").replace("-", "−")


def _cells(matrices: Mapping[str, Named], labels: tuple[str, str]) -> list[Mark]:
    return [
        {"panel": title, labels[1]: row, labels[0]: column, "value": value}
        for title, each in matrices.items()
        for row, line in zip(each.rows, each.values, strict=True)
        for column, value in zip(each.columns, line, strict=True)
    ]


@dataclass(frozen=True)
class Nodes:
    """A circuit to be drawn: nodes in the order in which they write, the first of them the input; `per_layer` of a layer."""

    names: Sequence[str]
    sizes: Sequence[float]
    chosen: set[str]
    per_layer: int
    edges: Mapping[str, float]
    """Scores of the edges to draw, by name: `m0->a1.h2<q>`."""


def node_graph(name: str, graphs: Mapping[str, Nodes], caption: str) -> Picture:
    """Nodes over the stream that they write into, a panel a model."""
    rows = max((len(graph.names) - 1) // graph.per_layer for graph in graphs.values())
    with _drawing(3.4, 1.2 + 0.55 * rows, len(graphs)) as (figure, axes):
        for (title, graph), one in zip(graphs.items(), axes, strict=True):
            _draw_nodes(one, graph)
            one.set_title(title, fontsize=10)
        svg = _svg(figure, name)
    told = "; ".join(
        f"{title}: {', '.join(n for n in graph.names if n in graph.chosen)}"
        + (f"; edges {', '.join(f'{edge} {score:+.3g}' for edge, score in graph.edges.items())}" if graph.edges else "")
        for title, graph in graphs.items()
    )
    data: list[Mark] = []
    for title, graph in graphs.items():
        for node, size in zip(graph.names, graph.sizes, strict=True):
            data.append(
                {
                    "panel": title,
                    "what": "node",
                    "name": node,
                    "value": size,
                    "in the circuit": float(node in graph.chosen),
                }
            )
        data += [
            {"panel": title, "what": "edge", "name": k, "value": v, "in the circuit": None}
            for k, v in graph.edges.items()
        ]
    return Picture(f"figure-{name}", svg, caption, f"In the circuit: {told}", data)


def _draw_nodes(axes: Axes, graph: Nodes) -> None:
    layers = (len(graph.names) - 1) // graph.per_layer
    centre = graph.per_layer - 1.5  # between the heads and the MLP
    places = {graph.names[0]: (centre, -1.0)}
    for i, node in enumerate(graph.names[1:]):
        places[node] = (float(i % graph.per_layer), float(i // graph.per_layer))
    places["logits"] = (centre, float(layers))
    strongest = max(map(abs, graph.edges.values()), default=1.0) or 1.0
    for edge, score in graph.edges.items():
        (x, y), (to_x, to_y) = (places[end.partition("<")[0]] for end in edge.split("->"))
        axes.annotate(
            "", (to_x, to_y), (x, y), zorder=1,
            arrowprops={"arrowstyle": "-|>", "color": _COLOURS[0 if score > 0 else 1], "alpha": 0.55, "shrinkA": 4, "shrinkB": 5,
                        "linewidth": 0.4 + 2.6 * abs(score) / strongest, "linestyle": "-" if score > 0 else "--"},
        )  # fmt: skip
    largest = max(graph.sizes) or 1.0
    for node, size in zip(graph.names, graph.sizes, strict=True):
        x, y = places[node]
        fill = _COLOURS[0] if node in graph.chosen else "none"
        axes.scatter(
            [x], [y], s=20 + 240 * size / largest, c=fill, edgecolors=_INK if fill == "none" else fill, zorder=2
        )
        beside = x >= graph.per_layer - 1  # the MLPs stand at the edge, where a label below would lie under the edges
        axes.annotate(node, (x, y), xytext=(11, -2) if beside else (0, -13), textcoords="offset points",
                      ha="left" if beside else "center", fontsize=7, zorder=3, bbox=_ON_LINES)  # fmt: skip
    axes.annotate("logits", (centre, layers), xytext=(0, 4), textcoords="offset points", ha="center", fontsize=8)
    axes.set_xlim(-0.7, graph.per_layer - 0.1)
    axes.set_ylim(-1.6, layers + 0.5)
    axes.axis("off")
