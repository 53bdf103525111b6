"""Two runs side by side, and plug-in files that run as they are written."""

import json
from pathlib import Path

import pytest

from conftest import Cli, World


@pytest.fixture
def args(world: World, tmp_path: Path) -> list[str]:
    (tmp_path / "runs").mkdir()
    return ["--profile", str(world.profile_file), "--store", str(world.store)]


def run_ids(tmp_path: Path) -> dict[str, str]:
    found = [json.loads(path.read_text()) for path in (tmp_path / "runs" / "records").glob("*/record.json")]
    return {record["spec"]["method"]: record["run_id"] for record in found}


def test_two_runs_are_compared_problem_by_problem(cli: Cli, args: list[str], tmp_path: Path) -> None:
    done = cli("run", "finetune", *args)
    assert done.returncode == 0, done.stderr
    ids = run_ids(tmp_path)
    told = cli("compare", ids["teacher"], ids["finetune"])
    assert told.returncode == 0, told.stderr
    assert "96 problems of 'test': both solve" in told.stdout and "McNemar's exact p =" in told.stdout
    found = json.loads(cli("compare", ids["teacher"], ids["finetune"], "--json").stdout)
    assert found["both"] + found["only_a"] + found["only_b"] + found["neither"] == 96
    assert len(found["examples"]) == found["only_a"] + found["only_b"]
    assert found["difference"] == pytest.approx((found["only_b"] - found["only_a"]) / 96)
    itself = json.loads(cli("compare", ids["finetune"], ids["finetune"], "--json").stdout)
    assert (itself["p"], itself["difference"], itself["reading"]) == (1.0, 0.0, "no difference shown")
    assert found["notes"] == [] and itself["notes"] == ["a run is compared with itself"]
    path = tmp_path / "runs" / "records" / ids["finetune"] / "record.json"
    table = json.loads(path.read_text())
    path.write_text(json.dumps(table | {"code": table["code"] | {"evaluation": "0" * 16}}))
    told = cli("compare", ids["teacher"], ids["finetune"])
    assert told.returncode == 0 and "note: the two were judged by different versions of the evaluator" in told.stdout


def test_runs_of_other_models_differ_in_more_than_their_methods(world: World) -> None:
    from cdbench.compare_command import _other_models

    other = world.profile.model_copy(update={"student": world.profile.student.model_copy(update={"layers": 3})})
    assert _other_models(world.profile, world.profile) == []
    (note,) = _other_models(world.profile, other)
    assert "two states of profile micro, with other models (student)" in note
    (note,) = _other_models(world.profile, other.model_copy(update={"name": "mine"}))
    assert "profiles micro and mine" in note


def test_what_cannot_be_compared_is_said(cli: Cli, args: list[str], tmp_path: Path) -> None:
    assert cli("run", "base", *args).returncode == 0
    mine = run_ids(tmp_path)["base"]
    absent = cli("compare", mine, "0123456789abcdef")
    assert absent.returncode == 2 and "0123456789abcdef" in absent.stderr
    other = cli("compare", mine, mine, "--split", "shift_nothing")
    assert other.returncode == 2 and "was not evaluated on 'shift_nothing'; it has" in other.stderr
    path = tmp_path / "runs" / "records" / mine / "predictions.jsonl"
    path.write_text(path.read_text().replace('"text"', '"text" ', 1))
    altered = cli("compare", mine, mine)
    assert altered.returncode == 2 and "was altered since its record was written" in altered.stderr


def test_runs_on_other_problems_are_not_paired(cli: Cli, args: list[str], tmp_path: Path) -> None:
    assert cli("run", "base", *args).returncode == 0
    first = run_ids(tmp_path)["base"]
    assert cli("run", "base", *args, "--set", "data.test=64").returncode == 0
    second = next(
        path.parent.name
        for path in (tmp_path / "runs" / "records").glob("*/record.json")
        if json.loads(path.read_text())["spec"]["method"] == "base" and path.parent.name != first
    )
    done = cli("compare", first, second)
    assert done.returncode == 2 and "were evaluated on different problems" in done.stderr


