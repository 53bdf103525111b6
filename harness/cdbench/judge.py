"""What the evaluator says of a model's circuit (paper B, 5.2): how faithful it is, what it can do alone, what it carries.

The circuit is found on the training split and judged on held-out problems, in the same way for every row: attribution patching
ranks the nodes and the edges of the trained student. The embedding and then the first nodes by score, half of all together, are
its circuit.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import LlamaForCausalLM

from cdbench.api import Example
from cdbench.circuits.arithmetic import Variable, make_pairs
from cdbench.circuits.attention import attention_pattern, top_heads
from cdbench.circuits.attribution import QUIETLY, Work, attribute
from cdbench.circuits.components import components
from cdbench.circuits.contrasts import Contrasts, make_contrasts
from cdbench.circuits.discovery import agreement, flat
from cdbench.circuits.evaluation import Rivals, evaluate
from cdbench.circuits.faithfulness import circuit_hits, magnitude
from cdbench.circuits.graph import Circuit, Graph, top
from cdbench.circuits.interchange import interchange_hits, make_interchanges, solved
from cdbench.circuits.patching import PlacedMeans, ablated_hits, all_nodes, placed_means
from cdbench.circuits.scores import Scores
from cdbench.component_cka import component_cka
from cdbench.errors import UserError
from cdbench.record import (
    AttentionJudgement,
    Baseline,
    CircuitJudgement,
    EdgeJudgement,
    ExactCheck,
    Faithfulness,
    InterchangeJudgement,
    OneByOne,
)
from cdbench.seeds import generator_for, rng_for
from cdbench.sites import answer_logits
from cdbench.stats import Proportion, wilson
from cdbench.tokens import IGNORE, Encoded, encode, prompt_encoder
from cdbench.workspace import Workspace

SHARE = 0.5
"""The share of the nodes, and of the edges, that counts as the circuit."""
_PROBLEMS = 500
_OF_EDGES = 1 << 25
"""Problems at a time times nodes times width, at most about: with a stream for each reader, memory goes with their number."""
_EDGE_PROBLEMS = 200
_CHOSEN_ON = 250
"""Training problems on which the node that carries a variable is chosen."""
_DRAWS = 3
_SHOWN_EDGES = 40
_SHOWN_HEADS = 4
_CHECKED, _CHECKED_PROBLEMS = 10, 200
"""How many nodes, and how many edges, are patched exactly, and on how many problems."""
_DIGITS: tuple[Variable, ...] = ("ones_op1", "ones_op2", "tens_op1", "tens_op2")


Part = TypeVar("Part")


class NotJudged(Exception):
    """Says why a model has no circuit that could be judged."""


@dataclass
class _Reasons:
    """Parts of a judgement, and why some are missing."""

    missing: dict[str, str] = field(default_factory=dict)

    def part(self, name: str, judged: Callable[[], Part]) -> Part | None:
        """What `judged` gives; None, with its reason kept, where it says that there is nothing to judge."""
        try:
            return judged()
        except (UserError, ValueError) as error:
            self.missing[name] = str(error)
            return None


def judge_circuit(
    model: LlamaForCausalLM, workspace: Workspace, test: Sequence[Example], *, reference: bool
) -> CircuitJudgement:
    """Judges a model's circuit on held-out problems.

    `reference` is the teacher itself, which is not compared with the teacher.

    Raises:
        NotJudged: no two problems of the task can be contrasted, or importances are not finite.
    """
    found, (held, without) = workspace.contrasts, _contrasts(workspace, test)
    if found is None or held is None:
        raise NotJudged(f"no two problems of '{workspace.task}' have the same layout and different answers")
    graph, scores = Graph.of(model), attribute(model, found)
    try:
        circuit = top(_embedding_first(scores.mean), math.ceil(SHARE * len(graph.nodes)), graph, "node")
    except ValueError as error:
        raise NotJudged(f"the nodes cannot be ranked: {error}") from None
    calibration = workspace.train_examples[: workspace.profile.circuits.calibration]
    means = placed_means(model, encode(workspace.tokenizer, calibration))
    split = encode(workspace.tokenizer, test)
    low, high = scores.interval() or (scores.mean[:0],) * 2  # of too few problems there is none
    rest = ~circuit.nodes
    rest[0] = True  # the embedding stays: without it no model knows its problem, whatever its circuit
    by_chance = [Circuit(graph, _drawn(kept, draw)) for kept in (rest, circuit.nodes) for draw in range(_DRAWS)]
    right, right_without = ablated_hits(model, split, range(1, len(graph.nodes)), means.at)
    whole = int(right.sum())
    circuits = [circuit, Circuit(graph, rest), *by_chance]
    alone, ablated, *hits = circuit_hits(model, split, circuits, means.at).sum(1).tolist()
    others_ablated, others_alone = (sum(part) / _DRAWS for part in (hits[:_DRAWS], hits[_DRAWS:]))
    reasons, own, exchange = _Reasons(), components(graph, scores), _Interchange(model, workspace, test)
    return CircuitJudgement(
        problems=len(held),
        found_on=len(found),
        left_out=without + len(calibration) - len(found),
        nodes=list(graph.nodes),
        importance=scores.mean.tolist(),
        importance_low=low.tolist(),
        importance_high=high.tolist(),
        stability=_stability(scores, torch.ones(len(graph.nodes), dtype=torch.bool)),
        exact=_exactly(model, found, scores),
        circuit=circuit.names,
        faithfulness=reasons.part("faithfulness", lambda: _faithfulness(model, found, held, scores)),
        accuracy=wilson(alone, len(test)),
        ablated=wilson(ablated, len(test)),
        alone_share=alone / whole if whole else None,
        ablated_share=ablated / whole if whole else None,
        random_alone_share=others_alone / whole if whole else None,
        random_ablated_share=others_ablated / whole if whole else None,
        suffices_beyond_chance=(alone - others_alone) / whole if whole else None,
        needed_beyond_chance=(others_ablated - ablated) / whole if whole else None,
        one_by_one=_one_by_one(graph, scores, right_without, wilson(whole, len(test))) if whole else None,
        attention=_attention(model, workspace, test, scores),
        edges=reasons.part("edges", lambda: _edges(model, found, held, split, means)),
        interchange=reasons.part("interchange", lambda: exchange.judge("ones_carry")),
        interchange_digits={
            name: judged
            for name in _DIGITS
            if (judged := reasons.part(f"interchange of {name}", partial(exchange.judge, name)))
        },
        cka=None if reference else reasons.part("cka", lambda: component_cka(model, workspace, test, own, SHARE)),
        not_judged=reasons.missing,
    )


def _embedding_first(scores: Tensor) -> Tensor:
    """The scores [nodes] with the embedding's above all: without it no model knows its problem, whatever else is kept."""
    first = scores.clone()
    first[0] = scores.abs().max() + 1
    return first


