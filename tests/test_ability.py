"""General ability before and after: lm-eval on both students, on the same problems."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from cdbench import ability
from cdbench.errors import EnvironmentLacks, UserError
from cdbench.evaluate import predict
from cdbench.plan import Places, read_study
from cdbench.record import read
from cdbench.workspace import Workspace
from conftest import Cli, World

YAML = """\
task: {name}
custom_dataset: !function data.rows
test_split: test
output_type: {kind}
doc_to_text: "{{{{prompt}}}}"
doc_to_target: "{{{{answer}}}}"
target_delimiter: ""
generation_kwargs: {{until: [], do_sample: false, max_gen_toks: 4}}
metric_list:
  - {{metric: {metric}, aggregation: mean, higher_is_better: true}}
num_fewshot: 0
metadata: {{version: 7.0}}
"""
ROWS = """\
from datasets import Dataset, DatasetDict

def rows(**kwargs):
    rows = [{{"prompt": f"{{i}}+1=", "answer": {answer}}} for i in range(20)]
    {extra}
    return DatasetDict({{"test": Dataset.from_list(rows)}})
"""


STUDY = """\
title = "A row before and after"
description = "The student, and what fine-tuning makes of it."
tasks = ["addition_2digit"]
methods = ["base", "finetune"]
seeds = [0]
"""


@pytest.fixture(scope="module")
def runs(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs of a study of two rows."""
    root = tmp_path_factory.mktemp("ability")
    (root / "small.toml").write_text(STUDY)
    (root / "runs").mkdir()
    command = [sys.executable, "-m", "cdbench", "reproduce", "small.toml", "--profile", world.profile_file]
    done = subprocess.run([*command, "--store", world.store], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return root / "runs"


def run_of(runs: Path, method: str) -> str:
    where = Places(runs, runs)
    saved = read_study("small-micro", where)
    return next(i for i in saved.run_ids if read(where.run(i)).spec.method == method)


def write_task(
    folder: Path, answer: str, *, kind: str = "generate_until", metric: str = "exact_match", extra: str = ""
) -> None:
    folder.mkdir()
    (folder / "own.yaml").write_text(YAML.format(name="own", kind=kind, metric=metric))
    (folder / "data.py").write_text(ROWS.format(answer=answer, extra=extra))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_both_students_are_asked_the_same_problems(cli: Cli, runs: Path, world: World) -> None:
    run_id = run_of(runs, "finetune")
    where = ("--runs", runs, "--store", world.store)
    done = cli("ability", run_id, "--tasks", "cdbench_addition_2digit", "--json", *where)
    assert done.returncode == 0, done.stderr
    (told,) = json.loads(done.stdout)
    by_filter = {row["filter"]: row for row in told["scores"] if row["task"] == "cdbench_addition_2digit"}
    # The task's own held-out problems: after is what the record says, before what the base student's does.
    after, before = (read(runs / "records" / run_of(runs, name)).metrics for name in ("finetune", "base"))
    assert after is not None and before is not None
    answer = by_filter["answer"]
    assert answer["n"] == 96 and answer["metric"] == "exact_match"
    assert (answer["before"], answer["after"]) == pytest.approx((before.accuracy.value, after.accuracy.value))
    assert by_filter["strict"]["after"] == pytest.approx(after.strict.value)
    assert answer["low"] <= answer["after"] - answer["before"] <= answer["high"]
    # A run that began with another student than is here now: what it could do before cannot be asked.
    record_file = runs / "records" / run_id / "record.json"
    kept = record_file.read_text()
    record_file.write_text(kept.replace(read(runs / "records" / run_id).inputs["student"], "0123456789abcdef"))
    done = cli("ability", run_id, "--tasks", "cdbench_addition_2digit", *where)
    assert done.returncode == 2 and "began with another student" in done.stderr
    record_file.write_text(kept)
    # In words, on other tasks, without being told which; and the report shows what is there.
    done = cli("ability", run_id, "--limit", "4", *where)
    assert done.returncode == 0, done.stderr
    assert "cdbench_subtraction_5digit" in done.stdout and "cdbench_addition_2digit" not in done.stdout
    assert "exact_match (answer), 4 problems" in done.stdout
    done = cli("report", "small-micro", *where)
    assert done.returncode == 0, done.stderr
    kept_scores = ability.read(runs / "records" / run_id)
    assert kept_scores is not None and {"cdbench_addition_2digit", "cdbench_subtraction_5digit"} <= {
        score.task for score in kept_scores.scores
    }
    page = (runs / "small-micro" / "report" / "index.html").read_text()
    assert 'id="ability"' in page and "cdbench_subtraction_5digit" in page
    assert "General ability before and after" in (runs / "small-micro" / "report" / "report.md").read_text()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_task_of_ones_own_is_scored_as_we_would_score_it(cli: Cli, runs: Path, world: World, tmp_path: Path) -> None:
    from cdbench.api import Example

    write_task(tmp_path / "mine", "str(i + 1)")
    run_id = run_of(runs, "finetune")
    done = cli(
        "ability", run_id, "--tasks", "own", "--include-path", tmp_path / "mine", "--json",
        "--runs", runs, "--store", world.store,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    row = next(row for row in json.loads(done.stdout)[0]["scores"] if row["task"] == "own")
    workspace: Workspace = world.workspace()
    problems = [Example(f"{i}+1=", str(i + 1), (i, 1)) for i in range(20)]
    ours = predict(workspace.student.model(), workspace.tokenizer, problems, 32)
    assert row["before"] == pytest.approx(sum(p.text == p.answer for p in ours) / 20)
    assert (row["version"], row["filter"], row["n"]) == ("7.0", "none", 20)


def test_one_sentence_for_a_users_mistake(cli: Cli, runs: Path, world: World) -> None:
    where = ("--runs", runs, "--store", world.store)
    teacher, trained = run_of(runs, "teacher"), run_of(runs, "base")
    kept = runs / "records" / trained / ability.FILE
    for arguments, code, sentence in (
        ((teacher,), 2, "has no student to ask"),
        (("0123",), 2, "does not exist"),
        (
            (trained, "--tasks", "cdbench_multiplication"),
            2,
            "lm-eval has no task 'cdbench_multiplication'; ours are cdbench_",
        ),
        ((trained, "--limit", "1"), 2, "--limit"),
    ):
        done = cli("ability", *arguments, *where)
        assert done.returncode == code, done.stderr
        assert sentence in done.stderr and "Traceback" not in done.stderr
    assert not kept.exists()


@pytest.mark.filterwarnings("ignore")
def test_data_that_are_not_here_are_the_machines_fault(world: World, tmp_path: Path) -> None:
    write_task(tmp_path / "mine", "str(i)", extra="raise OSError('Offline mode is enabled.')")
    workspace = world.workspace()
    with pytest.raises(EnvironmentLacks, match=r"the data of own: Offline mode is enabled\. Load it once"):
        ability.Examiner(world.profile, ["own"], [tmp_path / "mine"], None).examine(
            workspace.student.model(), workspace.tokenizer
        )


def test_the_difference_is_paired_and_a_metric_of_all_problems_together_is_left_out() -> None:
    before = {("t", "acc", "none"): {0: 1.0, 1: 0.0, 2: 0.0, 3: 1.0}}
    after = {("t", "acc", "none"): {3: 1.0, 2: 1.0, 1: 0.0, 0: 1.0}}
    (row,) = ability.compare(before, after, {"t": "1"})
    assert (row.n, row.before, row.after, row.difference) == (4, 0.5, 0.75, 0.25)
    sample = {
        "doc_id": 0,
        "filter": "none",
        "metrics": ["acc", "word_perplexity"],
        "acc": 1,
        "word_perplexity": (1.0, 2),
    }
    assert ability._values("t", [sample]) == {("t", "acc", "none"): {0: 1.0}}
    with pytest.raises(UserError, match="no metric of single problems"):
        ability.compare({}, {}, {})
    with pytest.raises(UserError, match="one problem says nothing"):
        ability.compare({("t", "acc", "none"): {0: 1.0}}, {("t", "acc", "none"): {0: 1.0}}, {})


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    assert ability.read(tmp_path) is None
    (tmp_path / ability.FILE).write_text('{"run_id": "a"}')
    with pytest.raises(UserError, match=r"ability\.json: key 'scores' is missing"):
        ability.read(tmp_path)
