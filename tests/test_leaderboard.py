"""Places with ties, over real records of the smallest pair."""

import hashlib
import json
import re
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from markdown_it import MarkdownIt
from pydantic import ValidationError

from cdbench import record
from cdbench.leaderboard_command import board_text
from cdbench.plan import places
from cdbench.report.board import Answered, Board, RowEntry, RunEntry, pack, placed
from cdbench.report.leaderboard import _row, as_markdown, read_boards
from conftest import Cli, World


@pytest.fixture
def args(world: World, tmp_path: Path) -> list[str]:
    (tmp_path / "runs").mkdir()
    return ["--profile", str(world.profile_file), "--store", str(world.store)]


def test_a_new_method_gets_a_row_beside_the_others(cli: Cli, args: list[str], tmp_path: Path) -> None:
    assert cli("run", "base", *args, "--seeds", "0,1").returncode == 0
    assert cli("new", "method", "my_method").returncode == 0
    added = cli("leaderboard", "add", "my_method.py", *args, "--seeds", "0,1")
    assert added.returncode == 0, added.stderr
    assert (
        "= shares its place: it counts the rows that are significantly better" in added.stdout
        and "my_method" in added.stdout
    )
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
    shown = cli("leaderboard", "show", "--long").stdout
    own = rows["my_method"]
    assert f"my_method: {own['command']}\n    CKA {own['cka_debiased']:.3f}" in shown
    assert f"\n    commit {own['commit']}, code {own['code']}, runs {' '.join(own['run_ids'])}\n" in shown
    assert list(own["length_shift"]) == ["addition_3digit", "addition_4digit", "addition_5digit"]
    assert all(found["low"] <= found["accuracy"] <= found["high"] for found in own["length_shift"].values())
    assert own["cka_debiased_low"] < own["cka_debiased"] < own["cka_debiased_high"]
    assert rows["base"]["cka_debiased_low"] is None  # no seed changes it
    assert f"report/index.html#run-{own['run_ids'][0]}\n" in shown
    again = cli("leaderboard", "add", str(tmp_path / "my_method.py"), *args, "--seeds", "0,1", "--json")
    assert again.returncode == 0 and json.loads(again.stdout) == [board], again.stderr


def test_one_seed_has_no_place_and_says_why(cli: Cli, args: list[str]) -> None:
    assert cli("run", "base", *args).returncode == 0
    (board,) = json.loads(cli("leaderboard", "show", "--json").stdout)
    assert {row["name"]: row["why_unplaced"] for row in board["rows"]} == {"teacher": "reference", "base": "one seed"}
    assert "one seed" in cli("leaderboard", "show").stdout


FRAIL = '''
"""Comes to no result with one of its seeds."""

from dataclasses import dataclass

from cdbench.api import Method, Outcome, Problem


@dataclass(frozen=True)
class Frail(Method):
    def run(self, problem: Problem) -> Outcome:
        if problem.seed == 1:
            raise ValueError("not this one")
        return Outcome()
'''


def test_the_seeds_that_came_to_a_result_have_a_row_though_another_failed(
    cli: Cli, args: list[str], tmp_path: Path
) -> None:
    (tmp_path / "frail.py").write_text(FRAIL)
    added = cli("leaderboard", "add", "frail.py", *args, "--seeds", "0,1,2")
    assert added.returncode == 1 and "1 of the runs came to no result" in added.stderr, added.stderr
    assert "not this one" in added.stderr and re.search(r"frail +\S+ % +\[.*\] +2 \(\+1 failed\)", added.stdout), (
        added.stdout
    )
    as_json = cli("leaderboard", "add", "frail.py", *args, "--seeds", "0,1,2", "--json")
    (board,) = json.loads(as_json.stdout)
    assert as_json.returncode == 1 and {row["name"]: row["failed"] for row in board["rows"]} == {
        "teacher": 0,
        "frail": 1,
    }


