"""Every discovered plug-in keeps the contract; a file dropped into a folder is tested by being there."""

import json
import random
from pathlib import Path

import pytest

from cdbench import discover
from cdbench.api import Example, Method, Task
from cdbench.data import check, make_splits
from conftest import World, history_of

TASKS, METHODS = list(discover.find("tasks")), list(discover.find("methods"))


@pytest.mark.parametrize("name", TASKS)
def test_a_task_draws_true_examples_from_the_generator_it_is_given(name: str) -> None:
    task = discover.make_task(name)
    assert isinstance(task, Task)
    examples = [task.draw(random.Random(seed)) for seed in range(300)]
    for example in examples:
        assert isinstance(example, Example)
        check(example, name)
        assert all(str(operand) in example.prompt for operand in example.operands)
    assert examples == [task.draw(random.Random(seed)) for seed in range(300)]
    assert len({example.prompt for example in examples}) > 100


@pytest.mark.parametrize("name", TASKS)
def test_a_tasks_length_shift_names_other_tasks_that_exist(name: str) -> None:
    for other in type(discover.make_task(name)).length_shift:
        assert other in TASKS and other != name


@pytest.mark.parametrize("name", TASKS)
def test_a_task_is_large_enough_for_the_tiny_profile(name: str) -> None:
    from cdbench.config import build_profile

    splits = make_splits(discover.make_task(name), name, build_profile("tiny", {}).data)
    assert (len(splits.train), len(splits.test), splits.leaked) == (4000, 1000, 0)


@pytest.mark.parametrize("name", METHODS)
def test_a_methods_file_says_in_its_first_line_where_it_comes_from(name: str) -> None:
    line = discover.summary(discover.locate("methods", name))
    assert len(line) > 20 and ("paper" in line or "Control" in line)


@pytest.mark.parametrize("name", METHODS)
def test_a_method_runs_from_spec_to_metrics_twice_with_the_same_result(name: str, world: World, tmp_path: Path) -> None:
    assert isinstance(discover.make_method(name, {}), Method)
    results = []
    for part in ("one", "two"):
        spec = world.spec(name, **({"steps": 20} if name == "mask_discovery" else {}))
        for step in ("train", "evaluate"):
            code, folder = world.step(step, spec, tmp_path / part)
            assert code == 0, (folder / f"failure-{step}.json").read_text()
        metrics = json.loads((folder / "metrics.json").read_text())["metrics"]
        outcome = json.loads((folder / "outcome.json").read_text())
        history = history_of(folder)
        results.append((metrics, outcome["params"], outcome["extras"], history))
        assert metrics["accuracy"]["n"] == 96
        assert metrics["cka"]["n"] == 96
        assert metrics["first_prompt_ids"]
    assert results[0] == results[1]


@pytest.mark.parametrize("name", METHODS)
def test_another_seed_is_another_run_unless_nothing_is_drawn(name: str, world: World, tmp_path: Path) -> None:
    histories = []
    for seed in (0, 1):
        spec = world.spec(name, seed=seed, **({"steps": 10} if name == "mask_discovery" else {}))
        code, folder = world.step("train", spec, tmp_path)
        assert code == 0, (folder / "failure-train.json").read_text()
        histories.append(history_of(folder))
    assert (histories[0] == histories[1]) == (name == "base")