def _drawn(like: Tensor, draw: int) -> Tensor:
    """As many nodes as in `like`, at random; the embedding is always among them: without it no model knows its problem."""
    order = 1 + torch.randperm(len(like) - 1, generator=generator_for("judge-ablated", len(like), draw))
    kept = torch.zeros_like(like)
    kept[0] = True
    kept[order[: max(int(like.sum()) - 1, 0)]] = True
    return kept


def _one_by_one(graph: Graph, scores: Scores, without: Tensor, whole: Proportion) -> OneByOne:
    """`without`: [n, nodes but the embedding] whether each problem is solved with the node at its mean."""
    left = without.sum(0)
    shares = (left / whole.k).tolist()
    first = int(scores.mean[1:].argmax())
    others = [share for i, share in enumerate(shares) if i != first]
    return OneByOne(
        whole=whole,
        node=graph.nodes[1 + first],
        accuracy=wilson(int(left[first]), len(without)),
        share=shares[first],
        others_share=sum(others) / len(others),
        needed_beyond_chance=sum(others) / len(others) - shares[first],
        shares=dict(zip(graph.nodes[1:], shares, strict=True)),
    )


def _attention(
    model: LlamaForCausalLM, workspace: Workspace, test: Sequence[Example], scores: Scores
) -> AttentionJudgement:
    """What the heads of largest |importance| look at, over the held-out prompts of the commonest layout."""
    pattern = attention_pattern(model, workspace.tokenizer, test[:_PROBLEMS])
    graph = Graph.of(model)
    heads = top_heads(graph, scores.mean.abs(), min(_SHOWN_HEADS, graph.layers * graph.heads))
    return AttentionJudgement(
        roles=list(pattern.roles),
        problems=pattern.prompts,
        heads={name: pattern.weights[layer, head].tolist() for name, (layer, head) in heads.items()},
    )


