"""Control: `head_cd` aligned with the teacher's architecture at initialisation."""

from dataclasses import dataclass

from cdbench.api import CkaAlignment, CrossEntropy, Method, Outcome, Problem, pair_components, top_components


@dataclass(frozen=True)
class HeadUntrainedTeacher(Method):
    alignment_weight: float = 0.01
    share: float = 0.5

    def run(self, problem: Problem) -> Outcome:
        student, teacher = (problem.components(model, "ablation").heads for model in ("student", "teacher"))
        pairs = pair_components(student, teacher, self.share, "importance")
        terms = [CrossEntropy(), CkaAlignment(pairs, self.alignment_weight, source="untrained_teacher")]
        return problem.fit(terms, top_components(student, self.share, signed=True))
