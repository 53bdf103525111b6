"""Which figures a study has, and what they show. Numbered as in the papers where they correspond."""

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
from pydantic import FiniteFloat, TypeAdapter, ValidationError

from cdbench.inference import Z95, Hits, share_interval
from cdbench.record import Cka
from cdbench.report import circuits as circuit_pages
from cdbench.report import figures
from cdbench.report.collect import Group, StudyData, hits_of, trained_first
from cdbench.report.figures import Curves, Dot, Picture
from cdbench.report.formats import percent
from cdbench.report.mask_classes import plane, problem_classes

Row = dict[str, Any]
_CURVE = TypeAdapter(list[FiniteFloat])


def draw_all(data: StudyData, rows: Sequence[Row]) -> dict[str, Picture]:
    """Anchor -> figure, of all that the study has data for."""
    drawn = [draw(data, rows) for draw in _SECTIONS]
    return {
        picture.anchor: picture if picture.run_ids else replace(picture, run_ids=_runs_in(picture, data.groups))
        for picture in drawn
        if picture is not None
    }


def _runs_in(picture: Picture, groups: Sequence[Group]) -> tuple[str, ...]:
    """The runs whose rows, or whose row and seed, the marks of a picture are named by."""
    rows = {str(mark.get("row")) for mark in picture.data}
    panels = {str(mark.get("panel")).partition(": ")[0] for mark in picture.data}
    return tuple(
        record.run_id
        for group in groups
        for record in group.records
        if group.name in rows or f"{group.name}, seed {record.spec.seed}" in panels
    )


def circuits_of(data: StudyData) -> Row | None:
    """Impacts and pairing, which all runs of a study share; None where no run got so far."""
    return next((r.inputs["circuits"] for r in data.records if r.inputs.get("circuits")), None)


def impact_errors(circuits: Row, role: str) -> list[float]:
    """Standard error of each layer's impact over problems: of the accuracy that is left, as of a sample of its own."""
    left = [min(1.0, max(0.0, circuits[role]["baseline"] - impact)) for impact in circuits[role]["impacts"]]
    return [math.sqrt((share * (1 - share) + 1 / circuits["n"]) / circuits["n"]) for share in left]


def alike_layers(circuits: Row, role: str) -> list[list[int]]:
    """Layers whose impacts these problems do not tell apart, each with the next by size: groups of more than one."""
    impacts, errors = circuits[role]["impacts"], impact_errors(circuits, role)
    order = sorted(range(len(impacts)), key=lambda i: -impacts[i])
    groups = [[order[0]]]
    for before, layer in pairwise(order):
        if impacts[before] - impacts[layer] < Z95 * math.hypot(errors[before], errors[layer]):
            groups[-1].append(layer)
        else:
            groups.append([layer])
    return [sorted(group) for group in groups if len(group) > 1]


def _curves(groups: Sequence[Group], key: str) -> Curves:
    found: dict[str, list[tuple[list[float], list[float]]]] = {}
    for group in groups:
        for logged in group.histories:
            rows = [row for row in logged if key in row]
            if rows:
                found.setdefault(group.name, []).append(([row["step"] for row in rows], [row[key] for row in rows]))
    return {name: [(_thinned(x), _thinned(y)) for x, y in seeds] for name, seeds in found.items()}


def _thinned(values: Sequence[float], width: int = 25) -> list[float]:
    """Means of consecutive blocks, so that a thousand noisy steps read as a curve; short curves stay as they are."""
    if len(values) < 8 * width:
        return list(values)
    blocks = [values[i : i + width] for i in range(0, len(values), width)]
    return [sum(block) / len(block) for block in blocks]


def _dot(group: Group, hits: Hits, paper: float | None = None) -> Dot:
    return Dot(group.name, float(hits.mean()), share_interval(hits), [float(row.mean()) for row in hits], paper)


def _draw_accuracy(data: StudyData, rows: Sequence[Row]) -> Picture | None:
    papers = {row["name"]: row["paper"] for row in rows}
    shown = [_dot(group, group.hits, papers.get(group.name)) for group in data.groups if group.records]
    if not shown:
        return None
    caption = (
        "Accuracy of each row. Dot: mean over seeds; bar: 95 % interval; upright ticks: single seeds; "
        "hollow diamond: the value printed in the paper, for other models."
    )
    return figures.dots("accuracy", {"": shown}, caption)