def _contrasts(workspace: Workspace, test: Sequence[Example]) -> tuple[Contrasts | None, int]:
    """Held-out problems with their counterfactuals, and how many have none."""
    rng, some = rng_for("judge", workspace.task, workspace.profile.data.seed), test[:_PROBLEMS]
    pairs, _ = make_pairs(some, "random", prompt_encoder(workspace.tokenizer, some), rng)
    made = make_contrasts(workspace.tokenizer, pairs) if pairs else None
    return made, len(some) - (len(made) if made else 0)


def _exactly(model: LlamaForCausalLM, found: Contrasts, scores: Scores, work: Work = QUIETLY) -> ExactCheck:
    """Holds the top of the ranking against exact patching: where the model is sure of its answer, the slope says little."""
    graph, level = Graph.of(model), scores.level
    names = list(graph.names(level))
    some = found.take(torch.arange(min(_CHECKED_PROBLEMS, len(found))))
    top_items = flat(scores.mean, graph, level).abs().argsort(descending=True, stable=True)[:_CHECKED].tolist()
    # Rows of many edges are means over folds: then some problems' scores are asked for anew.
    each = len(scores.rows) == len(found)
    own = (
        Scores(level, scores.rows[: len(some)], scores.sizes[: len(some)])
        if each
        else attribute(model, some, level, work=work)
    )
    checked = agreement(model, some, own, top_items, work)
    return ExactCheck(
        items=[names[i] for i in checked.items],
        attribution=list(checked.approximate),
        exact=list(checked.exact),
        spearman=None if math.isnan(checked.spearman) else checked.spearman,
        same_sign=checked.same_sign,
        problems=len(some),
    )