def test_a_new_method_runs_as_it_is_written_and_is_short(cli: Cli, args: list[str], tmp_path: Path) -> None:
    made = cli("new", "method", "my_method")
    assert made.returncode == 0, made.stderr
    assert "cdbench run my_method.py --profile smoke" in made.stdout
    text = (tmp_path / "my_method.py").read_text()
    assert len(text.splitlines()) < 30 and "class MyMethod(ObjectiveMethod)" in text
    done = cli("run", "my_method.py", *args)
    assert done.returncode == 0, done.stderr
    assert "my_method" in run_ids(tmp_path)
    again = cli("new", "method", "my_method")
    assert again.returncode == 2 and "already" in again.stderr
    assert (tmp_path / "my_method.py").read_text() == text


def test_a_new_task_runs_as_it_is_written_and_is_short(cli: Cli, tmp_path: Path) -> None:
    made = cli("new", "task", "my_task")
    assert made.returncode == 0, made.stderr
    assert "cdbench run finetune --task tasks/my_task.py --profile smoke" in made.stdout
    assert len((tmp_path / "tasks" / "my_task.py").read_text().splitlines()) < 30
    done = cli("run", "finetune", "--task", "tasks/my_task.py", "--profile", "smoke")
    assert done.returncode == 0, done.stderr
    assert "finetune / my_task" in done.stdout


def test_a_name_that_would_hide_what_the_file_imports_makes_a_class_beside_it(cli: Cli, tmp_path: Path) -> None:
    """`Example` is what a task draws, `None` and `CkaAlignment` are no names for a class of that file either."""
    for kind, name, made, written in (
        ("task", "example", "tasks/example.py", "class ExampleTask(Task)"),
        ("method", "none", "none.py", "class NoneMethod(ObjectiveMethod)"),
        ("method", "cka_alignment", "cka_alignment.py", "class CkaAlignmentMethod(ObjectiveMethod)"),
    ):
        assert cli("new", kind, name).returncode == 0
        assert written in (tmp_path / made).read_text()
        planned = cli("run", *(["finetune", "--task"] if kind == "task" else []), made, "--profile", "smoke", "-n")
        assert planned.returncode == 0, planned.stderr


def test_a_new_study_under_a_new_profile_is_planned_as_it_is_written(cli: Cli, tmp_path: Path) -> None:
    made = cli("new", "study", "my_study"), cli("new", "profile", "my_models")
    assert [each.returncode for each in made] == [0, 0], made
    assert "cdbench reproduce my_study.toml --profile smoke" in made[0].stdout
    planned = cli("reproduce", "my_study.toml", "--profile", "my_models.toml", "--dry-run", "--json")
    assert planned.returncode == 0, planned.stderr
    (plan,) = json.loads(planned.stdout)
    assert plan["profile"] == "my_models.toml" and len({run["run_id"] for run in plan["runs"]}) == 1 + 3 * 6
    tiny = json.loads(cli("reproduce", "my_study.toml", "--dry-run", "--json").stdout)[0]["values"]
    values = {each["key"]: each["value"] for each in plan["values"]}
    assert {each["key"]: each["value"] for each in tiny} | {"name": 0, "description": 0} == values | {
        "name": 0,
        "description": 0,
    }
    again = cli("new", "profile", "my_models")
    assert again.returncode == 2 and "it is not overwritten" in again.stderr
    taken = cli("new", "study", "paper_a")
    assert taken.returncode == 2 and "there is a study 'paper_a' already" in taken.stderr


@pytest.mark.parametrize("name", ["teacher", "My-Method", "kl", "../x", "Class"])
def test_a_name_that_is_none_or_taken_is_refused(name: str, cli: Cli, tmp_path: Path) -> None:
    done = cli("new", "method", name)
    assert done.returncode == 2 and ("cannot be the name" in done.stderr or "already" in done.stderr)
    assert ("reference row" in done.stderr) == (name == "teacher")
    assert list(tmp_path.rglob("*.py")) == []
