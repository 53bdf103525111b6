"""Control: `global_cd` aimed at as many heads and MLPs of the teacher that are not its circuit's, drawn while there are such."""

from dataclasses import dataclass

from cdbench.api import GlobalCka, Kl, Method, Outcome, Problem, other_components, top_components


@dataclass(frozen=True)
class GlobalRandomCircuit(Method):
    alignment_weight: float = 0.01
    temperature: float = 2.0
    share: float = 0.5

    def run(self, problem: Problem) -> Outcome:
        student, teacher = (problem.components(model, "attribution") for model in ("student", "teacher"))
        own, circuit = (top_components(found, self.share) for found in (student, teacher))
        target = other_components(circuit, teacher.sites, problem.rng("random_circuit"))
        terms = [Kl(self.temperature), GlobalCka(own, target, self.alignment_weight)]
        trained = problem.fit(terms, own)
        of_circuit = len({*target} & {*circuit}) / len(target)
        return Outcome(trained.weights, extras={"teacher_part": target, "part_of_circuit": of_circuit})