def _edges(
    model: LlamaForCausalLM, found: Contrasts, held: Contrasts, split: Encoded, means: PlacedMeans
) -> EdgeJudgement:
    graph = Graph.of(model)
    work = Work(batch_size=min(max(_OF_EDGES // (len(graph.nodes) * graph.width), 10), QUIETLY.batch_size))
    scores, count = attribute(model, found, "edge", work=work), graph.items("edge")
    circuit = top(scores.mean, math.ceil(SHARE * count), graph, "edge", absolute=True)
    some = split.select(torch.arange(min(_PROBLEMS, len(split))))
    some_held = held.take(torch.arange(min(_EDGE_PROBLEMS, len(held))), model.device)
    values, names = flat(scores.mean, graph, "edge"), graph.edges
    strongest = values.abs().argsort(descending=True, stable=True)[:_SHOWN_EDGES].tolist()
    return EdgeJudgement(
        edges=count,
        top={names[i]: float(values[i]) for i in strongest},
        faithfulness=_faithfulness(model, found, some_held, scores, work),
        accuracy=wilson(int(circuit_hits(model, some, [circuit], means.at, work).sum()), len(some)),
        exact=_exactly(model, found, scores, work),
        stability=_stability(scores, graph.edge_mask),
    )


def _stability(scores: Scores, exists: Tensor) -> float | None:
    value = scores.stability(exists)
    return value if math.isfinite(value) else None


def _faithfulness(
    model: LlamaForCausalLM, chosen_on: Contrasts, held: Contrasts, scores: Scores, work: Work = QUIETLY
) -> Faithfulness:
    """Magnitudes are of the problems that the scores are of.

    Raises:
        UserError: f is 0 divided by 0, of all problems or of draws of them.
        ValueError: scores are not finite.
    """
    found = evaluate(model, held, scores, Rivals(_DRAWS, magnitude(model, chosen_on, scores.level, work)), work=work)
    own = found["circuit"]
    if math.isnan(own["cpr_95"][0]) or math.isnan(own["cmd_95"][0]):
        raise UserError(
            f"f has no interval on {len(held)} problems: they are too few, or on draws of them f is 0 divided by 0"
        )
    return Faithfulness(
        items=found["items"],
        **own,
        metric_whole=found["metric_whole"],
        metric_empty=found["metric_empty"],
        problems=len(held),
        walked=found["walked"],
        magnitude=_baseline(found["magnitude"]),
        random=_baseline(found["random"]),
        on_noise=found["on_noise"],
    )


def _baseline(found: Mapping[str, Any]) -> Baseline:
    return Baseline(**{key: found[key] for key in Baseline.model_fields})


class _Interchange:
    """Which node carries a variable best on training problems, judged on held-out ones; pairs are the same for every row."""

    def __init__(self, model: LlamaForCausalLM, workspace: Workspace, test: Sequence[Example]) -> None:
        self._model, self._workspace = model, workspace
        self._splits = {"train": workspace.train_examples[:_CHOSEN_ON], "test": test[:_PROBLEMS]}
        self._tokens = prompt_encoder(workspace.tokenizer, [e for split in self._splits.values() for e in split])
        self._solved = {
            name: {example.prompt for example in solved(model, workspace.tokenizer, split)}
            for name, split in self._splits.items()
        }

    def judge(self, variable: Variable) -> InterchangeJudgement:
        """Judges one variable.

        Raises:
            UserError: the task has no such variable, or the model solves none of the problems that could be exchanged.
        """
        graph = Graph.of(self._model)
        found, _ = self._hits(variable, "train", all_nodes(graph))
        hits = found.sum(0)
        best = int(hits.argmax())
        judged, kept = self._hits(variable, "test", [best])
        control = self._control(variable, best)
        marks = iter(judged[:, 0].int().tolist())
        return InterchangeJudgement(
            variable=variable,
            node=graph.nodes[best],
            accuracy=wilson(int(judged.sum()), len(judged)),
            chosen=wilson(int(hits[best]), len(found)),
            control=control,
            marks="".join(str(next(marks)) if asked else "-" for asked in kept.tolist()),
        )

    def _control(self, variable: Variable, node: int) -> Proportion | None:
        """How often the answer stays where the variable does; None where the model solves no such pair: all else is known."""
        try:
            hits, _ = self._hits(variable, "test", [node], same=True)
        except UserError:
            return None
        return wilson(int(hits.sum()), len(hits))

    def _hits(
        self, variable: Variable, split: str, nodes: Sequence[int], *, same: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Hits [kept, nodes] of the pairs of which the model solves both problems, and which these are [pairs] bool."""
        rng = rng_for("judge-interchange", self._workspace.task, variable, split, same)
        problems = make_interchanges(
            self._workspace.tokenizer, self._splits[split], variable, rng, same=same, tokens=self._tokens
        )
        known = self._solved[split]
        kept = torch.tensor([all(example.prompt in known for example in pair) for pair in problems.pairs])
        if not bool(kept.any()):
            raise UserError("the model solves none of the problems that could be exchanged")
        return interchange_hits(self._model, problems.take(kept), nodes), kept


@torch.no_grad()
def perplexity(model: LlamaForCausalLM, split: Encoded) -> float:
    """exp of the mean cross-entropy of the answer's tokens and the end of text: what is left of the model's ability there."""
    total, count = 0.0, 0
    for rows in torch.arange(len(split)).split(_PROBLEMS):
        batch = split.take(rows).to(model.device)
        logits = answer_logits(model, batch)
        total += F.cross_entropy(
            logits.flatten(0, 1), batch.answer_tokens.flatten(), ignore_index=IGNORE, reduction="sum"
        ).item()
        count += int((batch.answer_tokens != IGNORE).sum())
    return math.exp(min(total / count, 700.0))


def changed(model: LlamaForCausalLM, base: LlamaForCausalLM) -> tuple[int, int]:
    """How many of a student's parameters differ from the base student's, of how many."""
    before = dict(base.named_parameters())  # what two names share is one parameter
    pairs = [(value, before[name]) for name, value in model.named_parameters()]
    return sum(int((a != b).sum()) for a, b in pairs), sum(a.numel() for a, _ in pairs)
