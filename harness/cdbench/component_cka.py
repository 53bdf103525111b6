"""How alike the components of a student's circuit are to those of the teacher's (paper B, 5.2), as the evaluator measures it."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict

from torch import Tensor
from transformers import LlamaForCausalLM

from cdbench.api import Components, Example
from cdbench.circuits.components import Pairs, is_head, pair_components, pairing_support, top_components
from cdbench.record import ComponentCka, PairingSupport
from cdbench.signals import SiteAt, signals_of
from cdbench.similarity import cka_matrices
from cdbench.tokens import Encoded, encode
from cdbench.workspace import Workspace

_SHOWN = 12


def component_cka(
    model: LlamaForCausalLM, workspace: Workspace, test: Sequence[Example], own: Components, share: float
) -> ComponentCka:
    """Debiased CKA of components at the last prompt token: of the same pairs for every row, and of the top components of either.

    The pairs are functional ones of the models before training, the ones that `atp_cd` aligns: for that row this measures what it
    was trained on. The best matches are of the trained student's own circuit, with anybody but their partners.

    Raises:
        ValueError: no two components are of one kind, or one is constant over the problems.
    """
    student, teacher = (workspace.components(model, "attribution") for model in ("student", "teacher"))
    pairs = pair_components(student, teacher, share)
    if not pairs:
        raise ValueError("the circuits of student and teacher have no two components of one kind")
    circuits = [top_components(each, share) for each in (own, teacher)]
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
        support=PairingSupport(**asdict(pairing_support(student, teacher, share))),
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
