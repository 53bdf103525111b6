"""Hands in NaN."""

from dataclasses import dataclass

from cdbench.api import Method, Outcome, Problem


@dataclass(frozen=True)
class NotANumber(Method):
    def run(self, problem: Problem) -> Outcome:
        return Outcome(weights={k: v * float("nan") for k, v in problem.student.state_dict().items()})
