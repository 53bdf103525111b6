"""Hands in a tensor more than the student has."""

from dataclasses import dataclass

import torch

from cdbench.api import Method, Outcome, Problem


@dataclass(frozen=True)
class ExtraTensors(Method):
    def run(self, problem: Problem) -> Outcome:
        return Outcome(weights={**problem.student.state_dict(), "lookup_table": torch.ones(4)})
