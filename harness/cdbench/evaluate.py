"""The sealed evaluator: weights in, numbers out. It imports no plug-in and believes nothing but tensors."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from cdbench.api import Example
from cdbench.circuits.agreement import depth_agreement, layer_shares, overlap_agreement
from cdbench.errors import CdbenchError
from cdbench.generation import generate
from cdbench.predictions import Prediction, score
from cdbench.record import Agreement, Cka, MaskAgreement, MaskSummary
from cdbench.similarity import cka_matrices
from cdbench.sites import answer_logits
from cdbench.tokens import IGNORE, Encoded

_NEAR = 0.05
"""A mask entry so near to 0 or 1 is as good as binary."""
MOST_CLASSES = 64
"""Every pair of classes is compared: ten thousand would take the evaluator hours."""
_TEACHERS = 0.02
"""Logits within this part of the teacher's are the teacher's: rounded to bfloat16 its own are 0.35 % away."""
_ASKED = 100
"""Held-out problems on which a student is held against its teacher."""


class Refused(CdbenchError):
    """What the method handed over is not a student of this benchmark."""


def _tensors(file: Path) -> dict[str, Tensor]:
    """The tensors of a regular safetensors file; a link, a pipe or a pickle is refused."""
    if file.is_symlink() or not file.is_file():
        raise Refused(f"{file.name} is not a regular file")
    try:
        return load_file(file)
    except (SafetensorError, OSError) as error:
        raise Refused(f"{file.name} is not a safetensors file ({error})") from None


def load_student(model: LlamaForCausalLM, file: Path) -> LlamaForCausalLM:
    """Loads exported weights into the student's own architecture, strictly.

    Raises:
        Refused: no regular safetensors file, other names or shapes, integers, NaN or infinity.
    """
    state = _tensors(file)
    own = model.state_dict()
    missing, extra = sorted(set(own) - set(state)), sorted(set(state) - set(own))
    if missing or extra:
        what = f"lack {missing[0]}" if missing else f"hold {extra[0]}, which the student has not"
        raise Refused(f"the exported weights {what}: they are of another architecture")
    for name, value in state.items():
        if value.shape != own[name].shape:
            raise Refused(f"{name} has shape {tuple(value.shape)}, the student's has {tuple(own[name].shape)}")
        # After the cast: what is finite in float64 may be infinite in the student's own type.
        if not value.is_floating_point() or not bool(torch.isfinite(value.to(own[name].dtype)).all()):
            raise Refused(f"{name} holds values that are not finite floating-point numbers")
    model.load_state_dict(state, strict=True)
    return model.eval()


@torch.no_grad()
def require_own(student: LlamaForCausalLM, base: LlamaForCausalLM, teacher: LlamaForCausalLM, split: Encoded) -> None:
    """Checks that a student of its teacher's architecture is not the teacher handed in, in whatever disguise.

    Neurons in another order, noise or rounding change the weights and not what is computed; a scale changes the logits, and no
    answer; nor does anything that moves the logits of tokens that stand in no answer, which are left out here. Where the student
    was near its teacher before training, it may come ten times as near.

    Raises:
        Refused: its logits of the answers' tokens are the teacher's, or not finite.
    """
    some = split.take(torch.arange(min(_ASKED, len(split)))).to(teacher.device)
    words = some.answer_tokens[some.answer_tokens != IGNORE].unique()
    theirs, before, after = (answer_logits(model, some)[..., words] for model in (teacher, base, student))
    if not bool(torch.isfinite(after).all()):
        raise Refused("the exported weights give logits that are not finite on held-out problems")
    theirs, before, after = (_unit(logits) for logits in (theirs, before, after))
    apart, apart_before = (float((logits - theirs).norm()) for logits in (after, before))
    if apart < min(_TEACHERS, apart_before / 10):
        raise Refused(
            f"the exported weights compute what the teacher computes: on held-out problems their logits, but for the scale, are "
            f"{apart:.2%} away from its own, those of the student before training {apart_before:.2%}"
        )


def _unit(logits: Tensor) -> Tensor:
    """Without what a softmax does not see, a shift of each row, and without the scale of all, which changes no order."""
    centred = logits.double() - logits.double().mean(-1, keepdim=True)
    return centred.div_(centred.norm())


def predict(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, examples: Sequence[Example], batch_size: int
) -> list[Prediction]:
    """Generates and scores a split."""
    texts = generate(model, tokenizer, examples, batch_size)
    return [score(example.prompt, example.answer, text) for example, text in zip(examples, texts, strict=True)]


def compare_representations(
    student: Sequence[Tensor], teacher: Sequence[Tensor], pairs: Sequence[tuple[int, int]]
) -> Cka:
    """CKA matrices (student x teacher) and their means over the method-independent pairs.

    Raises:
        Refused: a layer that is constant over the problems has no CKA.
    """
    try:
        biased, debiased = cka_matrices(student, teacher)
    except ValueError as error:
        raise Refused(f"no CKA between student (xs) and teacher (ys): {error}") from None
    means = [sum(matrix[s, t].item() for s, t in pairs) / len(pairs) for matrix in (debiased, biased)]
    return Cka(
        n=len(student[0]),
        pairs=list(pairs),
        debiased_mean=means[0],
        biased_mean=means[1],
        debiased=debiased.tolist(),
        biased=biased.tolist(),
    )


def load_masks(file: Path, neurons: Mapping[str, int]) -> dict[str, Tensor]:
    """Loads exported neuron masks.

    Raises:
        Refused: no safetensors file, an unknown name, a wrong width, more than 64 classes, or values outside [0, 1].
    """
    masks = _tensors(file)
    for name, mask in masks.items():
        if name not in neurons:
            raise Refused(f"masks for '{name}'; expected {' or '.join(neurons)}")
        if mask.ndim == 2 and not 1 <= len(mask) <= MOST_CLASSES:
            raise Refused(f"masks of '{name}' are of {len(mask)} classes; 1 to {MOST_CLASSES} can be compared")
        if mask.ndim != 2 or mask.shape[1] != neurons[name]:
            raise Refused(f"masks of '{name}' have shape {tuple(mask.shape)}, expected [classes, {neurons[name]}]")
        if not bool(((mask >= 0) & (mask <= 1)).all()):
            raise Refused(f"masks of '{name}' hold values outside [0, 1]")
    return masks


def summarise_masks(masks: Tensor, layers: int) -> MaskSummary:
    """Sparsity and overlap of [classes, layers * neurons] masks; overlap and cosine are means over pairs of classes."""
    on = masks >= 0.5
    pairs = [(i, j) for i in range(len(masks)) for j in range(i)]
    jaccard, cosine = [], []
    for i, j in pairs:
        union = int((on[i] | on[j]).sum())
        jaccard.append(int((on[i] & on[j]).sum()) / union if union else 0.0)
        cosine.append(torch.nn.functional.cosine_similarity(masks[i].double(), masks[j].double(), dim=0).item())
    return MaskSummary(
        classes=masks.shape[0],
        neurons=masks.shape[1],
        sparsity=1 - on.double().mean().item(),
        mean_value=masks.double().mean().item(),
        overlap=sum(jaccard) / len(pairs) if pairs else 0.0,
        cosine=sum(cosine) / len(pairs) if pairs else 0.0,
        binary=((masks < _NEAR) | (masks > 1 - _NEAR)).double().mean().item(),
        by_layer=layer_shares(on.numpy(), layers).tolist(),
    )


def compare_masks(student: Tensor, teacher: Tensor, layers: tuple[int, int]) -> MaskAgreement | None:
    """Agreement of two models' masks of the same classes; None where they have not the same number of classes."""
    if len(student) != len(teacher):
        return None
    first, second = (student >= 0.5).numpy(), (teacher >= 0.5).numpy()
    found = [overlap_agreement(first, second), depth_agreement(first, second, layers)]
    overlap, depth = (Agreement(**asdict(f), above_null=f.value - f.null_mean) if f else None for f in found)
    return MaskAgreement(overlap=overlap, depth=depth)
