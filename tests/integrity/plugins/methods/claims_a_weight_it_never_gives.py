"""Says that it aligns with half the weight, and its term weighs nothing from the first step on."""

from dataclasses import dataclass

from cdbench.api import CkaAlignment, CrossEntropy, ObjectiveMethod, Problem, Term


@dataclass(frozen=True)
class ClaimsAWeightItNeverGives(ObjectiveMethod):
    alignment_weight: float = 0.5

    def terms(self, problem: Problem) -> list[Term]:
        return [CrossEntropy(), CkaAlignment(((0, 0),), 0.0, name="alignment")]
