"""The report of a real study: every number is the records', nothing is made up, and it stands alone."""

import csv
import html.parser
import json
import re
import shutil
from pathlib import Path

import pytest

from conftest import Cli

FIGURES = [
    "accuracy", "shift", "errors", "dynamics", "gradients", "ablation", "cka", "masks", "mask-layers", "planes", "k-selection",
    "faithfulness", "circuit-graph", "heads", "attention", "component-cka",
]  # fmt: skip


def table(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


class Page(html.parser.HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.anchors: list[str] = []
        self.outside: list[str] = []
        self.unnamed: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = dict(attributes)
        if given.get("id"):
            self.ids.append(str(given["id"]))
        link = given.get("href") or given.get("xlink:href") or given.get("src") or ""
        if link.startswith("#"):
            self.anchors.append(link[1:])
        elif link and not link.startswith("data:"):
            self.outside.append(link)
        if given.get("role") == "img" and not given.get("aria-label"):
            self.unnamed.append(tag)


@pytest.mark.parametrize("name", ["paper_a-micro", "failed_run-micro"])
def test_the_page_stands_alone_and_every_anchor_resolves(study: Path, name: str) -> None:
    text = (study / "runs" / name / "report" / "index.html").read_text()
    page = Page(text)
    assert page.outside == []
    assert set(page.anchors) <= set(page.ids)
    assert page.unnamed == []
    assert "http://" not in text.replace("http://www.w3.org", "") and "https://" not in text
    assert len(text) < 5 << 20


@pytest.mark.parametrize("name", ["paper_a-micro", "failed_run-micro"])
def test_every_table_of_the_markdown_is_a_table_to_commonmark(study: Path, name: str) -> None:
    """As many cells in each line as in its header: a bar that is escaped, or one too many, makes plain text of all of them."""
    text = (study / "runs" / name / "report" / "report.md").read_text()
    blocks = re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE)
    assert len(blocks) >= 4
    for block in blocks:
        assert len({line.replace(r"\|", "").count("|") for line in block.splitlines()}) == 1, block


def test_every_run_and_figure_is_there_and_the_numbers_are_the_records(study: Path) -> None:
    folder = study / "runs" / "paper_a-micro" / "report"
    text = (folder / "index.html").read_text()
    runs = table(folder / "runs.csv")
    methods = {run["run_id"]: run["label"].split()[0] for run in runs}
    shows: dict[str, list[str]] = {}
    for figure in FIGURES:
        drawn = re.search(f'<figure id="figure-{figure}">.*?</figure>', text, re.DOTALL)
        assert drawn, figure
        ids = re.findall('href="#run-([0-9a-f]{16})"', drawn.group())
        shows[figure] = [methods[run_id] for run_id in ids]
    assert all(shows.values()) and shows["accuracy"].count("kl") == 2
    assert set(shows["k-selection"]) == set(shows["masks"]) == set(shows["planes"]) == {"mask_discovery"}
    assert shows["cka"] == ["base", "finetune", "kl", "cka_cd"] == shows["component-cka"]
    assert shows["circuit-graph"] == ["teacher", "base", "cka_cd"]
    rows = table(folder / "table1.csv")
    assert [row["method"] for row in rows][:3] == ["teacher", "base", "finetune"]
    paper = {row["method"]: row["paper"] for row in rows}
    assert (paper["teacher"], paper["base"], paper["kl"], paper["cka_cd"]) == ("0.963", "0.516", "0.636", "0.963")
    records = [json.loads(p.read_text()) for p in (study / "runs" / "records").glob("*/record.json")]
    for row in rows:
        mine = [
            r["metrics"]["accuracy"]["value"]
            for r in records
            if r["spec"]["method"] == row["method"] and r["params"].get("alignment_weight") != 0.05
            and r["spec"]["profile"]["training"]["lr"] == 1e-3
        ]  # fmt: skip
        assert float(row["mean"]) == pytest.approx(sum(mine) / len(mine)), row["method"]
    assert len(runs) == 25
    for run in runs:
        assert f'id="run-{run["run_id"]}"' in text


def test_what_is_no_number_of_table_1_is_in_a_table_of_its_own(study: Path) -> None:
    folder = study / "runs" / "paper_a-micro" / "report"
    rows = {row["method"]: row for row in table(folder / "table1.csv")}
    shift = [row for row in table(folder / "shift.csv") if row["name"] == "finetune"]
    assert {row["set"] for row in shift} == {"addition_3digit", "addition_4digit", "addition_5digit"}
    for row in shift:
        assert float(row["low"]) <= float(row["mean"]) <= float(row["high"])
        assert row["runs"] == rows["finetune"]["runs"]
    costs = {row["name"]: row for row in table(folder / "cost.csv")}
    assert costs.keys() == rows.keys() and float(costs["finetune"]["ratio"]) == 1
    effects = table(study / "runs" / "failed_run-micro" / "report" / "effects.csv")
    assert all(float(row["low"]) <= float(row["effect"]) <= float(row["high"]) and row["runs"] for row in effects)
    assert len(effects) > 2
    cells = table(study / "runs" / "failed_run-micro" / "report" / "grid.csv")
    assert [row["the paper's failed run"] for row in cells].count("True") == 1 and len(cells) == 4
    assert all(float(row["low"]) <= float(row["accuracy"]) <= float(row["high"]) and row["runs"] for row in cells)
    carries = [row for row in table(folder / "carries.csv") if row["row"] == "finetune"]
    solved = sum(float(row["accuracy"]) * int(row["problems"]) for row in carries)
    assert solved / sum(int(row["problems"]) for row in carries) == pytest.approx(float(rows["finetune"]["mean"]))
    masks = table(folder / "masks.csv")
    assert {row["model"] for row in masks} == {"student", "teacher"} and {row["row"] for row in masks} == {
        "mask_discovery"
    }
    (record,) = [json.loads((study / "runs/records" / run / "record.json").read_text()) for run in {masks[0]["runs"]}]
    sparsity = record["metrics"]["masks"][masks[0]["model"]]["sparsity"]
    assert float(masks[0]["sparsity"]) == pytest.approx(sparsity)
    assert not (folder / "effects.csv").exists()  # nothing is swept there


def test_a_claim_that_is_mathematics_is_decided_by_the_conformance_battery(study: Path) -> None:
    folder = study / "runs" / "paper_a-micro" / "report"
    page = (folder / "index.html").read_text()
    rows = {row["id"]: row for row in table(folder / "claims.csv")}
    assert rows["A.cka-invariant"]["verdict"] == "refuted"
    for text in (page, (folder / "report.md").read_text()):
        assert text.count("0.203111") == 2  # as measured, and by the closed form
    assert rows["B.cka-two-forms"]["verdict"] == rows["B.cka-rotation"]["verdict"] == "supported"
    assert 'id="claim-A-cka-invariant"' in page and "cdbench check cka --only invertible_map" in page


def test_the_page_tells_the_budget_that_was_trained_with_and_the_command_that_repeats_it(study: Path) -> None:
    text = (study / "runs" / "paper_a-micro" / "report" / "index.html").read_text()
    assert "1 epochs instead of 50" in text and "Learning rate 0.001 and batch size 32" in text
    assert "--seeds 0,1 --set training.epochs=1" in text


def test_the_row_of_weight_zero_equals_kl_and_base_equals_its_seeds(study: Path) -> None:
    rows = {r["method"]: r for r in table(study / "runs/paper_a-micro/report/table1.csv")}
    assert rows["cka_weight_zero"]["mean"] == rows["kl"]["mean"]
    assert rows["cka_weight_zero"]["cka_debiased"] == rows["kl"]["cka_debiased"]
    assert rows["base"]["identical"] == "True"
    assert rows["mask_discovery"]["mean"] == rows["base"]["mean"]
    assert 0 < float(rows["mask_discovery"]["sparsity"]) < 1


def test_a_run_that_two_studies_share_is_run_once(study: Path) -> None:
    ids = [json.loads((study / f"runs/{n}-micro/study.json").read_text())["run_ids"] for n in ("paper_a", "failed_run")]
    assert len(set(ids[0]) & set(ids[1])) == 1  # the teacher
    assert len(list((study / "runs" / "records").iterdir())) == 25 + 9 - 1
    log = (study / "stderr.txt").read_text()
    assert "9 runs: 8 to do, 1 finished before" in log


def test_the_grid_has_four_cells_and_marks_the_papers(study: Path) -> None:
    text = (study / "runs" / "failed_run-micro" / "report" / "index.html").read_text()
    assert text.count('class="mark"') == 1
    assert text.count("<br>share ") == 4
    markdown = (study / "runs" / "failed_run-micro" / "report" / "report.md").read_text()
    assert markdown.count("(the paper's cell)") == 1


def test_a_report_of_an_unfinished_study_says_so_and_makes_up_nothing(study: Path, tmp_path: Path, cli: Cli) -> None:
    runs = tmp_path / "runs"
    shutil.copytree(study / "runs", runs)
    table = json.loads((runs / "paper_a-micro" / "study.json").read_text())
    for run_id in table["run_ids"][1:4]:
        shutil.rmtree(runs / "records" / run_id)
    done = cli("report", "paper_a-micro")
    assert done.returncode == 0, done.stderr
    text = (runs / "paper_a-micro" / "report" / "index.html").read_text()
    assert "3 planned runs have no record yet" in text
    for run_id in table["run_ids"]:
        shutil.rmtree(runs / "records" / run_id, ignore_errors=True)
    empty = cli("report", "paper_a-micro")
    assert empty.returncode == 2
    assert "has no record yet; run it first" in empty.stderr


@pytest.mark.parametrize("damage", [lambda text: text[:-20], lambda text: text.replace('"text": "1', '"text": "9', 5)])
def test_altered_predictions_are_an_error_that_names_the_file(damage, study: Path, tmp_path: Path, cli: Cli) -> None:  # type: ignore[no-untyped-def]
    shutil.copytree(study / "runs", tmp_path / "runs")
    run_id = json.loads((study / "runs" / "paper_a-micro" / "study.json").read_text())["run_ids"][1]
    path = tmp_path / "runs" / "records" / run_id / "predictions.jsonl"
    path.write_text(damage(path.read_text()))
    done = cli("report", "paper_a-micro")
    assert done.returncode == 2
    assert str(path) in done.stderr and "Traceback" not in done.stderr


def test_a_record_that_says_more_than_its_predictions_is_an_error(study: Path, tmp_path: Path, cli: Cli) -> None:
    shutil.copytree(study / "runs", tmp_path / "runs")
    run_id = json.loads((study / "runs" / "paper_a-micro" / "study.json").read_text())["run_ids"][1]
    path = tmp_path / "runs" / "records" / run_id / "record.json"
    table = json.loads(path.read_text())
    solved = table["metrics"]["accuracy"]["k"]
    table["metrics"]["accuracy"] |= {"k": 90, "value": 90 / 96}
    path.write_text(json.dumps(table))
    done = cli("report", "paper_a-micro")
    assert done.returncode == 2
    assert f"says that 90 of 96 problems were solved, the predictions beside it {solved} of 96" in done.stderr


def test_rows_with_other_length_shifts_share_the_columns_of_a_table() -> None:
    from cdbench.report.build import to_csv
    from cdbench.report.circuits import _NUMBERS, circuit_table

    rest = dict.fromkeys((*_NUMBERS, "stability", "nodes", "perplexity", "changed", "parameters"))
    rows = [{"name": name, "run_ids": ["1"], "shift_perplexity": shift, "digits": {}} | rest
            for name, shift in (("old", {}), ("a", {"addition_3digit": 2.0}), ("b", {"subtraction_3digit": 3.0}))]  # fmt: skip
    head, *lines = to_csv(circuit_table(rows)).splitlines()
    assert "perplexity addition_3digit,perplexity subtraction_3digit,runs" in head and len(lines) == 3
    assert lines[1].endswith(",2.0,,1") and lines[2].endswith(",,3.0,1")
