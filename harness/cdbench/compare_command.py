"""`cdbench compare`: two runs on the same problems, paired."""

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import click

from cdbench import plan
from cdbench.errors import UserError
from cdbench.files import one_line, printable

if TYPE_CHECKING:
    from cdbench.config import Profile

_SHOWN = 5


@dataclass(frozen=True)
class Comparison:
    """Two runs on one held-out set.

    Attributes:
        both, only_a, only_b, neither: problems solved by whom.
        difference: accuracy of B minus that of A, with its 95 % interval over problems.
        p: McNemar's exact test, two-sided.
        examples: prompts that one of the two solved, with both answers.
        notes: what speaks against comparing the two.
    """

    a: str
    b: str
    split: str
    both: int
    only_a: int
    only_b: int
    neither: int
    difference: float
    low: float
    high: float
    p: float
    examples: list[dict[str, Any]]
    notes: list[str]

    @property
    def reading(self) -> str:
        """What test and interval say together."""
        if self.p < 0.05 and (self.low > 0 or self.high < 0):
            return f"{'B' if self.difference > 0 else 'A'} is better on these problems"
        return "no difference shown"


def compare_runs(where: plan.Places, a: str, b: str, split: str) -> tuple[Comparison, list[str]]:
    """The comparison, and both runs in words.

    Raises:
        UserError: a run is missing, has no result or was altered, or the two were evaluated on different problems.
    """
    import numpy as np

    from cdbench import record
    from cdbench.inference import mcnemar, mean_interval
    from cdbench.scoring import read_predictions, share

    found, labels, evaluations, profiles = [], [], [], []
    for run_id in (a, b):
        folder = where.run(run_id)
        done = record.read(folder)
        if done.metrics is None:
            raise UserError(f"run {run_id} ({done.spec.label}) has no result: {done.status}, {done.error}")
        if "predictions.jsonl" in record.damaged_artefacts(folder, done):
            raise UserError(f"{folder / 'predictions.jsonl'} is missing or was altered since its record was written")
        answers = read_predictions(folder)
        if split not in answers:
            raise UserError(f"run {run_id} was not evaluated on '{split}'; it has {', '.join(sorted(answers))}")
        found.append(answers[split])
        evaluations.append(done.code.evaluation)
        profiles.append(done.spec.profile)
        labels.append(f"{done.spec.label}  {share(done.metrics.accuracy)}")
    first, second = found
    if [(p.prompt, p.answer) for p in first] != [(p.prompt, p.answer) for p in second]:
        raise UserError(f"runs {a} and {b} were evaluated on different problems ('{split}'); nothing can be paired")
    table = [(x.correct, y.correct) for x, y in zip(first, second, strict=True)]
    only_a, only_b = table.count((True, False)), table.count((False, True))
    difference = np.array([[float(y) - float(x) for x, y in table]])
    low, high = mean_interval(difference)
    examples = [
        {"prompt": x.prompt, "answer": x.answer, "a": x.text, "b": y.text}
        for x, y in zip(first, second, strict=True)
        if x.correct != y.correct
    ]
    made = Comparison(
        a=a, b=b, split=split, both=table.count((True, True)), only_a=only_a, only_b=only_b,
        neither=table.count((False, False)), difference=float(difference.mean()), low=low, high=high,
        p=mcnemar(only_a, only_b), examples=examples,
        notes=[
            *(["the two were judged by different versions of the evaluator"] if len(set(evaluations)) > 1 else []),
            *(["a run is compared with itself"] if a == b else []),
            *_other_models(*profiles),
        ],
    )  # fmt: skip
    return made, labels


def _other_models(a: "Profile", b: "Profile") -> list[str]:
    """Says so where two runs began with other models: then they differ in more than their methods."""
    apart = [role for role in ("teacher", "student") if getattr(a, role) != getattr(b, role)]
    if not apart and (a.data.zoo_tasks, a.data.zoo_train) == (b.data.zoo_tasks, b.data.zoo_train):
        return []
    of = f"profiles {a.name} and {b.name}" if a.name != b.name else f"two states of profile {a.name}"
    what = ", ".join(apart) or "what they learned before"
    return [f"the runs are of {of}, with other models ({what}): the difference is not the methods' alone"]


@click.command()
@click.argument("run_a")
@click.argument("run_b")
@click.option("--split", default="test", show_default=True, help="The held-out set, or shift_TASK.")
@click.option("--json", "as_json", is_flag=True, help="As JSON, with every problem that one of them alone solved.")
@click.option("--runs", help="Folder of records and reports [CDBENCH_RUNS; ./runs].")
def compare(run_a: str, run_b: str, split: str, as_json: bool, runs: str | None) -> None:
    """Compare two runs on the same problems, paired: who solves what, the difference with its interval, McNemar's test.

    \b
    cdbench compare 3f2a9c0d1b7e4f60 9b1c55d2e07a4c31
    cdbench compare 3f2a9c0d1b7e4f60 9b1c55d2e07a4c31 --split shift_addition_3digit --json

    One run each says nothing about other seeds; a study with several does (cdbench reproduce, cdbench report).
    """

    found, labels = compare_runs(plan.places(runs, None), run_a, run_b, split)
    if as_json:
        click.echo(json.dumps({**asdict(found), "reading": found.reading}, indent=1))
        return
    for letter, run_id, label in zip("AB", (run_a, run_b), labels, strict=True):
        click.echo(f"{letter}  {run_id}  {one_line(label)}")
    total = found.both + found.only_a + found.only_b + found.neither
    click.echo(f"{total} problems of '{split}': both solve {found.both}, only A {found.only_a}, only B {found.only_b}, "
               f"neither {found.neither}")  # fmt: skip
    click.echo(f"B − A: {100 * found.difference:+.1f} points [{100 * found.low:+.1f}, {100 * found.high:+.1f}] over problems, "
               f"McNemar's exact p = {found.p:.3g}: {found.reading}")  # fmt: skip
    for note in found.notes:
        click.echo(f"note: {one_line(note)}")
    for each in found.examples[:_SHOWN]:
        prompt, answer, a, b = (one_line(printable(str(each[key]), 60)) for key in ("prompt", "answer", "a", "b"))
        click.echo(f"  {prompt}{answer}  A: {a}  B: {b}")
    if len(found.examples) > _SHOWN:
        click.echo(f"  and {len(found.examples) - _SHOWN} more: --json has all")
