"""Worked solutions: written by rule, read by the evaluator, taken from a teacher that writes them, learned by `cot`."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cdbench.api import CrossEntropy, Example, Kl
from cdbench.circuits.solutions import work_out
from cdbench.config import FolderModel
from cdbench.errors import RunFailed, UserError
from cdbench.execute import training_problem
from cdbench.generation import _worked_budget, continuations, generate, solutions
from cdbench.predictions import NO_ANSWER, count, score
from cdbench.zoo import make_tokenizer
from conftest import World, quiet


def problem_of(a: int, b: int, op: str) -> Example:
    return Example(f"{a}{op}{b}=", str(a + b if op == "+" else a - b), (a, b))


@pytest.mark.parametrize(
    ("a", "op", "b", "text"),
    [
        (3, "+", 4, "3+4=7 =7"),
        (47, "+", 85, "7+5=12 4+8+1=13 =132"),
        (5, "+", 47, "5+7=12 0+4+1=5 =52"),
        (999, "+", 1, "9+1=10 9+0+1=10 9+0+1=10 =1000"),
        (52, "-", 27, "12-7=5 5-1-2=2 =25"),
        (27, "-", 52, "12-7=5 5-1-2=2 =-25"),
        (100, "-", 1, "10-1=9 10-1-0=9 1-1-0=0 =99"),
        (34, "-", 34, "4-4=0 3-3=0 =0"),
    ],
)
def test_columns_are_written_out_with_carry_and_borrow(a: int, op: str, b: int, text: str) -> None:
    assert work_out(problem_of(a, b, op)) == text


@given(st.integers(0, 10**6), st.integers(0, 10**6), st.sampled_from("+-"))
def test_every_column_is_right_and_the_evaluator_finds_the_answer(a: int, b: int, op: str) -> None:
    example = problem_of(a, b, op)
    *columns, last = work_out(example).split(" ")
    for column in columns:
        left, right = column.split("=")
        assert sum(map(int, re.findall(r"[+-]?\d+", left))) == int(right)
    # The columns' last digits are the answer's.
    digits = "".join(column[-1] for column in reversed(columns))
    assert abs(int(example.answer)) % 10 ** len(columns) == int(digits)
    assert last == f"={example.answer}"
    found = score(example.prompt, example.answer, work_out(example))
    assert found.correct and found.strictly_correct and found.worked
    assert len(make_tokenizer()(work_out(example))["input_ids"]) <= 6 * 8 + 10 + 16


def test_what_has_no_columns_is_refused() -> None:
    with pytest.raises(UserError, match="no sum and no difference"):
        work_out(Example("2*3=", "6", (2, 3)))
    with pytest.raises(UserError, match="operands of 0 and above, not for -2"):
        work_out(Example("-2+3=", "1", (-2, 3)))


@pytest.mark.parametrize(
    ("text", "given_", "strict"),
    [
        ("7+5=12 4+8+1=13 =132", "132", "132"),
        ("7+5=12 4+8+1=13 =-132 ", "-132", "-132"),
        ("7+5=12 =132 and more", "132", NO_ANSWER),
        ("7+5=12 4+8+1=13", NO_ANSWER, NO_ANSWER),  # begun, and never came to an answer
        ("5+0=5", NO_ANSWER, NO_ANSWER),
        ("132\n45+67=112", "132", NO_ANSWER),  # a model that goes on with another problem
        ("132 =5", "132", NO_ANSWER),
        ("=132", NO_ANSWER, NO_ANSWER),
    ],
)
def test_the_answer_is_what_ends_a_worked_solution_else_the_first_integer(text: str, given_: str, strict: str) -> None:
    found = score("47+85=", "132", text)
    assert (found.given, found.strict) == (given_, strict)


def test_worked_answers_are_counted() -> None:
    found = count({"test": [score("", "2", text) for text in ("1+1=2 =2", "2", "1+1=2 =3")]})
    assert (found["worked"], found["accuracy"].k, found["arithmetic_errors"]) == (2, 2, 1)


def answers(world: World, folder: Path, method: str, **training: object) -> tuple[Path, dict[str, object]]:
    profile = world.profile.model_copy(update={"training": world.profile.training.model_copy(update=training)})
    spec = world.spec(method).model_copy(update={"profile": profile})
    code, made = world.step("train", spec, folder)
    assert code == 0, (made / "failure-train.json").read_text()
    code, _ = world.step("evaluate", spec, folder)
    assert code == 0, (made / "failure-evaluate.json").read_text()
    return made, json.loads((made / "metrics.json").read_text())["metrics"]


@pytest.fixture(scope="module")
def scholar(world: World, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, object]]:
    """A student that has learned to work its problems out."""
    return answers(world, tmp_path_factory.mktemp("scholar"), "cot", epochs=60, lr=4e-3)


def test_cot_teaches_the_student_to_work_its_problems_out(
    scholar: tuple[Path, dict[str, object]], world: World
) -> None:
    folder, metrics = scholar
    outcome = json.loads((folder / "outcome.json").read_text())
    # The micro teacher knows no worked solution; the rule wrote them all, and the record says so.
    assert outcome["extras"]["by_teacher"] == 0 and outcome["extras"]["solutions"] == 256
    first = world.workspace().train_examples[0]
    assert outcome["extras"]["first"] == {"problem": first.prompt, "solution": work_out(first)}
    worked = metrics["worked"]
    assert isinstance(worked, int) and worked > 48, "of 96 problems"
    lines = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    solved = [line["validation/accuracy"] for line in lines if "validation/accuracy" in line]
    assert len(solved) == 60 and max(solved) > 0, "validation is by what the student says, not by the bare answer"


def test_a_teacher_that_works_problems_out_is_heard(scholar: tuple[Path, dict[str, object]], world: World) -> None:
    from cdbench.evaluate import load_student

    workspace = world.workspace()
    model = load_student(workspace.student.model(), scholar[0] / "student.safetensors")
    some = workspace.train_examples[:64]
    found = solutions(model, workspace.tokenizer, some, 32)
    assert not any(s.by_teacher for s in found[:3]), "those that are shown could be copied"
    own = [(e, s) for e, s in zip(some, found, strict=True) if s.by_teacher]
    assert len(own) > 4
    said = dict(zip([e.prompt for e in some], generate(model, workspace.tokenizer, some, 64), strict=True))
    for example, solution in own:
        assert score(example.prompt, example.answer, solution.text).worked
        assert score(example.prompt, example.answer, solution.text).correct
        assert said[example.prompt].startswith(solution.text)
    assert [s.text for e, s in zip(some, found, strict=True) if not s.by_teacher] == [
        work_out(e) for e, s in zip(some, found, strict=True) if not s.by_teacher
    ]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_lm_eval_reads_worked_solutions_as_we_do(
    scholar: tuple[Path, dict[str, object]], world: World, tmp_path: Path
) -> None:
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    from cdbench.data import read_examples
    from cdbench.evaluate import load_student, predict
    from cdbench.lm_eval_tasks import write_tasks

    workspace = world.workspace()
    write_tasks(tmp_path, world.profile.data)
    model = load_student(workspace.student.model(), scholar[0] / "student.safetensors")
    manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
    judged = HFLM(pretrained=model, tokenizer=workspace.tokenizer, batch_size=32)
    result = lm_eval.simple_evaluate(judged, tasks=["cdbench_addition_2digit"], task_manager=manager, bootstrap_iters=0)
    examples = read_examples(workspace.heldout_data / "test.jsonl")
    ours = {p.prompt: p for p in predict(model, workspace.tokenizer, examples, 250)}
    assert sum(p.worked for p in ours.values()) > 48
    for sample in result["samples"]["cdbench_addition_2digit"]:
        prediction = ours[sample["doc"]["prompt"]]
        want = prediction.correct if sample["filter"] == "answer" else prediction.strictly_correct
        assert sample["exact_match"] == float(want), (sample["doc"], prediction.text)


def test_a_tokenizer_that_cannot_write_columns_costs_nobody_the_evaluation(world: World) -> None:
    from tokenizers import Regex, Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Split
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: i for i, token in enumerate(["<pad>", "<eos>", "<unk>", *"0123456789+-="])}
    plain = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    plain.pre_tokenizer = Split(Regex("."), "isolated")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=plain, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")
    model = world.workspace().student.model()
    texts = generate(model, tokenizer, [problem_of(1, 2, "+"), problem_of(30, 4, "+")], 2)
    assert len(texts) == 2
    assert _worked_budget(tokenizer, [problem_of(1, 2, "+")]) == 0
    assert _worked_budget(make_tokenizer(), [problem_of(1, 2, "+")]) == len("1+2=3 =3") + 2


def test_the_longer_budget_is_for_those_who_work_alone(scholar: tuple[Path, dict[str, object]], world: World) -> None:
    from cdbench.evaluate import load_student

    workspace = world.workspace()
    some = workspace.train_examples[:16]
    plain = workspace.teacher.model()
    longest = max(len(e.answer) for e in some) + 2
    direct = [e.prompt for e in some]
    assert generate(plain, workspace.tokenizer, some, 16) == continuations(
        plain, workspace.tokenizer, direct, longest, 16
    )
    model = load_student(workspace.student.model(), scholar[0] / "student.safetensors")
    assert max(map(len, generate(model, workspace.tokenizer, some, 16))) > longest


def test_solutions_are_an_artefact_of_the_teacher_and_the_split(world: World) -> None:
    first, second = world.workspace().solutions, world.workspace().solutions
    assert first == second and [s.text for s in first] == [work_out(e) for e in world.workspace().train_examples]
    other = replace(world.workspace(), profile=world.profile.model_copy(update={"teacher": FolderModel(path="none")}))
    with pytest.raises(UserError):
        _ = other.solutions


def test_a_term_that_reads_the_teachers_answers_cannot_be_trained_on_others(world: World, tmp_path: Path) -> None:
    spec = world.spec("cot")
    problem = training_problem(tmp_path, spec, world.workspace(spec), quiet)
    texts = [each.text for each in problem.solutions()]
    with pytest.raises(RunFailed, match="term 'kl' reads what a frozen model says at the problems' own answers"):
        problem.fit([Kl()], answers=texts)
    with pytest.raises(RunFailed, match="3 answers for 256 training problems"):
        problem.fit([CrossEntropy()], answers=texts[:3])


def test_other_answers_are_trained_bit_for_bit_the_same(world: World, tmp_path: Path) -> None:
    trained = []
    for name in ("a", "b"):
        spec = world.spec("cot")
        (tmp_path / name).mkdir()
        problem = training_problem(tmp_path / name, spec, world.workspace(spec), quiet)
        outcome = problem.fit([CrossEntropy()], answers=[each.text for each in problem.solutions()])
        assert outcome.weights is not None
        trained.append(outcome.weights)
    assert all(torch.equal(trained[0][name], trained[1][name]) for name in trained[0])
