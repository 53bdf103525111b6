import json
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import MICRO, Cli


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["run", "cka"], "unknown method 'cka'"),
        (["run", "kl", "--task", "addition"], "unknown task 'addition'"),
        (["reproduce", "paper_z"], "unknown study 'paper_z'"),
        (["reproduce", "paper_a", "--profile", "huge"], "unknown profile 'huge'"),
        (["reproduce", "paper_a", "--set", "training.rate=1"], "unknown key 'training.rate'"),
        (["reproduce", "paper_a", "--set", "training.lr=-1"], "training.lr = -1"),
        (["reproduce", "paper_a", "--seeds", "0,0"], "--seeds '0,0'"),
        (["reproduce", "paper_a", "--seeds", "a"], "--seeds 'a'"),
        (["reproduce", "paper_a", "-k", "nothing_like_it"], "matches no run"),
        (["reproduce", "nowhere.toml"], "nowhere.toml does not exist"),
        (["report", "paper_a"], "no study 'paper_a' was run"),
        (["verify", "0123"], "does not exist"),
        (["score", "0123"], "does not exist"),
        (["sync", "paper_a", "--mlflow", "http://127.0.0.1:1"], "no study 'paper_a' was run"),
        (["sync", "paper_a", "--mlflow", "none"], "leaves MLflow alone"),
        (["export", "0123", "x"], "does not exist"),
        (["reproduce"], "Missing argument"),
        (["reprodce", "paper_a"], "No such command 'reprodce'"),
        (["run", "kl", "--jobs", "0"], "--jobs"),
        (["run", "cka_cd", "--set", "method.weight=1"], "no method of study 'run_cka_cd_addition_2digit' has a hyper"),
        (["reproduce", "failed_run", "--set", "training.lr=1"], "'training.lr' is swept by study 'failed_run'"),
        (["reproduce", "."], "unknown study '.'"),
        (
            ["run", "kl", "--set", "method.direction=up"],
            "method 'kl', direction = 'up': Input should be 'teacher_first' or",
        ),
        (
            ["run", "cka_cd", "--set", "method.alignment_weight=high"],
            "alignment_weight = 'high': Input should be a valid",
        ),
    ],
)
def test_a_users_mistake_is_one_sentence_and_exit_code_2(arguments: list[str], complaint: str, cli: Cli) -> None:
    done = cli(*arguments)
    assert done.returncode == 2, done.stderr
    assert complaint in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_a_profile_that_names_an_unknown_task_is_refused_before_anything_runs(cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / "more.toml"
    file.write_text(MICRO.replace("[training]", 'zoo_tasks = ["addition_9digit"]\nzoo_train = 5\n[training]'))
    done = cli("reproduce", "paper_b", "--profile", str(file))
    assert (done.returncode, done.stdout) == (2, "")
    assert "unknown task 'addition_9digit'; there are: addition_2digit" in done.stderr


def test_a_runs_folder_that_cannot_be_written_is_exit_code_4(cli: Cli) -> None:
    done = cli("run", "base", "--profile", "smoke", "--runs", "/sys/cdbench")
    assert done.returncode == 4
    assert "cannot write the runs folder /sys/cdbench" in done.stderr
    assert "Traceback" not in done.stderr


def test_every_command_has_help_with_an_example(cli: Cli) -> None:
    from cdbench.cli import main

    for name, command in main.commands.items():
        assert command.help and f"cdbench {name}" in command.help.replace("\b", ""), name
    assert "Exit codes" in cli("--help").stdout


def test_boards_are_read_without_torch() -> None:
    board = Path(__file__).parents[1] / "LEADERBOARD.md"
    code = (
        "import sys; from click.testing import CliRunner; from cdbench.cli import main;"
        f"r = CliRunner().invoke(main, ['leaderboard', 'check', {str(board)!r}]); assert r.exit_code == 0, r.output;"
        "bad = [m for m in ('torch', 'transformers', 'mlflow') if m in sys.modules]; assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_help_and_planning_import_no_heavy_library() -> None:
    code = (
        "import sys; from click.testing import CliRunner; from cdbench.cli import main;"
        "r = CliRunner().invoke(main, {!r}); assert r.exit_code == 0, r.output;"
        "bad = [m for m in ('torch', 'transformers', 'mlflow', 'matplotlib', 'sklearn') if m in sys.modules];"
        "assert not bad, bad"
    )
    for arguments in (["--help"], ["list", "--json"], ["reproduce", "paper_a", "-n"]):
        subprocess.run([sys.executable, "-c", code.format(arguments)], check=True)


def test_the_method_that_the_readme_shows_is_the_file() -> None:
    root = Path(__file__).parents[1]
    assert (root / "methods" / "kl.py").read_text() in (root / "README.md").read_text()


def test_lists_are_also_json(cli: Cli) -> None:
    tables = json.loads(cli("list", "--json").stdout)
    assert {"addition_2digit", "mixed_2to5digit"} <= {row["name"] for row in tables["tasks"]}
    assert {"tiny", "tiny_lengths", "smoke", "paper"} == {row["name"] for row in tables["profiles"]}
    assert json.loads(cli("list", "runs", "--json").stdout) == {"runs": []}


def test_the_doctor_looks_and_says_what_is_missing(cli: Cli) -> None:
    done = cli("doctor", "--json")
    findings = {row["what"]: row for row in json.loads(done.stdout)}
    assert findings["methods"]["state"] == "ok" and "cka_cd" in findings["methods"]["text"]
    assert done.returncode == 0
    paper = cli("doctor", "--profile", "paper")
    assert paper.returncode == 4
    assert "Meta-Llama-3-8B" in paper.stdout


def test_the_doctor_imports_nobodys_code(cli: Cli, plugin_folder, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """It may be there to be run in a container, unread."""
    folder = plugin_folder(
        "methods", "unread", f"from pathlib import Path\nPath({str(tmp_path / 'imported')!r}).touch()\n"
    )
    done = cli("doctor", CDBENCH_PLUGINS=str(folder))
    assert done.returncode == 0, done.stdout
    assert "1 of others, not imported here (cdbench test FILE does): unread" in done.stdout
    assert not (tmp_path / "imported").exists()


def test_a_broken_plugin_is_a_finding_of_the_doctor(cli: Cli, plugin_folder) -> None:  # type: ignore[no-untyped-def]
    folder = plugin_folder("tasks", "broken", "class (:")
    done = cli("doctor", CDBENCH_PLUGINS=str(folder))
    assert done.returncode == 4
    assert "broken.py, line 1" in done.stdout
