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
    walked,
)
from cdbench.circuits.graph import Graph
from cdbench.circuits.scores import Scores, single

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

    Rankings of edges that know nothing are walked (`faithfulness.walked`), and so is what they are compared with: "walked" has
    its CPR and CMD (of nodes and neurons they are the circuit's own), and the differences are from those.

    Raises:
        UserError: f is 0 divided by 0.
        ValueError: scores of another model, or not finite.
    """
    graph = Graph.of(model)
    draws = rivals.draws
    size = rivals.moved or magnitude(model, contrasts, scores.level, work)
    chance = [random_scores(graph, scores.level, i) for i in range(draws)]
    alike = [walked(each, graph) for each in (scores, single(scores.level, scores.mean.abs()))]
    # Walks, magnitudes and random scores are not negative: by |score| they rank as by score.
    rankings = [Ranking(scores), Ranking(scores, absolute=True), *map(Ranking, (*alike, size, *chance))]
    signed, absolute, *rest = curves(model, contrasts, rankings, exchange=exchange, work=work)
    own, like = _Judged.of(signed, absolute), _Judged.of(*rest[:2])
    moved, *drawn = [_Judged.of(each) for each in rest[2:]]
    areas = [(float(each.cpr[0]), float(each.cmd[0])) for each in drawn]
    return {
        "sizes": list(SIZES),
        "items": list(signed.items),
        "metric_whole": signed.whole.double().mean().item(),
        "metric_empty": signed.empty.double().mean().item(),
        "on_noise": signed.stands_on_noise,
        "circuit": own.told(),
        "walked": {"cpr": float(like.cpr[0]), "cmd": float(like.cmd[0])},
        "magnitude": moved.told() | like.less([moved]),
        "random": {
            "f": torch.stack([each.f[0] for each in drawn]).mean(0).tolist(),
            **{
                name: value
                for i, key in enumerate(("cpr", "cmd"))
                for name, value in (
                    (key, sum(area[i] for area in areas) / draws),
                    (f"{key}_range", [min(area[i] for area in areas), max(area[i] for area in areas)]),
                )
            },
            "draws": draws,
            **like.less(drawn),
        },
    }


@dataclass(frozen=True)
class _Judged:
    """f, CPR and CMD of the problems as they are, and then of each draw of them.

    Attributes:
        f, f_absolute: [1 + draws, sizes], circuits chosen by signed score and by |score|.
        cpr, cmd: [1 + draws], of the first and of the second.
    """

    f: Tensor
    f_absolute: Tensor
    cpr: Tensor
    cmd: Tensor

    @classmethod
    def of(cls, signed: Curve, absolute: Curve | None = None) -> "_Judged":
        """`absolute`: None where scores are not negative, and rank in one way only."""
        f = torch.cat([signed.faithfulness()[None], signed.bootstrap()])
        g = torch.cat([absolute.faithfulness()[None], absolute.bootstrap()]) if absolute else f
        return cls(f, g, cpr(f), cmd(g))

    def told(self) -> dict[str, Any]:
        return {
            "f": self.f[0].tolist(),
            "f_absolute": self.f_absolute[0].tolist(),
            "f_95": [list(limits) for limits in zip(*_limits(self.f[1:]), strict=True)],
            "cpr": float(self.cpr[0]),
            "cpr_95": _limits(self.cpr[1:]),
            "cmd": float(self.cmd[0]),
            "cmd_95": _limits(self.cmd[1:]),
        }

    def less(self, rivals: Sequence["_Judged"]) -> dict[str, Any]:
        """What is left of either area when the rivals' mean is taken off, problem by problem: with 95 % over problems."""
        found: dict[str, Any] = {}
        for name in ("cpr", "cmd"):
            left = getattr(self, name) - torch.stack([getattr(rival, name) for rival in rivals]).mean(0)
            found |= {f"{name}_difference": float(left[0]), f"{name}_difference_95": _limits(left[1:])}
        return found


def _limits(draws: Tensor) -> list[Any]:
    """The 2.5 and 97.5 percentiles over the first dimension; NaN where there is no draw."""
    if not len(draws):
        return torch.full((2, *draws.shape[1:]), math.nan).tolist()
    limits: list[Any] = torch.quantile(draws, _TAIL, dim=0).tolist()
    return limits
