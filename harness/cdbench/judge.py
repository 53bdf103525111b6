"""What the evaluator says of a model's circuit (paper B, 5.2): how faithful it is, what it can do alone, what it carries.

The circuit is found on the training split and judged on held-out problems, in the same way for every row: attribution patching
ranks the nodes and the edges of the trained student. The first half of the nodes, by score, is its circuit.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import LlamaForCausalLM

from cdbench.api import Components, Example
from cdbench.circuits.arithmetic import Variable, make_pairs
from cdbench.circuits.attribution import QUIETLY, Work, attribute
from cdbench.circuits.components import Pairs, components, is_head, pair_components, top_components
from cdbench.circuits.contrasts import Contrasts, make_contrasts
from cdbench.circuits.discovery import agreement, flat
from cdbench.circuits.evaluation import Rivals, evaluate
from cdbench.circuits.faithfulness import circuit_end, magnitude
from cdbench.circuits.forward import Forward
from cdbench.circuits.graph import Circuit, Graph, top
from cdbench.circuits.interchange import interchange_hits, make_interchanges, solved
from cdbench.circuits.patching import PlacedMeans, all_nodes, hits_at, placed_means
from cdbench.circuits.scores import Scores
from cdbench.errors import UserError
from cdbench.record import (
    Baseline,
    CircuitJudgement,
    ComponentCka,
    EdgeJudgement,
    ExactCheck,
    Faithfulness,
    InterchangeJudgement,
)
from cdbench.seeds import rng_for
from cdbench.signals import SiteAt, signals_of
from cdbench.similarity import cka_matrices
from cdbench.sites import answer_logits
from cdbench.stats import wilson
from cdbench.tokens import IGNORE, Encoded, encode, prompt_ids
from cdbench.workspace import Workspace

SHARE = 0.5
"""The share of the nodes, and of the edges, that counts as the circuit."""
_PROBLEMS = 500
_OF_EDGES = Work(batch_size=25)
"""With a stream for each reader, memory goes with their number."""
_EDGE_PROBLEMS = 200
_DRAWS = 3
_SHOWN = 12
_SHOWN_EDGES = 40
_CHECKED, _CHECKED_PROBLEMS = 10, 200
"""How many nodes are patched exactly, and on how many problems."""
_VARIABLE: Variable = "ones_carry"


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
        circuit = top(scores.mean, math.ceil(SHARE * len(graph.nodes)), graph, "node")
    except ValueError as error:
        raise NotJudged(f"the nodes cannot be ranked: {error}") from None
    calibration = workspace.train_examples[: workspace.profile.circuits.calibration]
    means = placed_means(model, encode(workspace.tokenizer, calibration))
    split = encode(workspace.tokenizer, test)
    low, high = scores.interval() or (scores.mean, scores.mean)
    rest = ~circuit.nodes
    rest[0] = True  # the embedding stays: without it no model knows its problem, whatever its circuit
    whole, alone, ablated = (
        int(_alone(model, split, means, each).sum()) for each in (Circuit.whole(graph), circuit, Circuit(graph, rest))
    )
    reasons = _Reasons()
    own = components(graph, scores)
    return CircuitJudgement(
        problems=len(held),
        found_on=len(found),
        left_out=without + len(calibration) - len(found),
        nodes=list(graph.nodes),
        importance=scores.mean.tolist(),
        importance_low=low.tolist(),
        importance_high=high.tolist(),
        exact=_exactly(model, found, scores),
        circuit=circuit.names,
        faithfulness=reasons.part("faithfulness", lambda: _faithfulness(model, found, held, scores)),
        accuracy=wilson(alone, len(test)),
        ablated=wilson(ablated, len(test)),
        alone_share=alone / whole if whole else None,
        ablated_share=ablated / whole if whole else None,
        edges=reasons.part("edges", lambda: _edges(model, found, held, split, means)),
        interchange=reasons.part("interchange", lambda: _interchange(model, workspace, test)),
        cka=None if reference else reasons.part("cka", lambda: component_cka(model, workspace, test, own)),
        not_judged=reasons.missing,
    )


def _contrasts(workspace: Workspace, test: Sequence[Example]) -> tuple[Contrasts | None, int]:
    """Held-out problems with their counterfactuals, and how many have none."""
    rng, some = rng_for("judge", workspace.task, workspace.profile.data.seed), test[:_PROBLEMS]
    pairs, _ = make_pairs(some, "random", lambda text: prompt_ids(workspace.tokenizer, text), rng)
    made = make_contrasts(workspace.tokenizer, pairs) if pairs else None
    return made, len(some) - (len(made) if made else 0)


def _exactly(model: LlamaForCausalLM, found: Contrasts, scores: Scores) -> ExactCheck:
    """Holds the top of the ranking against exact patching: where the model is sure of its answer, the slope says little."""
    some = torch.arange(min(_CHECKED_PROBLEMS, len(found)))
    graph, ranked = Graph.of(model), Scores("node", scores.rows[some], scores.sizes[some])
    nodes = scores.mean.abs().argsort(descending=True, stable=True)[:_CHECKED].tolist()
    checked = agreement(model, found.take(some), ranked, nodes)
    return ExactCheck(
        nodes=[graph.nodes[i] for i in checked.items],
        attribution=list(checked.approximate),
        exact=list(checked.exact),
        spearman=None if math.isnan(checked.spearman) else checked.spearman,
        same_sign=checked.same_sign,
        problems=len(some),
    )


def _edges(
    model: LlamaForCausalLM, found: Contrasts, held: Contrasts, split: Encoded, means: PlacedMeans
) -> EdgeJudgement:
    graph, scores = Graph.of(model), attribute(model, found, "edge", work=_OF_EDGES)
    count = graph.items("edge")
    circuit = top(scores.mean, math.ceil(SHARE * count), graph, "edge", absolute=True)
    some = split.select(torch.arange(min(_PROBLEMS, len(split))))
    some_held = held.take(torch.arange(min(_EDGE_PROBLEMS, len(held))), model.device)
    values, names = flat(scores.mean, graph, "edge"), graph.edges
    strongest = values.abs().argsort(descending=True, stable=True)[:_SHOWN_EDGES].tolist()
    return EdgeJudgement(
        edges=count,
        top={names[i]: float(values[i]) for i in strongest},
        faithfulness=_faithfulness(model, found, some_held, scores, _OF_EDGES),
        accuracy=wilson(int(_alone(model, some, means, circuit, _OF_EDGES).sum()), len(some)),
    )


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
        raise UserError(f"on draws of the {len(held)} problems f is 0 divided by 0: it has no interval")
    return Faithfulness(
        items=found["items"],
        **own,
        metric_whole=found["metric_whole"],
        metric_empty=found["metric_empty"],
        problems=len(held),
        magnitude=Baseline(**{key: found["magnitude"][key] for key in ("cpr", "cmd")}),
        random=Baseline(**{key: found["random"][key] for key in ("cpr", "cmd")}),
        on_noise=found["on_noise"],
    )


@torch.no_grad()
def _alone(
    model: LlamaForCausalLM, split: Encoded, means: PlacedMeans, circuit: Circuit, work: Work = QUIETLY
) -> Tensor:
    """[n] bool: whether the circuit alone gives the answer, everything else at its mean over training problems at that place."""
    forward, hits = Forward(model), []
    for rows in torch.arange(len(split)).split(work.batch_size):
        batch = split.take(rows).to(model.device)
        end = circuit_end(forward, forward.embed(batch.ids), means.at(batch), circuit)
        at_answer = end[torch.arange(len(batch), device=end.device)[:, None], batch.answer_positions]
        hits.append(hits_at(forward, at_answer, batch).cpu())
    return torch.cat(hits)


def _interchange(model: LlamaForCausalLM, workspace: Workspace, test: Sequence[Example]) -> InterchangeJudgement:
    """The node that carries the ones' carry best on training problems, judged on held-out ones.

    Raises:
        UserError: the task has no carry, or the model solves none of the problems that could be exchanged.
    """

    def hits(split: Sequence[Example], name: str, nodes: Sequence[int], *, same: bool = False) -> Tensor:
        """Of pairs that are the same for every row, those of which the model solves both problems."""
        rng = rng_for("judge-interchange", workspace.task, name)
        problems = make_interchanges(workspace.tokenizer, split[:_PROBLEMS], _VARIABLE, rng, same=same)
        known = {example.prompt for example in solved(model, workspace.tokenizer, split[:_PROBLEMS])}
        kept = [i for i, pair in enumerate(problems.pairs) if all(example.prompt in known for example in pair)]
        if not kept:
            raise UserError("the model solves none of the problems that could be exchanged")
        return interchange_hits(model, problems, nodes)[kept]

    graph = Graph.of(model)
    best = int(hits(workspace.train_examples, "train", all_nodes(graph)).sum(0).argmax())
    judged = hits(test, "test", [best])[:, 0]
    control = hits(test, "control", [best], same=True)[:, 0]
    return InterchangeJudgement(
        variable=_VARIABLE,
        node=graph.nodes[best],
        accuracy=wilson(int(judged.sum()), len(judged)),
        control=wilson(int(control.sum()), len(control)),
    )


def component_cka(
    model: LlamaForCausalLM, workspace: Workspace, test: Sequence[Example], own: Components
) -> ComponentCka:
    """Debiased CKA of components at the last prompt token: of the same pairs for every row, and of the top components of either.

    The pairs are functional ones of the models before training, the ones that `atp_cd` aligns: for that row this measures what it
    was trained on. The best matches are of the trained student's own circuit, with anybody but their partners.

    Raises:
        ValueError: no two components are of one kind, or one is constant over the problems.
    """
    teacher = workspace.components("teacher", "attribution")
    pairs = pair_components(workspace.components("student", "attribution"), teacher, SHARE)
    if not pairs:
        raise ValueError("the circuits of student and teacher have no two components of one kind")
    circuits = [top_components(each, SHARE) for each in (own, teacher)]
    mine, theirs = (top_components(each, min(1.0, _SHOWN / len(each.sites)))[:_SHOWN] for each in (own, teacher))
    split = encode(workspace.tokenizer, test)
    first = _activations(model, split, [*mine, *circuits[0], *(s for s, _ in pairs)])
    frozen = workspace.teacher.model(workspace.profile.device)
    second = _activations(frozen, split, [*theirs, *circuits[1], *(t for _, t in pairs)])
    biased, debiased = zip(*(_of_pair(first, second, pair) for pair in pairs), strict=True)
    matrix = cka_matrices([first[s] for s in mine], [second[t] for t in theirs])[1]
    ours, targets = ({s: found[s] for s in c} for found, c in zip((first, second), circuits, strict=True))
    return ComponentCka(
        pairs=list(pairs),
        debiased=list(debiased),
        debiased_mean=sum(debiased) / len(pairs),
        biased_mean=sum(biased) / len(pairs),
        best_mean=_best_matches(ours, targets, pairs),
        student=list(mine),
        teacher=list(theirs),
        matrix=matrix.tolist(),
    )


def _activations(model: LlamaForCausalLM, split: Encoded, sites: Sequence[str]) -> Mapping[str, Tensor]:
    wanted: list[SiteAt] = [(site, "last_prompt") for site in dict.fromkeys(sites)]
    return {site: value for (site, _), value in signals_of(model, split, wanted).items()}


def _best_matches(student: Mapping[str, Tensor], teacher: Mapping[str, Tensor], pairs: Pairs) -> float | None:
    """Mean over the student's components of the largest CKA with one of the teacher's of its kind; None where there is none.

    A component's partner among `pairs` is no candidate: some methods are trained on those.
    """
    best: list[float] = []
    for head in (True, False):
        mine, theirs = ([site for site in found if is_head(site) == head] for found in (student, teacher))
        if not mine or not theirs:
            continue
        matrix = cka_matrices([student[s] for s in mine], [teacher[t] for t in theirs])[1]
        for s, row in zip(mine, matrix.tolist(), strict=True):
            free = [value for t, value in zip(theirs, row, strict=True) if (s, t) not in pairs]
            best += [max(free)] if free else []
    return sum(best) / len(best) if best else None


def _of_pair(first: Mapping[str, Tensor], second: Mapping[str, Tensor], pair: tuple[str, str]) -> tuple[float, float]:
    """CKA of one pair, biased and debiased. Names it where a component is constant."""
    student, teacher = pair
    try:
        biased, debiased = cka_matrices([first[student]], [second[teacher]])
    except ValueError as error:
        raise ValueError(f"student {student} and teacher {teacher}: {error}") from None
    return float(biased[0, 0]), float(debiased[0, 0])


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
