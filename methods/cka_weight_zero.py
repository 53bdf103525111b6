"""Control: `cka_cd` with λ = 0. The alignment is measured and never pulls, so the row must equal `kl`."""

from dataclasses import dataclass

from cdbench.api import CkaAlignment, Kl, ObjectiveMethod, Problem, Term


@dataclass(frozen=True)
class CkaWeightZero(ObjectiveMethod):
    temperature: float = 2.0

    def terms(self, problem: Problem) -> list[Term]:
        return [Kl(self.temperature), CkaAlignment(problem.pairs(), weight=0.0)]
