"""Places with ties, over real records of the smallest pair."""

import json
import shutil
from pathlib import Path

import pytest

from conftest import Cli, World


@pytest.fixture
def args(world: World, tmp_path: Path, mlflow_template: Path) -> list[str]:
    (tmp_path / "runs").mkdir()
    shutil.copyfile(mlflow_template, tmp_path / "runs" / "mlflow.db")
    return ["--profile", str(world.profile_file), "--store", str(world.store)]


def test_a_new_method_gets_a_row_beside_the_others(cli: Cli, args: list[str], tmp_path: Path) -> None:
    assert cli("run", "base", *args, "--seeds", "0,1").returncode == 0
    assert cli("new", "method", "my_method").returncode == 0
    added = cli("leaderboard", "add", "my_method.py", *args, "--seeds", "0,1")
    assert added.returncode == 0, added.stderr
    assert "nothing sets these rows apart" in added.stdout and "my_method" in added.stdout
    (board,) = json.loads(cli("leaderboard", "show", "--json").stdout)
    rows = {row["name"]: row for row in board["rows"]}
    assert set(rows) == {"teacher", "base", "my_method"}
    assert (rows["teacher"]["place"], rows["teacher"]["why_unplaced"]) == (None, "reference")
    assert rows["my_method"]["seeds"] == 2 and rows["my_method"]["place"] in (1, 2)
    # Two models that hardly solve anything: nothing sets them apart, whichever has the higher mean.
    assert rows["my_method"]["place"] == rows["base"]["place"] == 1 and rows["base"]["tied"]
    assert rows["my_method"]["low"] <= rows["my_method"]["accuracy"] <= rows["my_method"]["high"]
    assert "cdbench run my_method --task addition_2digit" in rows["my_method"]["command"]
    assert len(rows["my_method"]["run_ids"]) == 2 and board["evaluation"]


def test_one_seed_has_no_place_and_says_why(cli: Cli, args: list[str]) -> None:
    assert cli("run", "base", *args).returncode == 0
    (board,) = json.loads(cli("leaderboard", "show", "--json").stdout)
    assert {row["name"]: row["why_unplaced"] for row in board["rows"]} == {"teacher": "reference", "base": "one seed"}
    assert "one seed" in cli("leaderboard", "show").stdout


def test_what_cannot_be_compared_stands_on_boards_of_its_own(cli: Cli, args: list[str], tmp_path: Path) -> None:
    assert cli("run", "base", *args, "--seeds", "0,1").returncode == 0
    assert cli("run", "base", *args, "--seeds", "0,1", "--set", "data.test=64").returncode == 0
    found = json.loads(cli("leaderboard", "show", "--json").stdout)
    assert sorted(board["problems"] for board in found) == [64, 96]
    # The same, evaluated by other code: not mixed, and the board says which.
    for path in (tmp_path / "runs" / "records").glob("*/record.json"):
        done = json.loads(path.read_text())
        if done["metrics"]["accuracy"]["n"] == 64:
            done["code"]["evaluation"] = ""
            path.write_text(json.dumps(done))
    assert "evaluated by an older version" in cli("leaderboard", "show").stdout


def test_a_board_that_cannot_be_shown_is_one_sentence(cli: Cli, args: list[str], tmp_path: Path) -> None:
    empty = cli("leaderboard", "show")
    assert empty.returncode == 2 and "no finished run" in empty.stderr and "leaderboard add" in empty.stderr
    assert cli("run", "base", *args).returncode == 0
    other = cli("leaderboard", "show", "--task", "multiplication")
    assert other.returncode == 2 and "there are runs of: addition_2digit" in other.stderr
    path = next((tmp_path / "runs" / "records").glob("*/predictions.jsonl"))
    path.write_text(path.read_text().replace('"correct": false', '"correct": true', 1) + "\n")
    altered = cli("leaderboard", "show")
    assert altered.returncode == 2 and str(path) in altered.stderr
