"""A circuit judged as MIB does, beside rankings that know nothing: numbers for a table or a JSON file."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from cdbench.circuits.attribution import QUIETLY, Work
from cdbench.circuits.contrasts import Contrasts
from cdbench.circuits.faithfulness import (
    RESAMPLE,
    SIZES,
    Curve,
    Exchange,
    Ranking,
    cmd,
    cpr,
    curves,
    magnitude,
    random_scores,
)
from cdbench.circuits.graph import Graph
from cdbench.circuits.scores import Scores

_TAIL = torch.tensor([0.025, 0.975], dtype=torch.float64)


@dataclass(frozen=True)
class Rivals:
    """What scores are judged beside: `draws` random rankings, and magnitudes, those on the same problems if none are given."""

    draws: int
    moved: Scores | None = None


def evaluate(
    model: LlamaForCausalLM,
    contrasts: Contrasts,
    scores: Scores,
    rivals: Rivals,
    *,
    exchange: Exchange = RESAMPLE,
    work: Work = QUIETLY,
) -> dict[str, Any]:
    """Faithfulness, CPR and CMD with intervals over problems, of these scores, of magnitudes, and of random rankings.

    Raises:
        UserError: f is 0 divided by 0.
        ValueError: scores of another model, or not finite.
    """
    graph = Graph.of(model)
    draws = rivals.draws
    size = rivals.moved or magnitude(model, contrasts, scores.level, work)
    chance = [random_scores(graph, scores.level, i) for i in range(draws)]
    # Magnitudes and random scores are not negative: by |score| they rank as by score.
    rankings = [Ranking(scores), Ranking(scores, absolute=True), Ranking(size), *(Ranking(each) for each in chance)]
    signed, absolute, by_size, *random = curves(model, contrasts, rankings, exchange=exchange, work=work)
    areas = [(float(cpr(f)), float(cmd(f))) for f in (each.faithfulness() for each in random)]
    own = _Areas.of(signed, absolute)
    return {
        "sizes": list(SIZES),
        "items": list(signed.items),
        "metric_whole": signed.whole.double().mean().item(),
        "metric_empty": signed.empty.double().mean().item(),
        "on_noise": signed.stands_on_noise,
        "circuit": _judged(signed, absolute),
        "magnitude": _judged(by_size, by_size) | own.less([by_size]),
        "random": {
            "f": torch.stack([each.faithfulness() for each in random]).mean(0).tolist(),
            **{
                name: value
                for i, key in enumerate(("cpr", "cmd"))
                for name, value in (
                    (key, sum(area[i] for area in areas) / draws),
                    (f"{key}_range", [min(area[i] for area in areas), max(area[i] for area in areas)]),
                )
            },
            "draws": draws,
            **own.less(random),
        },
    }


@dataclass(frozen=True)
class _Areas:
    """CPR and CMD, [1 + draws] each: of the problems as they are, then of each draw of them."""

    cpr: Tensor
    cmd: Tensor

    @classmethod
    def of(cls, signed: Curve, absolute: Curve) -> "_Areas":
        areas = ((signed, cpr), (absolute, cmd))
        return cls(*(area(torch.cat([each.faithfulness()[None], each.bootstrap()])) for each, area in areas))

    def less(self, rivals: Sequence[Curve]) -> dict[str, Any]:
        """What is left of either area when the rivals' mean is taken off, problem by problem: with 95 % over problems.

        The draws are the same for every curve of the same problems: f is 0 divided by 0 in the same ones, as m(N) and m(∅) are.
        """
        others = [_Areas.of(rival, rival) for rival in rivals]
        found: dict[str, Any] = {}
        for name in ("cpr", "cmd"):
            left = getattr(self, name) - torch.stack([getattr(other, name) for other in others]).mean(0)
            found |= {f"{name}_difference": float(left[0]), f"{name}_difference_95": _limits(left[1:])}
        return found


def _judged(signed: Curve, absolute: Curve) -> dict[str, Any]:
    f, g = signed.faithfulness(), absolute.faithfulness()
    first, second = signed.bootstrap(), absolute.bootstrap()
    return {
        "f": f.tolist(),
        "f_absolute": g.tolist(),
        "f_95": [list(limits) for limits in zip(*_limits(first), strict=True)],
        "cpr": float(cpr(f)),
        "cpr_95": _limits(cpr(first)),
        "cmd": float(cmd(g)),
        "cmd_95": _limits(cmd(second)),
    }


def _limits(draws: Tensor) -> list[Any]:
    """The 2.5 and 97.5 percentiles over the first dimension; NaN where there is no draw."""
    if not len(draws):
        return torch.full((2, *draws.shape[1:]), math.nan).tolist()
    limits: list[Any] = torch.quantile(draws, _TAIL, dim=0).tolist()
    return limits
