"""The report in a real browser without a network, and MLflow against a real server."""

import csv
import html.parser
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import Cli, World


@pytest.fixture(scope="module")
def study(world: World, mlflow_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A runs folder with a small paper_a and failed_run study in it."""
    root = tmp_path_factory.mktemp("study")
    (root / "runs").mkdir()
    shutil.copyfile(mlflow_template, root / "runs" / "mlflow.db")
    command = [sys.executable, "-m", "cdbench", "reproduce", "paper_a", "failed_run", "--profile", world.profile_file]
    command += ["--store", world.store, "--seeds", "0,1", "--set", "training.epochs=1"]
    done = subprocess.run([str(c) for c in command], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (root / "stderr.txt").write_text(done.stderr)
    # Other seeds and epochs make another study, with a name of its own; the tests go by the plain one.
    for name in ("paper_a-micro", "failed_run-micro"):
        made = next((root / "runs").glob(f"{name}-??????"))
        table = json.loads((made / "study.json").read_text()) | {"name": name}
        (made / "study.json").write_text(json.dumps(table))
        made.rename(root / "runs" / name)
    return root


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


def test_every_run_and_figure_is_there_and_the_numbers_are_the_records(study: Path) -> None:
    folder = study / "runs" / "paper_a-micro" / "report"
    text = (folder / "index.html").read_text()
    for figure in ("accuracy", "dynamics", "gradients", "ablation", "cka", "masks", "k-selection"):
        assert f'id="figure-{figure}"' in text
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
    runs = table(folder / "runs.csv")
    assert len(runs) == 23
    for run in runs:
        assert f'id="run-{run["run_id"]}"' in text


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
    assert len(list((study / "runs" / "records").iterdir())) == 23 + 9 - 1
    log = (study / "stderr.txt").read_text()
    assert "9 runs: 8 to do, 1 finished before" in log


def test_the_grid_has_four_cells_and_marks_the_papers(study: Path) -> None:
    text = (study / "runs" / "failed_run-micro" / "report" / "index.html").read_text()
    assert text.count('class="mark"') == 1
    assert text.count("share ") >= 4
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


CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine: apt-get install chromium")
def test_a_browser_without_network_shows_the_page_without_a_complaint(study: Path, tmp_path: Path) -> None:
    page = study / "runs" / "paper_a-micro" / "report" / "index.html"
    command = [
        str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run",
        "--enable-logging=stderr", "--v=0", f"--user-data-dir={tmp_path / 'profile'}", "--window-size=390,900",
        "--dump-dom", page.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert "CONSOLE" not in done.stderr
    assert done.stdout.count("<figure") == 7


def mlflow_runs(uri: str, experiment: str) -> tuple[list, object]:  # type: ignore[type-arg]
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    found = client.get_experiment_by_name(experiment)
    assert found is not None
    return list(client.search_runs([found.experiment_id], max_results=500)), client


@pytest.mark.filterwarnings("ignore")
def test_mlflow_holds_a_parent_a_study_and_a_child_a_record_each_point_once(study: Path, cli: Cli) -> None:
    uri = f"sqlite:///{study / 'runs' / 'mlflow.db'}"
    cli("sync", "paper_a-micro", "--runs", study / "runs")
    for _ in range(2):
        runs, client = mlflow_runs(uri, "cdbench/paper_a-micro")
        children = [r for r in runs if r.data.tags["cdbench.kind"] == "run"]
        parents = [r for r in runs if r.data.tags["cdbench.kind"] == "study"]
        assert (len(parents), len(children)) == (1, 23)
        assert {r.data.tags["mlflow.parentRunId"] for r in children} == {parents[0].info.run_id}
        kl = next(r for r in children if r.data.tags["cdbench.method"] == "kl")
        record = json.loads((study / "runs/records" / kl.data.tags["cdbench.run_id"] / "record.json").read_text())
        assert kl.data.metrics["final/accuracy"] == record["metrics"]["accuracy"]["value"]
        assert kl.data.params["training.lr"] == "0.001"
        steps = [m.step for m in client.get_metric_history(kl.info.run_id, "train/loss/kl")]  # type: ignore[attr-defined]
        assert steps == list(range(1, 9))
        # As after a sync that died in the middle: send again what was not marked complete.
        client.delete_tag(kl.info.run_id, "cdbench.complete")  # type: ignore[attr-defined]
        done = cli("sync", "paper_a-micro", "--runs", study / "runs")
        assert done.returncode == 0, done.stderr
        assert "1 records sent, 22 were there already" in done.stdout


@pytest.fixture
def port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.fixture
def server(port: int, tmp_path: Path, mlflow_template: Path) -> Iterator[str]:
    """A real MLflow server on loopback."""
    shutil.copyfile(mlflow_template, tmp_path / "server.db")
    command = [
        str(Path(sys.executable).with_name("mlflow")), "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
        "--backend-store-uri", f"sqlite:///{tmp_path / 'server.db'}", "--artifacts-destination", str(tmp_path / "artifacts"),
    ]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        for _ in range(300):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.2)
        else:
            pytest.fail("the MLflow server did not come up in 60 s")
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, 9)
        process.wait()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_server_that_is_down_costs_nothing_and_sync_brings_it_up_to_date(
    study: Path, port: int, server: str, cli: Cli, world: World, tmp_path: Path
) -> None:
    nobody = f"http://127.0.0.1:{port + 1 if port < 65535 else port - 1}"
    quick = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
    args = ["--runs", study / "runs", "--store", world.store, "--seeds", "0,1", "--set", "training.epochs=1"]
    down = cli("reproduce", "failed_run", "--profile", world.profile_file, "--mlflow", nobody, *args, **quick)
    assert down.returncode == 0, down.stderr
    assert "cannot be brought up to date" in down.stderr and "cdbench sync failed_run-micro-" in down.stderr
    late = cli("sync", "failed_run-micro", "--mlflow", nobody, "--runs", study / "runs", **quick)
    assert late.returncode == 4
    assert "Traceback" not in late.stderr
    for expected in ("9 records sent, 0 were there", "0 records sent, 9 were there"):
        done = cli("sync", "failed_run-micro", "--mlflow", server, "--runs", study / "runs")
        assert done.returncode == 0, done.stderr
        assert expected in done.stdout
    runs, _ = mlflow_runs(server, "cdbench/failed_run-micro")
    assert len(runs) == 10