def test_a_study_may_be_called_what_no_folder_should_be(cli: Cli, args: list[str], tmp_path: Path) -> None:
    (tmp_path / "twice (v1.0).toml").write_text(
        'title = "t"\ndescription = "d"\nmethods = ["base"]\ntasks = ["addition_2digit"]\nseeds = [0, 1]\n'
    )
    done = cli("reproduce", "twice (v1.0).toml", *args)
    assert done.returncode == 0, done.stderr
    (study,) = {path.parent.name for path in (tmp_path / "runs").glob("*/study.json")}
    assert re.fullmatch(r"twice_v1_0_-micro-[0-9a-f]{6}", study)
    assert cli("report", study).returncode == 0
    assert study in cli("leaderboard", "show", "--long").stdout
    assert cli("leaderboard", "write").returncode == 0 and cli("leaderboard", "check").returncode == 0


def test_a_board_of_two_profiles_is_found_by_either(cli: Cli, args: list[str], world: World, tmp_path: Path) -> None:
    """The same models and problems, another training: one board."""
    other = world.profile_file.read_text().replace("epochs = ", "epochs = 1  # ")
    (tmp_path / "another.toml").write_text(other)
    assert cli("run", "base", *args, "--seeds", "0,1").returncode == 0
    assert cli("run", "finetune", "--profile", "another.toml", *args[2:], "--seeds", "0,1").returncode == 0
    for profile in (world.profile_file.stem, "another"):
        (board,) = json.loads(cli("leaderboard", "show", "--json", "--profile", profile).stdout)
        assert len(board["rows"]) == 3, board
    none = cli("leaderboard", "show", "--profile", "anot")
    assert none.returncode == 2 and f"there are runs of: another, {world.profile_file.stem}" in none.stderr
    assert cli("leaderboard", "write").returncode == 0 and cli("leaderboard", "check").returncode == 0
    for path in (tmp_path / "runs" / "records").glob("*/record.json"):
        if json.loads(path.read_text())["spec"]["profile"]["name"] == "another":
            shutil.rmtree(path.parent)
    part = cli("leaderboard", "check")
    assert part.returncode == 0, part.stdout
    file = tmp_path / "LEADERBOARD.md"
    (told,) = read_boards(file.read_text(), file)
    file.write_text(as_markdown([told.model_copy(update={"profile": "another"})]))
    wrong = cli("leaderboard", "check")
    assert (
        wrong.returncode == 3
        and f"profile is not its records' (another, theirs {world.profile_file.stem})" in wrong.stdout
    )


def test_what_a_row_is_called_cannot_draw_on_the_terminal() -> None:
    hostile = row("a\n  1  fake  99 %\r\x1b[31m", 0.5, (0, 1))
    shown = board_text(board_of(hostile, row("b", 0.5, (0, 1))))
    assert "fake" in shown and not any(line.startswith("  1  fake") for line in shown.splitlines())
    assert all(c.isprintable() or c == "\n" for c in shown)


def test_what_cannot_be_compared_stands_on_boards_of_its_own(cli: Cli, args: list[str], tmp_path: Path) -> None:
    assert cli("run", "base", *args, "--seeds", "0,1").returncode == 0
    assert cli("run", "base", *args, "--seeds", "0,1", "--set", "data.test=64").returncode == 0
    found = json.loads(cli("leaderboard", "show", "--json").stdout)
    assert sorted(board["problems"] for board in found) == [64, 96]
    # The same, evaluated by other code: not mixed, and the board says which.
    for path in (tmp_path / "runs" / "records").glob("*/record.json"):
        done = json.loads(path.read_text())
        if done["metrics"]["accuracy"]["n"] == 64 and done["spec"]["seed"] == 1:
            done["code"]["evaluation"] = ""
            path.write_text(json.dumps(done))
    apart = json.loads(cli("leaderboard", "show", "--json").stdout)
    assert sorted(board["problems"] for board in apart) == [64, 64, 96]
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