def _draw_shift(data: StudyData, rows: Sequence[Row]) -> Picture | None:
    names = sorted({split for g in data.groups for each in g.answers for split in each if split.startswith("shift_")})
    panels = {
        name.removeprefix("shift_"): [
            _dot(g, hits) for g in data.groups if (hits := hits_of(g.answers, name)) is not None
        ]
        for name in names
    }
    panels = {name: panel for name, panel in panels.items() if panel}
    if not panels:
        return None
    caption = (
        "Length shift: accuracy on problems longer than those that methods train on, none of them a twin of a problem "
        "that a model has seen. Dot: mean over seeds; bar: 95 % interval; upright ticks: single seeds."
    )
    return figures.dots("shift", panels, caption)


def _draw_errors(data: StudyData, rows: Sequence[Row]) -> Picture | None:
    bars = {}
    for group in data.groups:
        if found := group.anatomy:
            bars[group.name] = {kind: 1000 * n / found.problems for kind, n in found.kinds.items()}
    if not bars:
        return None
    caption = "How held-out answers are wrong, of 1,000 problems, mean over seeds; the kinds are those of the table."
    return figures.stacked_bars("errors", bars, "wrong answers of 1,000", caption)


def _logged(data: StudyData) -> list[Group]:
    """Trained rows that logged something."""
    return [group for group in data.groups if any(group.histories)]


def _draw_dynamics(data: StudyData, rows: Sequence[Row]) -> Picture | None:
    trained = _logged(data)
    groups = trained_first(trained, figures.COLOURS)
    curves = [
        _curves(groups, key)
        for key in ("validation/accuracy", "loss/kl", "loss/cross_entropy", "loss/cka", "loss/total")
    ]
    titles = ["validation accuracy", "KL loss", "cross-entropy loss", "CKA loss, Σ(1 − CKA)", "total loss"]
    kept = [(title, curve) for title, curve in zip(titles, curves, strict=True) if curve]
    if not kept:
        return None
    which = "all trained rows" if len(groups) == len(trained) else f"{len(groups)} of {len(trained)} trained rows"
    numbered = "" if data.of_paper_b else " (paper A, figures 5 to 7)"
    caption = (
        f"Training dynamics of {which}{numbered}: validation accuracy after each epoch, "
        "each term's unweighted value and the weighted total (means of 25 steps). Line: mean over seeds; band: lowest to "
        "highest seed. The CKA loss is the biased one that is trained on."
    )
    return figures.panels("dynamics", [t for t, _ in kept], [c for _, c in kept], caption)


def _draw_gradients(data: StudyData, rows: Sequence[Row]) -> Picture | None:
    groups = [g for g in trained_first(_logged(data), figures.COLOURS) if g.method == "cka_cd"]
    curves = [_curves(groups, key) for key in ("grad/kl", "grad/cka")]
    if not all(curves):
        return None
    caption = "Gradient norm of each term, unweighted: multiply the right panel by λ to compare."
    return figures.panels("gradients", ["‖∇KL‖", "‖∇CKA loss‖"], curves, caption)


def _of_the_first(data: StudyData) -> str:
    """Says so where there are several tasks and one is shown."""
    tasks = list(dict.fromkeys(r.spec.task for r in data.records))
    return f"; of {tasks[0]}, the first of {len(tasks)} tasks" if len(tasks) > 1 else ""


def _draw_ablation(data: StudyData, rows: Sequence[Row]) -> Picture | None:
    circuits = circuits_of(data)
    if circuits is None:
        return None
    models = {
        f"{role} (accuracy {percent(circuits[role]['baseline'])})": [
            (impact, Z95 * error)
            for impact, error in zip(circuits[role]["impacts"], impact_errors(circuits, role), strict=True)
        ]
        for role in ("teacher", "student")
    }
    caption = (
        f"Mean-ablation impact of each MLP layer, before training, on {circuits['n']} problems of the training split "
        f"(paper A, 4.1.2){_of_the_first(data)}. Bars: 95 % over problems, of the accuracy that is left."
    )
    # All runs share what was measured once, before any of them.
    having = tuple(record.run_id for record in data.records if record.inputs.get("circuits") == circuits)
    return replace(figures.ablation_bars(models, caption), run_ids=having)


def _first_cka(group: Group) -> Cka | None:
    """Of the first seed of a row."""
    metrics = group.records[0].metrics if group.records else None
    return metrics.cka if metrics else None


def _draw_cka(data: StudyData, rows: Sequence[Row]) -> Picture | None:
    having = [group for group in data.groups if _first_cka(group)]
    before = [group for group in having if group.method == "base"][:1]
    shown = [*before, *trained_first(having, 4 - len(before))]
    matrices = {
        f"{group.name}, seed {group.records[0].spec.seed}": figures.numbered(found.debiased)
        for group in shown
        if (found := _first_cka(group))
    }
    if not matrices:
        return None
    when = "before (base) and after training" if before else "after training; what is before it this study did not run"
    caption = (
        f"Debiased linear CKA between student and teacher MLP outputs at the last prompt token, on the held-out split, {when}. "
        f"{len(shown)} of {len(having)} rows, the first seed of each."
    )
    return figures.heat_maps("cka", matrices, ("teacher layer", "student layer"), caption)


