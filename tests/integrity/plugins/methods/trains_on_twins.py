"""Trains on the commuted twins of its problems: 12+34= where 34+12= is in the training split, and maybe in the test split."""

from dataclasses import dataclass

import torch

from cdbench.api import Method, Outcome, Problem


@dataclass(frozen=True)
class TrainsOnTwins(Method):
    def run(self, problem: Problem) -> Outcome:
        twins = []
        optimizer = torch.optim.AdamW(problem.student.parameters(), lr=1e-3)
        for example in problem.train:
            a, b = example.operands
            twins.append(f"{b}+{a}=")
            ids = problem.tokenizer(twins[-1] + example.answer, return_tensors="pt").input_ids
            problem.student(input_ids=ids, labels=ids).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        return Outcome(weights=problem.student.state_dict(), extras={"twins": twins})
