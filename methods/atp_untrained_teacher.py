"""Control: `atp_cd` aligned with the teacher's architecture at initialisation; the logits are the real teacher's."""

from dataclasses import dataclass

from cdbench.api import CkaAlignment, Kl, Method, Outcome, Problem, pair_components, top_components


@dataclass(frozen=True)
class AtpUntrainedTeacher(Method):
    alignment_weight: float = 0.01
    temperature: float = 2.0
    share: float = 0.5

    def run(self, problem: Problem) -> Outcome:
        student, teacher = (problem.components(model, "attribution") for model in ("student", "teacher"))
        pairs = pair_components(student, teacher, self.share)
        terms = [Kl(self.temperature), CkaAlignment(pairs, self.alignment_weight, source="untrained_teacher")]
        return problem.fit(terms, top_components(student, self.share))
