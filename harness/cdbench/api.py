"""The contract a plug-in author sees. A file in `tasks/` or `methods/` imports this module and nothing else of ours.

    Task             draws one example
    Method           turns a Problem into an Outcome, however it likes
    ObjectiveMethod  names loss terms and leaves the training to the shared loop
    Term             one loss term: what it reads, its weight, its value

The built-in terms and tools (`CrossEntropy`, `Kl`, `CkaAlignment`, the mask networks of `cdbench.circuits.masks`) are
re-exported here on first use, so that importing the contract costs no torch.
"""

import random
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar, Literal, final

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

    from cdbench.circuits.components import other_components, pair_components, random_partners, top_components
    from cdbench.circuits.masks import (
        ActivationEncoder,
        MaskGenerator,
        ProblemEncoder,
        class_usage_entropy,
        k_selection_curve,
        kl_to_prior,
        mask_overlap_loss,
        mask_sparsity_loss,
        straight_through_classes,
        within_class_similarity,
    )
    from cdbench.circuits.subnetwork import shared_parameters
    from cdbench.objectives.cka_alignment import CkaAlignment, shuffled_rows
    from cdbench.objectives.cross_entropy import CrossEntropy
    from cdbench.objectives.global_cka import GlobalCka, make_probe
    from cdbench.objectives.kl import Kl

_REEXPORTS = {
    "ActivationEncoder": "cdbench.circuits.masks",
    "CkaAlignment": "cdbench.objectives.cka_alignment",
    "GlobalCka": "cdbench.objectives.global_cka",
    "CrossEntropy": "cdbench.objectives.cross_entropy",
    "Kl": "cdbench.objectives.kl",
    "MaskGenerator": "cdbench.circuits.masks",
    "ProblemEncoder": "cdbench.circuits.masks",
    "class_usage_entropy": "cdbench.circuits.masks",
    "k_selection_curve": "cdbench.circuits.masks",
    "kl_to_prior": "cdbench.circuits.masks",
    "mask_overlap_loss": "cdbench.circuits.masks",
    "mask_sparsity_loss": "cdbench.circuits.masks",
    "make_probe": "cdbench.objectives.global_cka",
    "other_components": "cdbench.circuits.components",
    "pair_components": "cdbench.circuits.components",
    "shared_parameters": "cdbench.circuits.subnetwork",
    "random_partners": "cdbench.circuits.components",
    "shuffled_rows": "cdbench.objectives.cka_alignment",
    "straight_through_classes": "cdbench.circuits.masks",
    "top_components": "cdbench.circuits.components",
    "within_class_similarity": "cdbench.circuits.masks",
}

__all__ = [
    "ActivationEncoder",
    "CkaAlignment",
    "Components",
    "CrossEntropy",
    "Example",
    "GlobalCka",
    "Kl",
    "MaskGenerator",
    "Method",
    "ObjectiveMethod",
    "Outcome",
    "Problem",
    "ProblemEncoder",
    "Signal",
    "Solution",
    "Task",
    "Term",
    "TermInputs",
    "class_usage_entropy",
    "k_selection_curve",
    "kl_to_prior",
    "make_probe",
    "mask_overlap_loss",
    "mask_sparsity_loss",
    "other_components",
    "pair_components",
    "random_partners",
    "shared_parameters",
    "shuffled_rows",
    "straight_through_classes",
    "top_components",
    "within_class_similarity",
]


def __getattr__(name: str) -> Any:
    if name not in _REEXPORTS:
        raise AttributeError(f"module 'cdbench.api' has no attribute {name!r}")
    return getattr(import_module(_REEXPORTS[name]), name)


Position = Literal["last_prompt", "all"]
Source = Literal["teacher", "untrained_teacher", "student"]


@dataclass(frozen=True)
class Example:
    """One problem. `prompt + answer` is the text a model should produce; the end-of-text token is the harness's."""

    prompt: str
    answer: str
    operands: tuple[int, ...]


class Task(ABC):
    """Draws examples. Splits, counterfactuals, length shift and leak checks are the harness's.

    Law: the answer is a function of the prompt. Two examples with the same operands (in any order) and the same answer
    are taken for twins and never stand on two sides of a split (errata A11).
    """

    length_shift: ClassVar[tuple[str, ...]] = ()
    """Names of the tasks whose test problems are this task's out-of-distribution sets."""

    @abstractmethod
    def draw(self, rng: random.Random) -> Example:
        """One example, all randomness from `rng`."""


@dataclass(frozen=True)
class Signal:
    """Something that a frozen model computes on the training split, once, and every run reuses.

    Attributes:
        site: "logits" (at the answer positions), "mlp.3.out", "mlp.3.neurons", "attn.5.head.2".
        position: the last prompt token (the "="), or all positions, padding included.
        source: which frozen model; the untrained teacher is the teacher's architecture at initialisation, and the
            student is the student before training.
    """

    site: str
    position: Position = "last_prompt"
    source: Source = "teacher"


class TermInputs(ABC):
    """What one training step shows a term. `b` problems, `a` answer positions (answer tokens, then end of text)."""

    @property
    @abstractmethod
    def logits(self) -> "Tensor":
        """The student's logits at the answer positions, [b, a, vocabulary], float32, with gradient."""

    @property
    @abstractmethod
    def answer_tokens(self) -> "Tensor":
        """The token to predict at each answer position, [b, a]; -100 where the answer is shorter."""

    @property
    @abstractmethod
    def rows(self) -> "Tensor":
        """The index of each of the `b` problems in the training split, [b]."""

    @abstractmethod
    def student(self, site: str, position: Position = "last_prompt") -> "Tensor":
        """The student's activation, [b, width] or [b, positions, width], with gradient."""

    @abstractmethod
    def teacher(self, signal: Signal, rows: "Tensor | None" = None) -> "Tensor":
        """A teacher signal for this batch, or for other rows of the training split, [b, ...], without gradient."""


