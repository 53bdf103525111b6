"""`cdbench test`: plug-ins that keep the contract, and planted faults, each refused with what to do about it."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from cdbench.containers.images import Image
from cdbench.plugin_test import kind_of
from conftest import Cli, World

METHOD = '''"""A method of somebody's own, from nowhere in particular."""

import time
from dataclasses import dataclass

import torch

from cdbench.api import Kl, Method, ObjectiveMethod, Outcome, Problem, Term, TermInputs


{body}
'''
TRAINING = """@dataclass(frozen=True)
class Mine(Method):
    def run(self, problem: Problem) -> Outcome:
        weights = problem.student.state_dict()
        name = next(iter(weights))
        {act}
        return Outcome(weights=weights)
"""
SPECTATOR = """class Watcher(Term):
    name, weight, student_sites, signals = "watcher", 1.0, ("mlp.0.out",), ()
    def loss(self, inputs: TermInputs) -> torch.Tensor:
        return inputs.student("mlp.0.out").detach().square().mean()

@dataclass(frozen=True)
class Mine(ObjectiveMethod):
    def terms(self, problem: Problem) -> list[Term]:
        return [Kl(2.0), Watcher()]
"""
TASK = '''"""A task of somebody's own."""

import random

from cdbench.api import Example, Task


class Mine(Task):
    {extra}
    def draw(self, rng: random.Random) -> Example:
        a, b = rng.randint(0, 999), rng.randint(0, 999)
        return {example}