@pytest.fixture(scope="module")
def finished(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A runs folder with two methods of two seeds in it."""
    runs = tmp_path_factory.mktemp("board") / "runs"
    runs.mkdir()
    for method in ("base", "finetune"):
        command = [
            sys.executable,
            "-m",
            "cdbench",
            "run",
            method,
            "--profile",
            world.profile_file,
            "--store",
            world.store,
        ]
        command += ["--runs", runs, "--seeds", "0,1"]
        done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    return runs


@pytest.fixture
def written(finished: Path, cli: Cli, tmp_path: Path) -> Path:
    shutil.copytree(finished, tmp_path / "runs")
    done = cli("leaderboard", "write")
    assert done.returncode == 0, done.stderr
    return tmp_path / "LEADERBOARD.md"


def test_each_row_of_a_written_board_leads_to_what_made_it(written: Path) -> None:
    tokens = MarkdownIt("commonmark").enable("table").parse(written.read_text())
    headings = [after.content for token, after in pairwise(tokens) if token.type == "heading_open"]
    slugs = [text.lower().replace(" ", "-") for text in headings]  # as forges make them, of words of letters and digits
    children = [child for token in tokens for child in token.children or ()]
    links = [str(child.attrs["href"]) for child in children if child.type == "link_open"]
    (board,) = read_boards(written.read_text(), written)
    assert links == [f"#run-{row.run_ids[0]}" for row in (placed_row.entry for placed_row in placed(board))]
    assert all(slugs.count(link.removeprefix("#")) == 1 for link in links)
    for row in board.rows:
        own = written.read_text().split(f"#### Run {row.run_ids[0]}\n")[1].split("####")[0]
        assert all(text in own for text in (row.command, row.commit, row.code, *row.run_ids, *row.machines)), own


def test_a_written_board_holds_and_is_the_same_when_it_is_written_again(written: Path, cli: Cli) -> None:
    checked = cli("leaderboard", "check")
    assert checked.returncode == 0, checked.stdout
    assert "5 of 5 runs were held against their records" in checked.stdout
    before = written.read_text()
    assert cli("leaderboard", "write").returncode == 0
    assert written.read_text() == before
    shown = json.loads(cli("leaderboard", "show", "--json").stdout)
    for row in shown[0]["rows"]:
        assert f"{100 * row['accuracy']:.1f} %" in before and all(run_id in before for run_id in row["run_ids"])


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (r"\| \d+\.\d %", "| 99.9 %", "does not follow from the answers in the file"),
        (r"\| 1 = \(", "| 2 (", "does not follow from the answers in the file"),
        (r'"answers": "..', '"answers": "//', "does not follow"),
        (r"`cdbench run finetune", "`cdbench run my_finetune", "does not follow"),
    ],
)
def test_a_board_that_was_edited_by_hand_is_refused(old: str, new: str, words: str, written: Path, cli: Cli) -> None:
    text = written.read_text()
    edited = re.sub(old, lambda _: new, text, count=1)
    assert edited != text
    written.write_text(edited)
    done = cli("leaderboard", "check")
    assert done.returncode == 3 and words in done.stdout and "LEADERBOARD.md" in done.stderr


def test_answers_made_up_consistently_are_refused_by_the_records(written: Path, cli: Cli, tmp_path: Path) -> None:
    (board,) = read_boards(written.read_text(), written)
    rows = list(board.rows)
    i = next(i for i, row in enumerate(rows) if row.method == "finetune")
    perfect = rows[i].runs[0].model_copy(update={"answers": pack([1.0] * board.problems)})
    rows[i] = rows[i].model_copy(update={"runs": [perfect, *rows[i].runs[1:]]})
    written.write_text(as_markdown([board.model_copy(update={"rows": rows})]))
    done = cli("leaderboard", "check")
    assert done.returncode == 3 and f"finetune, run {perfect.run_id}: answers is not its record's" in done.stdout
    # Where the record is not there, it says that it was not looked at.
    shutil.rmtree(tmp_path / "runs" / "records" / perfect.run_id)
    absent = cli("leaderboard", "check")
    assert absent.returncode == 0 and "4 of 5 runs" in absent.stdout and "1 have none here" in absent.stdout
    assert cli("leaderboard", "check", "--require", 4).returncode == 0
    few = cli("leaderboard", "check", "--require", 5)
    assert (
        few.returncode == 3
        and "4 of 5 runs of LEADERBOARD.md could be held against a record in runs, and 5 are" in few.stderr
    )


def forged(board: Board, change: str) -> Board:
    rows = {row.method: row for row in board.rows}
    base, finetune = rows["base"], rows["finetune"]
    others = [row for row in board.rows if row.method == "teacher"]
    solved = {
        name: Answered(problems=found.problems, answers=pack([1.0] * found.problems))
        for name, found in finetune.runs[0].shift.items()
    }

    def with_(**update: object) -> RunEntry:
        return finetune.runs[0].model_copy(update=update)

    changed = {
        "names exchanged": [base.model_copy(update={"name": "finetune"}), finetune.model_copy(update={"name": "base"})],
        "runs exchanged": [
            base.model_copy(update={"runs": finetune.runs}),
            finetune.model_copy(update={"runs": base.runs}),
        ],
        "a rival left out": [finetune],
        "a seed left out": [base, finetune.model_copy(update={"runs": finetune.runs[:1]})],
        "called the reference": [base.model_copy(update={"method": "teacher"}), finetune],
        "another command": [base, finetune.model_copy(update={"command": "cdbench run better"})],
        "longer sums left out": [base, finetune.model_copy(update={"runs": [with_(shift={}), *finetune.runs[1:]]})],
        "a longer sum solved": [base, finetune.model_copy(update={"runs": [with_(shift=solved), *finetune.runs[1:]]})],
        "a better CKA": [base, finetune.model_copy(update={"runs": [with_(cka_debiased=0.99), *finetune.runs[1:]]})],
        "masks that nobody made": [
            base,
            finetune.model_copy(update={"runs": [with_(sparsity=0.5), *finetune.runs[1:]]}),
        ],
        "failures hidden": [base.model_copy(update={"failed": 3}), finetune],
    }
    if change == "another task":
        return board.model_copy(update={"task": "multiplication"})
    return board.model_copy(update={"rows": [*others, *changed[change]]})


@pytest.mark.parametrize(
    "change",
    ["names exchanged", "runs exchanged", "a rival left out", "a seed left out", "called the reference", "another command",
     "failures hidden", "another task", "longer sums left out", "a longer sum solved", "a better CKA", "masks that nobody made"],
)  # fmt: skip
def test_a_forgery_that_is_consistent_in_itself_is_refused_by_the_records(change: str, written: Path, cli: Cli) -> None:
    (board,) = read_boards(written.read_text(), written)
    written.write_text(as_markdown([forged(board, change)]))
    done = cli("leaderboard", "check")
    assert done.returncode == 3, done.stdout
    assert "does not follow" not in done.stdout  # the file alone would not show it


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda text: "# Leaderboard\n", "does not end in the data"),
        (lambda text: text.replace('"problems": 96', '"problems": 9', 1), "the answers are not those to 9 problems"),
        (lambda text: text.replace('"seed"', '"sed"', 1), "seed' is missing"),
        (lambda text: text.replace('"answers": "', '"answers": "!', 1), "runs.0: Only base64 data is allowed"),
    ],
)
def test_a_board_that_cannot_be_read_is_one_sentence(damage, words: str, written: Path, cli: Cli) -> None:  # type: ignore[no-untyped-def]
    written.write_text(damage(written.read_text()))
    done = cli("leaderboard", "check")
    assert done.returncode == 2 and words in done.stderr and "Traceback" not in done.stderr
    missing = cli("leaderboard", "check", "NOWHERE.md")
    assert missing.returncode == 2 and "cdbench leaderboard write" in missing.stderr


def test_the_repositorys_own_leaderboard_follows_from_its_answers(cli: Cli) -> None:
    root = Path(__file__).parents[1]
    done = cli("leaderboard", "check", root / "LEADERBOARD.md", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    workflow = (root / ".github" / "workflows" / "reproduce.yml").read_text()
    boards = read_boards((root / "LEADERBOARD.md").read_text(), root / "LEADERBOARD.md")
    of = {board.profile: sum(len(row.runs) for row in board.rows) for board in boards}
    assert sum(of.values()) == json.loads(done.stdout)["runs"]
    assert f"leaderboard check --require {of['tiny']}\n" in workflow
    assert f"their {of['tiny_lengths']} runs are not held" in workflow


def row(name: str, accuracy: float, seeds: tuple[int, ...], n: int = 1000) -> RowEntry:
    """A row whose runs solve about this share of the same problems."""
    rng = np.random.default_rng(sum(map(ord, name)))
    ease = np.random.default_rng(0).random(n)
    runs = []
    for seed in seeds:
        hits = (ease + 0.02 * rng.standard_normal(n) < accuracy).astype(float)
        run_id = hashlib.sha256(f"{name}{seed}".encode()).hexdigest()
        runs.append(
            RunEntry(
                run_id=run_id[:16], seed=seed, problems=n, answers=pack(list(hits)), predictions=run_id, cka_debiased=None,
                train_seconds=None, peak_memory_mib=None,
            )
        )  # fmt: skip
    return RowEntry(name=name, method=name, command="", commit="", code="", study="", failed=0, runs=runs)


def board_of(*rows: RowEntry) -> Board:
    return Board(task="t", profile="p", heldout="h", evaluation="e", rows=list(rows))


def test_answers_survive_packing_bit_by_bit() -> None:
    for n in (2, 7, 8, 9, 1001):
        hits = np.random.default_rng(n).random(n) < 0.5
        entry = row("x", 0.5, (0,), n).runs[0].model_copy(update={"answers": pack(list(hits.astype(float)))})
        assert (entry.hits == hits).all()


def test_rows_that_share_no_seed_are_compared_as_two_samples_and_not_called_ties() -> None:
    found = {
        each.entry.name: each for each in placed(board_of(row("good", 0.9, (0, 1, 2)), row("bad", 0.3, (5, 6, 7))))
    }
    assert (found["good"].place, found["bad"].place) == (1, 2) and found["good"].better_than == ("bad",)
    assert (found["good"].between, found["bad"].between) == ((1, 1), (2, 2))
    near = placed(board_of(row("one", 0.6, (0, 1)), row("two", 0.605, (1, 2))))
    assert [each.place for each in near] == [1, 1] and all(each.tied for each in near)
    assert [each.between for each in near] == [(1, 2), (1, 2)]


@pytest.mark.parametrize("seeds", [2, 3])
def test_rows_that_are_equally_good_seldom_have_different_places(seeds: int) -> None:
    """The whole of it (moderated spreads, the tail with its noise, Holm, pairs): of boards of six equal rows hardly one in ten
    tells two apart, and a row 25 points below the others is nearly always told apart of three seeds."""
    rng, boards, wrong, right = np.random.default_rng(seeds), 60, 0, 0

    def answers(level: float, hard: Any) -> Any:
        return (rng.random(hard.shape) < 1 / (1 + np.exp(-(level + 0.2 * rng.standard_normal() + hard)))).astype(float)

    def made(name: str, level: float, hard: Any) -> RowEntry:
        return row(name, 0.5, tuple(range(seeds))).model_copy(
            update={"runs": [
                run.model_copy(update={"answers": pack(list(answers(level, hard))), "problems": len(hard)})
                for run in row(name, 0.5, tuple(range(seeds))).runs
            ]}
        )  # fmt: skip

    for _ in range(boards):
        hard = 1.5 * rng.standard_normal(400)
        wrong += any(each.better_than for each in placed(board_of(*(made(f"r{i}", 0.0, hard) for i in range(6)))))
        levels = [("far", -2.0), *((f"r{i}", 0.0) for i in range(5))]
        far = next(r for r in placed(board_of(*(made(*each, hard) for each in levels))) if r.entry.name == "far")
        right += far.between == (6, 6)
    assert wrong / boards < 0.05 + 2 * (0.05 * 0.95 / boards) ** 0.5
    assert right / boards > (0.8 if seeds == 3 else 0.2)


def test_a_row_of_which_little_is_known_has_no_place_before_a_row_that_is_above_it() -> None:
    """Seeds at 5, 30 and 60 % are significantly below nobody: by those who beat it alone it would share the first place."""
    wild = row("wild", 0.05, (0,))
    wild = wild.model_copy(update={"runs": [*wild.runs, *row("", 0.3, (1,)).runs, *row("", 0.6, (2,)).runs]})
    high, low = row("high", 0.7, (0, 1, 2)), row("low", 0.5, (0, 1, 2))
    found = {each.entry.name: each for each in placed(board_of(wild, high, low))}
    assert found["wild"].worse_than == () and found["low"].worse_than == ("high",)
    assert [found[name].place for name in ("high", "low", "wild")] == [1, 2, 2]
    assert [found[name].tied for name in ("high", "low", "wild")] == [False, True, True]
    assert [each.entry.name for each in placed(board_of(wild, high, low))] == ["high", "low", "wild"]
    # Higher only by a seed that the other has not: on those of both it is significantly below.
    other = row("other", 0.5, (0, 1))
    other = other.model_copy(update={"runs": [*other.runs, *row("", 0.98, (2,)).runs]})
    first, second = placed(board_of(other, row("even", 0.6, (0, 1))))
    assert (first.entry.name, first.place, first.better_than) == ("even", 1, ("other",))
    assert (second.place, second.tied) == (2, False) and second.accuracy > first.accuracy


def test_a_run_that_is_listed_twice_counts_for_no_seed() -> None:
    once = row("x", 0.5, (0,))
    with pytest.raises(ValidationError, match="two of its runs have the same seed"):
        RowEntry.model_validate(once.model_dump() | {"runs": [once.runs[0].model_dump()] * 3})
    with pytest.raises(ValidationError, match="a run stands on it twice"):
        board_of(once, once.model_copy(update={"name": "y"}))


def test_settings_other_than_the_trainings_make_a_row_of_their_own(
    finished: Path, cli: Cli, args: list[str], tmp_path: Path
) -> None:
    shutil.rmtree(tmp_path / "runs")
    shutil.copytree(finished, tmp_path / "runs")
    assert cli("run", "finetune", *args, "--seeds", "0,1", "--set", "circuits.top_k=1").returncode == 0
    (board,) = json.loads(cli("leaderboard", "show", "--json").stdout)
    mine = [each for each in board["rows"] if each["name"].startswith("finetune")]
    assert [each["seeds"] for each in mine] == [2, 2] and len({each["name"] for each in mine}) == 2


def test_the_same_code_at_another_commit_makes_the_same_row(written: Path, cli: Cli, tmp_path: Path) -> None:
    for path in (tmp_path / "runs" / "records").glob("*/record.json"):
        table = json.loads(path.read_text())
        table["code"] |= {"commit": "f" * 40, "dirty": False}
        path.write_text(json.dumps(table))
    done = cli("leaderboard", "check")
    assert done.returncode == 0, done.stdout


def test_a_key_that_the_profile_has_got_since_is_no_setting(written: Path, tmp_path: Path) -> None:
    """As a record of before there was `student.stop_at`: the row says so, and prints no option that would be refused."""
    where = places(str(tmp_path / "runs"), None)
    found = [record.read(path.parent) for path in where.records.glob("*/record.json")]
    trained = next(each for each in found if each.spec.method not in ("teacher", "base"))
    student = trained.spec.profile.student.model_copy(update={"stop_at": None})
    profile = trained.spec.profile.model_copy(update={"name": "tiny", "student": student})
    older = trained.model_copy(update={"spec": trained.spec.model_copy(update={"profile": profile})})
    row = _row([older], 0, "", where)
    assert "None" not in row.name + row.command and "--set student.layers=" in row.command
    assert "tiny as it was" in row.name and f"# profile as of {trained.code.commit[:12]}" in row.command


def test_the_same_answers_by_other_code_are_a_note_and_not_a_fault(written: Path, cli: Cli, tmp_path: Path) -> None:
    """A change of code that no answer depends on must not turn everybody's own records against the published file."""
    for path in (tmp_path / "runs" / "records").glob("*/record.json"):
        table = json.loads(path.read_text())
        table["code"]["digest"] = "0" * len(table["code"]["digest"])
        path.write_text(json.dumps(table))
    done = cli("leaderboard", "check")
    assert done.returncode == 0, done.stdout
    assert "3 of 3 rows are of other code than their records" in done.stdout
    assert "5 of 5 runs were held" in done.stdout


def test_records_of_another_evaluation_are_told_and_held_all_the_same(written: Path, cli: Cli, tmp_path: Path) -> None:
    """Whichever of the two is of today: a file that says so falsely must not pass without a word."""
    (board,) = read_boards(written.read_text(), written)
    for path in (tmp_path / "runs" / "records").glob("*/record.json"):
        table = json.loads(path.read_text())
        table["code"]["evaluation"] = "f" * 16
        path.write_text(json.dumps(table))
    done = cli("leaderboard", "check")
    assert done.returncode == 0, done.stdout
    assert f"judged by evaluation {board.evaluation}, its records here by {'f' * 16}" in done.stdout
    assert "5 of 5 runs were held" in done.stdout


def test_writing_takes_no_run_off_the_file_unless_it_is_told_to(written: Path, cli: Cli, tmp_path: Path) -> None:
    before = written.read_text()
    (board,) = read_boards(before, written)
    gone = next(row for row in board.rows if row.method == "base").run_ids
    for run_id in gone:
        shutil.rmtree(tmp_path / "runs" / "records" / run_id)
    done = cli("leaderboard", "write")
    assert done.returncode == 2 and written.read_text() == before
    assert f"{len(gone)} of the 5 runs in LEADERBOARD.md would be taken off it" in done.stderr
    assert "write --into another file, or --force" in done.stderr
    assert cli("leaderboard", "write", "--into", "mine.md").returncode == 0
    assert cli("leaderboard", "write", "--force").returncode == 0
    assert written.read_text() == (tmp_path / "mine.md").read_text() != before
    for damaged in (b"# Something else\n", b"\xff\xfe"):
        written.write_bytes(damaged)
        assert cli("leaderboard", "write").returncode == 0  # what cannot be read is made anew, as its message says


def test_a_board_that_was_taken_off_the_file_is_told(written: Path, cli: Cli, tmp_path: Path, world: World) -> None:
    places = ["--profile", str(world.profile_file), "--store", str(world.store)]
    assert cli("run", "base", *places, "--set", "data.test=64").returncode == 0
    done = cli("leaderboard", "check")
    assert done.returncode == 0, done.stdout
    assert "a board of 2 rows has its records here and is not in the file" in done.stdout


def test_runs_are_listed_with_what_they_are(finished: Path, cli: Cli, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "runs")
    listed = cli("list", "runs", "--json")
    rows = json.loads(listed.stdout)["runs"]
    assert listed.returncode == 0 and len(rows) == 5
    for row in rows:
        table = json.loads((tmp_path / "runs" / "records" / row["run_id"] / "record.json").read_text())
        assert (row["method"], row["seed"], row["status"]) == (table["spec"]["method"], table["spec"]["seed"], "ok")
        assert row["accuracy"] == table["metrics"]["accuracy"]["value"]
    lines = cli("list", "runs").stdout.splitlines()
    assert len(lines) == 5 and all(f"  {'ok':<11} " in line for line in lines)  # in columns


def test_runs_made_again_on_another_machine_may_differ_and_a_note_says_so(
    written: Path, cli: Cli, tmp_path: Path
) -> None:
    (told,) = read_boards(written.read_text(), written)
    row = next(row for row in told.rows if row.method == "finetune")
    first = row.runs[0]

    def write(of: str, machine: str = "another, 1 threads", **update: object) -> RunEntry:
        """A file of which one run has other numbers and another machine."""
        target = next(row for row in told.rows if row.method == of)
        other = target.runs[0].model_copy(update={"machine": machine, **update})
        rows = [r if r is not target else r.model_copy(update={"runs": [other, *r.runs[1:]]}) for r in told.rows]
        written.write_text(as_markdown([told.model_copy(update={"rows": rows})]))
        return other

    some = first.hits.copy()
    some[:5] = 1 - some[:5]
    changed = write("finetune", answers=pack(list(some)))
    done = cli("leaderboard", "check")
    assert done.returncode == 0, done.stdout
    assert re.search(
        r"note: finetune, run \w+: answers differ from the record here, which is of .*, not another", done.stdout
    )
    told_of = re.search(r"(\d+) of (\d+) runs were held", done.stdout)
    assert told_of and int(told_of[1]) == int(told_of[2]) - 1
    assert "1 were made again on another kind of machine and are about as accurate" in done.stdout
    assert f"accuracy is {100 * changed.hits.mean():.1f} % and here {100 * first.hits.mean():.1f} %" in done.stdout
    required = cli("leaderboard", "check", "--require", told_of[2])
    assert required.returncode == 0, required.stderr
    more = cli("leaderboard", "check", "--require", str(int(told_of[2]) + 1))
    assert more.returncode == 3 and f"{told_of[2]} of {told_of[2]} runs" in more.stderr
    write("finetune", first.machine, answers=pack(list(some)))  # no other machine, no other answers
    assert cli("leaderboard", "check").returncode == 3
    # What no machine explains is a fault, whatever machine is named.
    faults = 0
    for made_up in (np.ones_like(some), np.zeros_like(some)):
        write("finetune", answers=pack(list(made_up)))
        done = cli("leaderboard", "check")
        apart = abs(made_up.mean() - first.hits.mean()) > 0.1 + np.ptp([run.hits.mean() for run in row.runs])
        assert done.returncode == (3 if apart else 0), done.stdout
        assert ("more than another machine should explain" in done.stdout) == apart
        faults += apart
    assert faults
    solved = {name: Answered(problems=f.problems, answers=pack([1.0] * f.problems)) for name, f in first.shift.items()}
    for update, what in (
        ({"shift": solved}, "accuracy on addition_3digit is 1.000"),
        ({"cka_debiased": 0.99}, "CKA is 0.990"),
    ):
        write("finetune", **update)
        done = cli("leaderboard", "check", "--json")
        assert done.returncode == 3 and what in done.stdout, done.stdout
        assert json.loads(done.stdout)["held"] == int(told_of[2]) - 1
    # Where the models themselves came out otherwise, their runs are not held, and whoever requires them is told.
    base = next(row for row in told.rows if row.method == "base").runs[0]
    moved = 1 - base.hits if abs(1 - 2 * base.hits.mean()) > 0.1 else np.ones_like(base.hits)
    write("base", answers=pack(list(moved)))
    done = cli("leaderboard", "check")
    assert done.returncode == 0, done.stdout
    assert "the models themselves came out otherwise here, by" in done.stdout
    assert "1 were made again from models that came out otherwise and could not be held" in done.stdout
    assert cli("leaderboard", "check", "--require", told_of[2]).returncode == 3


def test_a_board_of_an_older_evaluation_is_right_and_says_that_it_is_old(
    written: Path, cli: Cli, tmp_path: Path
) -> None:
    assert "note:" not in cli("leaderboard", "check").stdout
    (told,) = read_boards(written.read_text(), written)
    written.write_text(as_markdown([told.model_copy(update={"evaluation": "0" * 16})]))
    shutil.rmtree(tmp_path / "runs")
    done = cli("leaderboard", "check")
    assert done.returncode == 0 and "note: addition_2digit" in done.stdout
    assert "judged by evaluation 0000000000000000, today's is" in done.stdout


def test_time_limits_make_no_row_of_their_own_and_changes_in_the_tree_are_shown(
    written: Path, cli: Cli, tmp_path: Path
) -> None:
    for path in (tmp_path / "runs" / "records").glob("*/record.json"):
        table = json.loads(path.read_text())
        if table["spec"]["seed"] == 1:
            table["spec"]["profile"]["timeout_minutes"] += 7
            table["code"]["dirty"] = True
            path.write_text(json.dumps(table))
    (board,) = json.loads(cli("leaderboard", "show", "--json").stdout)
    rows = {row["name"]: row for row in board["rows"]}
    assert set(rows) == {"teacher", "base", "finetune"} and rows["finetune"]["seeds"] == 2
    assert rows["finetune"]["commit"].endswith("+changes")
