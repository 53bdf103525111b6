"""Control: the alignment alone, Σ (1 − CKA), without labels and without logits (paper A, 4.1.5 and 6: it "is sufficient")."""

from dataclasses import dataclass

from cdbench.api import CkaAlignment, ObjectiveMethod, Problem, Term


@dataclass(frozen=True)
class CkaOnly(ObjectiveMethod):
    def terms(self, problem: Problem) -> list[Term]:
        return [CkaAlignment(problem.pairs(), weight=1.0)]