def _draw_masks(data: StudyData, rows: Sequence[Row]) -> Picture | None:
    groups = [g for g in data.groups if g.method == "mask_discovery" and g.records]
    keys = ("loss/sparsity", "loss/prior", "loss/similarity", "loss/overlap")
    curves = [_curves(groups, key) for key in keys]
    if not all(curves):
        return None
    titles = ["mask entropy", "KL to the prior", "− within-class cosine", "mask cosine"]
    caption = "Mask discovery (paper A, figures 3 and 4): the terms of Appendix B, mean of student and teacher."
    return figures.panels("masks", titles, curves, caption)


def _draw_planes(data: StudyData, rows: Sequence[Row]) -> Picture | None:
    maps, told = {}, []
    masked = [g for g in data.groups if g.method == "mask_discovery" and g.records]
    for group in masked:
        for record in group.records[:3]:
            found = problem_classes(record.extras)
            if found and found.classes.max() < figures.COLOURS:
                name = f"seed {record.spec.seed}" if len(masked) == 1 else f"{group.name}, seed {record.spec.seed}"
                maps[name] = plane(found)
                told.append(f"{name}: classes of {', '.join(map(str, np.bincount(found.classes)))} problems")
    if not maps:
        return None
    caption = (
        "Latent classes of the training problems over the operand plane (paper A, 4.2); blank where there is no problem. "
        "The classes of two seeds have nothing to do with each other's numbers."
    )
    shown = tuple(record.run_id for group in masked for record in group.records[:3])
    return replace(figures.planes("planes", maps, "; ".join(told), caption), run_ids=shown)


def _draw_layers(data: StudyData, rows: Sequence[Row]) -> Picture | None:
    group = next((g for g in data.groups if g.method == "mask_discovery" and g.records), None)
    metrics = group.records[0].metrics if group else None
    found = {name: m.by_layer for name, m in metrics.masks.items() if m.by_layer} if metrics else {}
    if not found or not group:
        return None
    seed = group.records[0].spec.seed
    caption = (
        "Where the neurons of each class's mask lie: the share of a class's neurons in each layer, of the first seed."
    )
    maps = {f"{name}, seed {seed}": figures.numbered(shares) for name, shares in found.items()}
    highest = max(value for shares in found.values() for row in shares for value in row)
    picture = figures.heat_maps("mask-layers", maps, ("layer", "class"), caption, highest)
    return replace(picture, run_ids=(group.records[0].run_id,))


def _k_curves(extras: Mapping[str, Any]) -> dict[str, list[float]]:
    """Extras are whatever a method says; what is no curve is not drawn."""
    found = extras.get("k_selection")
    told = found if isinstance(found, dict) else {}
    curves: dict[str, list[float]] = {}
    for model in ("student", "teacher"):
        with contextlib.suppress(ValidationError):
            curves[model] = _CURVE.validate_python(told.get(model))
    return curves


def _draw_k(data: StudyData, rows: Sequence[Row]) -> Picture | None:
    groups = [g for g in data.groups if g.method == "mask_discovery" and g.records]
    curves: dict[str, list[tuple[list[float], list[float]]]] = {}
    for group in groups:
        for record in group.records:
            for model, values in _k_curves(record.extras).items():
                curves.setdefault(model, []).append(([float(k + 1) for k in range(len(values))], values))
    if not curves:
        return None
    caption = (
        "Choosing K (paper A, figure 1): average cosine distance to the k-means centroids of MLP neurons within the largest "
        "class."
    )
    picture = figures.panels("k-selection", ["cosine distance to the centroid"], [curves], caption, "k")
    shown = tuple(record.run_id for group in groups for record in group.records if _k_curves(record.extras))
    return replace(picture, run_ids=shown)


Draw = Callable[[StudyData, Sequence[Row]], Picture | None]
_SECTIONS: tuple[Draw, ...] = (
    _draw_accuracy,
    _draw_shift,
    _draw_errors,
    _draw_dynamics,
    _draw_gradients,
    _draw_ablation,
    _draw_cka,
    circuit_pages.draw_faithfulness,
    circuit_pages.draw_graph,
    circuit_pages.draw_heads,
    circuit_pages.draw_attention,
    circuit_pages.draw_component_cka,
    _draw_masks,
    _draw_planes,
    _draw_layers,
    _draw_k,
)
