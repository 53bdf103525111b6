"""Chain of thought: cross-entropy on worked solutions, column by column, then the answer (paper B, 5.2)."""

from dataclasses import dataclass

from cdbench.api import CrossEntropy, Method, Outcome, Problem


@dataclass(frozen=True)
class ChainOfThought(Method):
    def run(self, problem: Problem) -> Outcome:
        solutions = problem.solutions()
        trained = problem.fit([CrossEntropy()], answers=[each.text for each in solutions])
        by_teacher = sum(each.by_teacher for each in solutions)
        shown = {"problem": problem.train[0].prompt, "solution": solutions[0].text}
        return Outcome(trained.weights, extras={"by_teacher": by_teacher, "solutions": len(solutions), "first": shown})
