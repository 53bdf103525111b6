"""Records that lack something: a clear sentence or a marked gap, never a crash, never a made-up number."""

import csv
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cdbench.plan import Places, read_study
from cdbench.report.build import write_report

Change = Callable[[dict[str, Any]], None]


@pytest.fixture
def reported(study: Path, tmp_path: Path) -> Callable[..., Path]:
    """Copies a study, changes its records, writes its report; returns the report's folder."""

    def write(name: str, change: Change) -> Path:
        shutil.copytree(study / "runs", tmp_path / "runs")
        for path in (tmp_path / "runs" / "records").glob("*/record.json"):
            table = json.loads(path.read_text())
            change(table)
            path.write_text(json.dumps(table))
        where = Places(tmp_path / "runs", tmp_path / "runs" / "store")
        return write_report(read_study(name, where), where).parent

    return write


def failed(table: dict[str, Any]) -> None:
    table |= {"status": "timeout", "error": "no end after 5 minutes", "metrics": None, "inputs": {}}


@pytest.mark.parametrize("name", ["paper_a-micro", "failed_run-micro"])
def test_a_study_of_failures_alone_has_a_page_that_says_so(name: str, reported: Callable[..., Path]) -> None:
    folder = reported(name, failed)
    page = (folder / "index.html").read_text()
    assert "of 25 runs came to no result" in page or "of 9 runs came to no result" in page
    assert page.count('class="bad">no result') >= 5 and "no end after 5 minutes" in page
    assert "is not known: no run got so far" in page and "None of" not in page
    with (folder / "table1.csv").open() as file:
        assert {row["mean"] for row in csv.DictReader(file)} == {""}
    with (folder / "claims.csv").open() as file:
        decided = [row for row in csv.DictReader(file) if row["verdict"] != "not tested here"]
    assert all(row["unit"] == "mathematics" for row in decided)


def test_a_row_that_failed_in_part_says_how_many_and_why(reported: Callable[..., Path]) -> None:
    def change(table: dict[str, Any]) -> None:
        if table["spec"]["method"] == "kl" and table["spec"]["seed"] == 1:
            failed(table)

    folder = reported("paper_a-micro", change)
    with (folder / "table1.csv").open() as file:
        rows = {row["method"]: row for row in csv.DictReader(file)}
    assert (rows["kl"]["seeds"], rows["kl"]["failed"]) == ("1", "1") and rows["kl"]["mean"]
    assert "interval" not in rows["kl"]  # a column is a column in every row
    page = (folder / "index.html").read_text()
    assert "1 of 25 runs came to no result" in page and "no end after 5 minutes" in page


def test_a_report_of_a_study_under_way_counts_what_is_not_there_yet(
    reported: Callable[..., Path], tmp_path: Path
) -> None:
    folder = reported("paper_a-micro", lambda table: None)
    assert "None: every run came to a result." in (folder / "index.html").read_text()
    where = Places(tmp_path / "runs", tmp_path / "runs" / "store")
    saved = read_study("paper_a-micro", where)
    (where.run(saved.run_ids[-1]) / "record.json").unlink()
    page = write_report(saved, where).read_text()
    assert "every run came to a result" not in page and "1 of the study's runs has no record yet" in page


def test_runs_of_several_versions_are_told_apart(reported: Callable[..., Path]) -> None:
    def change(table: dict[str, Any]) -> None:
        if table["spec"]["seed"] == 1:
            table["code"] |= {"commit": "f" * 40, "digest": "0" * 16, "evaluation": "1" * 16}

    folder = reported("paper_a-micro", change)
    for file in ("index.html", "report.md"):
        text = (folder / file).read_text()
        assert "Runs of different versions stand in this report." in text
        assert "2 versions of the evaluator" in text and "2 commits" in text
        assert "evaluation 1" in text and "evaluation 2" in text
    with (folder / "table1.csv").open() as file:
        assert {row["seeds"] for row in csv.DictReader(file)} == {"1"}
    with (folder / "claims.csv").open() as file:
        decided = [row for row in csv.DictReader(file) if row["verdict"] != "not tested here"]
    alone = [row for row in decided if row["unit"] != "mathematics"]
    assert {row["id"] for row in alone} <= {"B.even-heads"}  # about the teacher, which has one run


def _of_another_evaluation(key: str, value: object) -> Change:
    def change(table: dict[str, Any]) -> None:
        if {**table["params"], **table["spec"]}.get(key) == value:
            table["code"] |= {"evaluation": "1" * 16}

    return change


def test_a_cell_of_runs_that_cannot_be_compared_shows_neither_part(reported: Callable[..., Path]) -> None:
    folder = reported("failed_run-micro", _of_another_evaluation("seed", 1))
    assert not (folder / "effects.csv").exists()
    with (folder / "grid.csv").open() as file:
        cells = list(csv.DictReader(file))
    assert {(cell["seeds"], cell["accuracy"]) for cell in cells} == {("2", "")}
    assert (folder / "index.html").read_text().count("runs of two evaluations or models") == 4


def test_a_factorial_half_of_which_was_judged_otherwise_shows_no_effect(reported: Callable[..., Path]) -> None:
    folder = reported("failed_run-micro", _of_another_evaluation("alignment_weight", 0.01))
    assert not (folder / "effects.csv").exists()
    with (folder / "grid.csv").open() as file:
        assert all(cell["accuracy"] for cell in csv.DictReader(file))


def test_records_from_before_a_field_was_kept_have_gaps_there(reported: Callable[..., Path]) -> None:
    def change(table: dict[str, Any]) -> None:
        table["code"].pop("evaluation")
        table["extras"].pop("problem_classes", None)
        if table["metrics"]:
            table["metrics"].pop("mask_agreement")
            for masks in table["metrics"]["masks"].values():
                masks.pop("by_layer")

    page = (reported("paper_a-micro", change) / "index.html").read_text()
    assert "figure-planes" not in page and "figure-mask-layers" not in page
    assert 'id="masks"' in page and "evaluated by an older version" in page


def test_results_without_cka_and_circuit_leave_gaps_and_say_why(reported: Callable[..., Path]) -> None:
    def change(table: dict[str, Any]) -> None:
        if table["metrics"]:
            table["metrics"] |= {
                "cka": None,
                "circuit": None,
                "circuit_not_judged": "no two problems can be contrasted",
            }

    folder = reported("paper_a-micro", change)
    page = (folder / "index.html").read_text()
    assert (
        'id="components"' not in page
        and "figure-cka" not in page
        and "None" not in re.sub(r"<[^>]*>", "", page).split()
    )
    assert "no two problems can be contrasted" in page
    with (folder / "table1.csv").open() as file:
        assert {row["cka_debiased"] for row in csv.DictReader(file)} == {""}


def test_one_seed_decides_nothing_that_seeds_change(reported: Callable[..., Path]) -> None:
    def change(table: dict[str, Any]) -> None:
        if table["spec"]["seed"] == 1:
            failed(table)

    folder = reported("paper_a-micro", change)
    with (folder / "claims.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["unit"] == "points" and row["effect"]]
    assert rows and {row["verdict"] for row in rows} == {"inconclusive"}
