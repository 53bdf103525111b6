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
from matplotlib.figure import Figure

_INK = "#010203"  # replaced by currentColor: no drawing library knows the page's colour
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
_DASHES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)), (0, (8, 2)), "-", "--")
_STYLE = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": _INK,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "grid.color": _INK,
    "legend.frameon": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
}


@dataclass(frozen=True)
class Picture:
    """A figure of the report: SVG, caption, what it shows in words (for those who cannot see it)."""

    anchor: str
    svg: str
    caption: str
    alternative: str


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


def _svg(figure: Figure, name: str) -> str:
    buffer = io.StringIO()
    with rc_context({**_STYLE, "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :].replace(_INK, "currentColor")
    # A fixed size would overflow a phone: shrink to the page, keep the proportions, never grow beyond the drawn size.
    pixels = round(figure.get_figwidth() * 96)
    size = f' style="width:100%;height:auto;max-width:{pixels}px;min-width:min({pixels}px,30rem)"'
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', rf"\1{size}", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    return re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)


def accuracy_dots(rows: Sequence[Mapping[str, Any]], alternative: str) -> Picture:
    """Each row's mean, interval and seeds, and the paper's value as a tick."""
    with _drawing(8, 0.8 + 0.38 * len(rows)) as (figure, (axes,)):
        for y, row in enumerate(reversed(rows)):
            low, high = row["interval"]
            axes.plot([low, high], [y, y], color=_COLOURS[0], linewidth=3, solid_capstyle="butt")
            axes.plot(row["per_seed"], [y] * len(row["per_seed"]), "|", color=_COLOURS[1], markersize=9)
            axes.plot(row["mean"], y, "o", color=_COLOURS[0])
            if row["paper"] is not None:
                axes.plot(row["paper"], y, marker="D", markerfacecolor="none", markeredgecolor=_INK, linestyle="none")
        axes.set_yticks(range(len(rows)), [row["name"] for row in reversed(rows)])
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        axes.set_xlabel("accuracy on held-out problems")
        svg = _svg(figure, "accuracy")
    caption = (
        "Accuracy of each row. Dot: mean over seeds; bar: 95 % interval; upright ticks: single seeds; "
        "hollow diamond: the value printed in the paper, for other models."
    )
    return Picture("figure-accuracy", svg, caption, alternative)


Curves = Mapping[str, Sequence[tuple[Sequence[float], Sequence[float]]]]
"""Name of a row -> one (x, y) curve a seed."""


def panels(name: str, titles: Sequence[str], curves: Sequence[Curves], caption: str, x_label: str = "step") -> Picture:
    """Panels side by side, one line a row (mean over seeds) and its band (lowest to highest seed)."""
    with _drawing(4.6 if len(titles) > 1 else 6.5, 2.9, len(titles)) as (figure, axes):
        names = list(dict.fromkeys(row for panel in curves for row in panel))
        for panel, title, one in zip(curves, titles, axes, strict=True):
            for row, seeds in panel.items():
                index = names.index(row) % len(_COLOURS)
                shortest = min(len(y) for _, y in seeds)
                x = np.asarray(seeds[0][0][:shortest])
                values = np.array([y[:shortest] for _, y in seeds])
                one.plot(x, values.mean(0), color=_COLOURS[index], linestyle=_DASHES[index], label=row, linewidth=1.4)
                if len(values) > 1:
                    one.fill_between(x, values.min(0), values.max(0), color=_COLOURS[index], alpha=0.15, linewidth=0)
            one.set_title(title, fontsize=10)
            one.set_xlabel(x_label)
        handles: dict[str, Any] = {}
        for one in axes:
            for handle, label in zip(*one.get_legend_handles_labels(), strict=True):
                handles.setdefault(label, handle)
        figure.legend(
            handles.values(), handles.keys(), loc="outside lower center", ncols=min(4, len(handles)), fontsize=9
        )
        svg = _svg(figure, name)
    told = "; ".join(
        f"{title}: "
        + ", ".join(f"{row} ends at {np.mean([y[-1] for _, y in seeds]):.3g}" for row, seeds in panel.items())
        for panel, title in zip(curves, titles, strict=True)
    )
    return Picture(f"figure-{name}", svg, caption, told)


def ablation_bars(models: Mapping[str, Sequence[float]], caption: str) -> Picture:
    """Ablation impact of each MLP layer, a panel a model."""
    with _drawing(4.6, 2.7, len(models)) as (figure, axes):
        for (model, impacts), one, colour in zip(models.items(), axes, _COLOURS, strict=False):
            one.bar(range(len(impacts)), impacts, color=colour)
            one.set_title(model, fontsize=10)
            one.set_xlabel("MLP layer")
            one.set_xticks(range(len(impacts)))
            one.set_ylabel("accuracy lost")
            one.axhline(0, color=_INK, linewidth=0.8)
        svg = _svg(figure, "ablation")
    told = "; ".join(f"{m}: " + ", ".join(f"layer {i} {v:+.3f}" for i, v in enumerate(x)) for m, x in models.items())
    return Picture("figure-ablation", svg, caption, told)


def heat_maps(matrices: Mapping[str, Sequence[Sequence[float]]], caption: str) -> Picture:
    """CKA matrices, student layers down, teacher layers across, the value in each cell."""
    with _drawing(4.6 if len(matrices) == 4 else 3.4, 3.2, len(matrices)) as (figure, axes):
        for (name, matrix), one in zip(matrices.items(), axes, strict=True):
            values = np.array(matrix)
            one.imshow(values, cmap="cividis", vmin=0, vmax=1)
            one.grid(False)
            one.set_title(name, fontsize=10)
            one.set_xlabel("teacher layer")
            one.set_ylabel("student layer")
            one.set_xticks(range(values.shape[1]))
            one.set_yticks(range(values.shape[0]))
            if values.size <= 64:
                for (i, j), value in np.ndenumerate(values):
                    one.text(j, i, f"{value:.2f}", ha="center", va="center", color="white" if value < 0.6 else "black")
        svg = _svg(figure, "cka")
    told = "; ".join(f"{name}: {np.array(m).round(2).tolist()}" for name, m in matrices.items())
    return Picture("figure-cka", svg, caption, told)