class Term(ABC):
    """One loss term. The loop adds `weight * loss(...)`, logs value and gradient norm, and refuses a spectator.

    Law: a term with weight > 0 has a gradient to the student on its first step (errata A9).
    """

    weight: float
    name: str

    @property
    @abstractmethod
    def student_sites(self) -> tuple[str, ...]:
        """The student activations that `loss` reads."""

    @property
    @abstractmethod
    def signals(self) -> tuple[Signal, ...]:
        """The teacher signals that `loss` reads."""

    @property
    def learned(self) -> "tuple[Tensor, ...]":
        """Leaf tensors of the term's own that are trained along with the student and discarded after, such as a probe."""
        return ()

    @abstractmethod
    def loss(self, inputs: TermInputs) -> "Tensor":
        """The unweighted value, a scalar with gradient."""


@dataclass(frozen=True)
class Components:
    """Importance of a model's heads and MLPs on problems of the training split.

    Attributes:
        sites: "attn.0.head.3", "mlp.0.out", in the order in which they write into the residual stream.
        scores: [n, sites], positive = helpful; row i is the same problem for teacher and student.
    """

    sites: tuple[str, ...]
    scores: "Tensor"

    @property
    def mean(self) -> "Tensor":
        """Mean importance, [sites]."""
        return self.scores.double().mean(0)

    @property
    def heads(self) -> "Components":
        """The heads alone."""
        chosen = [i for i, site in enumerate(self.sites) if site.startswith("attn")]
        return Components(tuple(self.sites[i] for i in chosen), self.scores[:, chosen])


@dataclass(frozen=True)
class Solution:
    """A problem worked out: what a model writes after the prompt, up to and with the answer.

    Attributes:
        text: "7+5=12 4+8+1=13 =132" for "47+85=".
        by_teacher: whether the teacher wrote it; else the rule of column-wise arithmetic did.
    """

    text: str
    by_teacher: bool


@dataclass(frozen=True)
class Outcome:
    """What a method returns. `weights` None means that the student was not touched.

    Attributes:
        weights: state dict of the student, same names and shapes as it came.
        masks: "student" and/or "teacher": [classes, layers * neurons], values in (0, 1).
        extras: JSON-serialisable curves and tables for the report.
    """

    weights: "Mapping[str, Tensor] | None" = None
    masks: "Mapping[str, Tensor]" = field(default_factory=dict)
    extras: Mapping[str, Any] = field(default_factory=dict)


class Problem(ABC):
    """Everything a method may see: the base student, the training and validation splits, signals of frozen models.

    No held-out problem is reachable from here: the evaluator holds those, in another process.
    """

    student: "LlamaForCausalLM"
    tokenizer: "PreTrainedTokenizerFast"
    train: Sequence[Example]
    validation: Sequence[Example]
    seed: int
    student_layers: int
    teacher_layers: int

    @abstractmethod
    def pairs(self) -> tuple[tuple[int, int], ...]:
        """The functional layer pairing, (student layer, teacher layer) by ablation impact (paper A, 4.1.3)."""

    @abstractmethod
    def components(self, model: Literal["teacher", "student"], by: Literal["attribution", "ablation"]) -> Components:
        """Heads and MLPs by attribution patching (logit difference lost) or mean ablation (accuracy lost), before training."""

    @abstractmethod
    def signal(self, signal: Signal) -> "Tensor":
        """A frozen model's signal on the whole training split, [n, ...], in the order of `train`."""

    @abstractmethod
    def solutions(self) -> Sequence[Solution]:
        """A worked solution of each training problem, the teacher's own where it writes one that ends in the right answer."""

    @abstractmethod
    def generator(self, *scope: str | int) -> "torch.Generator":
        """A generator of its own for this run and scope."""

    @abstractmethod
    def rng(self, *scope: str | int) -> random.Random:
        """The same for Python's generator."""

    @abstractmethod
    def log(self, step: int, **values: float) -> None:
        """Adds a line to the run's history (and so to MLflow and the report)."""

    @abstractmethod
    def fit(self, terms: "Sequence[Term]", only: Sequence[str] = (), answers: Sequence[str] = ()) -> Outcome:
        """Trains the student on the weighted sum of the terms with the profile's training budget.

        `only` names heads and MLPs ("attn.0.head.3", "mlp.0.out"): then nothing but their parameters changes. `answers`, one for
        each training problem, are what to write instead of its answer, such as a worked solution: then a term's
        `answer_tokens` are theirs, and only signals at the last prompt token can be read. Called again, it goes on with the
        weights that it returned before, with a new optimizer and the whole budget.
        """


class Method(ABC):
    """A way to improve (or look into) the student. Subclass it as a frozen dataclass: its fields are its
    hyperparameters, each with a default, and what is logged is what ran."""

    @abstractmethod
    def run(self, problem: Problem) -> Outcome:
        """Does the work. It may train `problem.student` in place."""


class ObjectiveMethod(Method):
    """A method that is nothing but its loss terms; the shared loop does the training."""

    @abstractmethod
    def terms(self, problem: Problem) -> "Sequence[Term]":
        """The terms of the objective, in the order in which they are logged."""

    @final
    def run(self, problem: Problem) -> Outcome:
        return problem.fit(self.terms(problem))