'''


Trial = Callable[[str], tuple[int, str, str]]


@pytest.fixture
def tried(cli: Cli, tmp_path: Path, world: World) -> Trial:
    """Tests a file of this source; exit code, stdout, stderr."""

    def run(source: str) -> tuple[int, str, str]:
        (tmp_path / "mine.py").write_text(source)
        done = cli("test", "mine.py", "--profile", world.profile_file, "--store", world.store)
        assert "Traceback" not in done.stderr + done.stdout
        return done.returncode, done.stdout, done.stderr

    return run


def test_a_starter_keeps_the_contract(cli: Cli, world: World) -> None:
    assert cli("new", "method", "my_method").returncode == 0
    done = cli("test", "my_method.py", "--profile", world.profile_file, "--store", world.store, "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["holds"] and [f["verdict"] for f in told["findings"]] == ["ok"] * 6
    assert cli("new", "task", "my_task").returncode == 0
    task = cli("test", "tasks/my_task.py")
    assert task.returncode == 0 and "next: cdbench run finetune --task tasks/my_task.py" in task.stdout
    dry = cli("run", "finetune", "--task", "tasks/my_task.py", "-n")
    assert dry.returncode == 0 and "my_task" in dry.stdout


@pytest.mark.parametrize(
    ("body", "demand", "said", "advice"),
    [
        (TRAINING.format(act="weights[name] += time.time_ns() % 9973 * 1e-6"), "determinism", "the same spec gave another",
         "not from the clock"),
        (TRAINING.format(act="weights['more'] = weights[name].clone()"), "run", "refused", "problem.student.state_dict()"),
        (TRAINING.format(act="weights[name] = weights[name] * float('nan')"), "run", "not finite", "diverged"),
        (TRAINING.format(act="weights.nowhere()"), "run", "(mine.py, line", ""),
        (SPECTATOR, "run", "watcher", "do not detach it"),
        ("class Mine(Method):\n    def run(self, problem):\n        return Outcome()", "contract", "frozen dataclass",
         "@dataclass(frozen=True)"),
        ("import cdbench.train", "file", "imports cdbench.train", "imports cdbench.api and nothing else"),
        ("def (", "file", "line 11", "the file is not Python yet"),
    ],
)  # fmt: skip
def test_a_fault_of_a_method_is_named_and_comes_with_what_to_do(
    body: str, demand: str, said: str, advice: str, tried: Trial
) -> None:
    code, out, err = tried(METHOD.format(body=body))
    assert code == 3, out + err
    line = next(line for line in out.splitlines() if line.startswith("FAIL"))
    assert line.split()[1] == demand and said in line
    assert advice in out
    assert f"mine.py does not keep the contract: {demand}" in err


GOOD = 'Example(f"{a}+{b}=", str(a + b), (a, b))'


@pytest.mark.parametrize(
    ("extra", "example", "said"),
    [
        ("", 'Example(f"{a}+{b}=", str(a + b + 1), (a, b))', "but the answer is"),
        ("", 'Example(f"{a}+{b}=", "", (a, b))', "both must be text"),
        ("", 'Example(f"{a}+{b}=", str(a + b), (a, 12345))', "do not stand in the prompt"),
        ("", 'Example(f"{a}+{b}={random.random()}", str(a), (a, b))', "the same generator drew other examples"),
        ("", 'Example("1+1=", "2", (1, 1))', "1 different prompts"),
        ("", 'Example(f"{a % 30}+{b % 30}=", str(a % 30 + b % 30), (a % 30, b % 30))', "size"),
        ('length_shift = ("nowhere",)', GOOD, "there is no task nowhere"),
        ("", "1 / 0", "ZeroDivisionError"),
        ("", "exit(0)", "SystemExit"),
        ("length_shift = None", GOOD, "TypeError"),
        ("", 'Example(f"{a}+{b}=", str(a + b), None)', "TypeError"),
    ],
)
def test_a_fault_of_a_task_is_named(extra: str, example: str, said: str, tried: Trial) -> None:
    code, out, err = tried(TASK.format(extra=extra, example=example))
    assert code == 3, out + err
    assert said in next(line for line in out.splitlines() if line.startswith("FAIL")), out


def test_what_is_worth_knowing_and_no_fault_is_a_note(tried: Trial) -> None:
    code, out, _ = tried(METHOD.format(body=TRAINING.format(act="weights[name] += 0.001")))
    assert code == 0
    notes = {line.split()[1] for line in out.splitlines() if line.startswith("note")}
    assert notes == {"history", "seeds"}
    words = TASK.format(extra="", example='Example(f"{a} and {b} make ", str(a + b), (a, b))')
    code, out, _ = tried(words)
    assert code == 0 and "note  tokens" in out


def test_a_file_is_a_task_by_what_it_inherits_whatever_its_names(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("from cdbench.api import Task as Base\nclass Mine(Base):\n    draw = None\n")
    (tmp_path / "b.py").write_text(
        "from cdbench.api import Method\nclass Helper:\n    def draw(self): ...\nclass Mine(Method): ...\n"
    )
    assert (kind_of(tmp_path / "a.py"), kind_of(tmp_path / "b.py")) == ("tasks", "methods")


def test_a_file_that_cannot_be_a_plugin_is_one_sentence(cli: Cli, tmp_path: Path) -> None:
    done = cli("test", "nowhere.py")
    assert done.returncode == 2 and "nowhere.py does not exist" in done.stderr
    folder = cli("test", tmp_path)
    assert folder.returncode == 2 and "is a folder" in folder.stderr
    (tmp_path / "_under.py").write_text("x = 1")
    under = cli("test", "_under.py")
    assert under.returncode == 3 and "not begin with '_'" in under.stdout


@pytest.mark.docker
def test_a_file_that_is_tried_in_a_container_is_not_imported_outside(
    cli: Cli, world: World, tmp_path: Path, image: Image
) -> None:
    act = f"open({str(tmp_path / 'escaped')!r}, 'w')"
    (tmp_path / "mine.py").write_text(act + "\n" + METHOD.format(body=TRAINING.format(act="pass")))
    where = ["--profile", world.profile_file, "--store", world.store, "--runner", "docker", "--image", image.tag]
    done = cli("test", "mine.py", *where)
    assert done.returncode == 3 and "FAIL  run" in done.stdout, done.stdout + done.stderr
    assert not (tmp_path / "escaped").exists()
    (tmp_path / "task.py").write_text(TASK.format(extra="", example=GOOD))
    task = cli("test", "task.py", *where)
    assert task.returncode == 2 and "draws where cdbench itself runs" in task.stderr
