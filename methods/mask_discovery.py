"""Neuron-mask discovery (paper A, Method B: 4.2, Appendices B-D; errata B1-B7).

A small encoder sorts problems into K latent classes (straight-through Gumbel-Softmax); each class owns a neuron mask for
the student and one for the teacher. Both models stay as they are: the row's accuracy is the base student's.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from cdbench.api import (
    ActivationEncoder,
    MaskGenerator,
    Method,
    Outcome,
    Problem,
    ProblemEncoder,
    Signal,
    class_usage_entropy,
    k_selection_curve,
    kl_to_prior,
    mask_overlap_loss,
    mask_sparsity_loss,
    straight_through_classes,
    within_class_similarity,
)

Model = Literal["student", "teacher"]
MODELS: tuple[Model, ...] = ("student", "teacher")


@dataclass(frozen=True)
class MaskDiscovery(Method):
    classes: int = 8
    temperature: float = 0.5
    prior: float = 0.1
    steps: int = 1000
    batch_size: int = 128
    lr: float = 1e-3
    weight_similarity: float = 1.0
    weight_usage: float = 1.0
    weight_sparsity: float = 5.0
    weight_prior: float = 0.1
    weight_overlap: float = 5.0
    encoder: Literal["operands_result", "operands", "activations"] = "operands_result"
    neurons: Literal["neurons", "up"] = "neurons"
    usage_as_printed: bool = False
    similarity_as_printed: bool = False
    overlap_as_printed: bool = False

    def run(self, problem: Problem) -> Outcome:
        layers: dict[Model, int] = {"student": problem.student_layers, "teacher": problem.teacher_layers}
        neurons = {m: all_layers(problem, m, layers[m], self.neurons) for m in MODELS}
        draw = problem.generator("masks")
        parts, encoder = self.encoding(problem, draw)
        generators = {model: MaskGenerator(self.classes, neurons[model].shape[1], 4, draw) for model in MODELS}
        modules = [encoder, *generators.values()]
        optimizer = torch.optim.Adam([p for module in modules for p in module.parameters()], lr=self.lr)
        for step in range(1, self.steps + 1):
            rows = torch.randint(len(parts), (self.batch_size,), generator=draw)
            assignment = straight_through_classes(encoder(parts[rows]), self.temperature, draw)
            losses = self.losses(
                {m: neurons[m][rows] for m in MODELS}, {m: generators[m]() for m in MODELS}, assignment
            )
            total = losses["total"]
            optimizer.zero_grad()
            total.backward()
            optimizer.step()
            if step % 5 == 0 or step == self.steps:
                problem.log(step, **{f"loss/{name}": value.item() for name, value in losses.items()})
        with torch.no_grad():
            classes = encoder(parts).argmax(1)
            masks = {model: generators[model]() for model in MODELS}
        used = torch.bincount(classes, minlength=self.classes)
        largest = int(used.argmax())
        curves: dict[str, list[float]] = {
            m: k_selection_curve(neurons[m][classes == largest][:500], 12, problem.seed) for m in MODELS
        }
        extras = {
            "class_sizes": used.tolist(),
            "k_selection": {"class": largest} | curves,
            # One line each, so that a record of four thousand problems can still be read.
            "problem_classes": {
                "operands": ";".join(" ".join(map(str, example.operands)) for example in problem.train),
                "answers": " ".join(example.answer for example in problem.train),
                "classes": " ".join(map(str, classes.tolist())),
            },
        }
        return Outcome(masks={str(model): mask for model, mask in masks.items()}, extras=extras)

    def encoding(self, problem: Problem, draw: torch.Generator) -> tuple[Tensor, torch.nn.Module]:
        """What the encoder reads, a row a problem, and the encoder: numbers (4.2.5), or activations (4.2.1; errata B1)."""
        if self.encoder == "activations":
            read = all_layers(problem, "student", problem.student_layers, "out")
            return (read - read.mean(0)) / read.std(0).clamp(min=1e-6), ActivationEncoder(
                read.shape[1], 32, self.classes, draw
            )
        parts = problem_parts(problem, with_result=self.encoder == "operands_result")
        sizes = [int(parts[:, i].max()) + 1 for i in range(parts.shape[1])]
        return parts, ProblemEncoder(sizes, [64, 64, 128][: len(sizes)], 32, self.classes, draw)

    def losses(self, neurons: dict[Model, Tensor], masks: dict[Model, Tensor], assignment: Tensor) -> dict[str, Tensor]:
        """The five terms of Appendix B, each the mean over the two models, and their weighted sum."""
        both = list(masks.values())
        similarity = [
            within_class_similarity(neurons[m], masks[m], assignment, as_printed=self.similarity_as_printed)
            for m in masks
        ]
        terms = {
            "similarity": torch.stack(similarity).mean(),
            "usage": class_usage_entropy(assignment) * (1.0 if self.usage_as_printed else -1.0),
            "sparsity": torch.stack([mask_sparsity_loss(m) for m in both]).mean(),
            "prior": torch.stack([kl_to_prior(m, self.prior) for m in both]).mean(),
            "overlap": torch.stack([mask_overlap_loss(m, as_printed=self.overlap_as_printed) for m in both]).mean(),
        }
        weights = (
            self.weight_similarity,
            self.weight_usage,
            self.weight_sparsity,
            self.weight_prior,
            self.weight_overlap,
        )
        total = sum((w * term for w, term in zip(weights, terms.values(), strict=True)), torch.zeros(()))
        return terms | {"total": total}


def all_layers(problem: Problem, model: Model, layers: int, part: str) -> Tensor:
    """[n, width of all layers]: a model's MLP signals at the last prompt token, layer after layer."""
    return torch.cat([problem.signal(Signal(f"mlp.{i}.{part}", source=model)).float() for i in range(layers)], dim=1)


def problem_parts(problem: Problem, *, with_result: bool) -> Tensor:
    """[n, 3] or [n, 2] indices of o1, o2 and r, each counted from its smallest value."""
    rows = [
        [*example.operands, int(example.answer)] if with_result else [*example.operands] for example in problem.train
    ]
    table = torch.tensor(rows)
    return table - table.min(0).values
