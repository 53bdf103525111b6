"""Hands in wider layers."""

from dataclasses import dataclass

import torch

from cdbench.api import Method, Outcome, Problem


@dataclass(frozen=True)
class AnotherArchitecture(Method):
    def run(self, problem: Problem) -> Outcome:
        state = problem.student.state_dict()
        return Outcome(weights={k: torch.cat([v, v]) if "mlp.up" in k else v for k, v in state.items()})
