"""Circuit distillation of heads: CE + λ Σ (1 − CKA) on heads paired by ablation impact, training only those (parent paper)."""

from dataclasses import dataclass

from cdbench.api import CkaAlignment, CrossEntropy, Method, Outcome, Problem, pair_components, top_components


@dataclass(frozen=True)
class HeadCircuitDistillation(Method):
    alignment_weight: float = 0.01
    share: float = 0.5

    def run(self, problem: Problem) -> Outcome:
        student, teacher = (problem.components(model, "ablation").heads for model in ("student", "teacher"))
        pairs = pair_components(student, teacher, self.share, "importance")
        circuit = top_components(student, self.share, signed=True)
        trained = problem.fit([CrossEntropy(), CkaAlignment(pairs, self.alignment_weight)], circuit)
        return Outcome(trained.weights, extras={"component_pairs": pairs, "circuit": circuit})
