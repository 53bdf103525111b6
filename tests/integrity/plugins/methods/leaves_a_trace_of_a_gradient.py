"""Its term is cut off from the student but for a trace, so that its gradient is not quite nothing."""

from dataclasses import dataclass

from torch import Tensor

from cdbench.api import CkaAlignment, CrossEntropy, ObjectiveMethod, Problem, Term, TermInputs


@dataclass(frozen=True)
class _Traced(CkaAlignment):
    def loss(self, inputs: TermInputs) -> Tensor:
        alignment = super().loss(inputs)
        return alignment.detach() + 1e-12 * alignment


@dataclass(frozen=True)
class LeavesATraceOfAGradient(ObjectiveMethod):
    def terms(self, problem: Problem) -> list[Term]:
        return [CrossEntropy(), _Traced(((0, 0),), 0.5, name="alignment")]
