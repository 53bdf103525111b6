"""MLflow against a real store and a real server."""

import json
import re
import urllib.parse
from datetime import datetime
from pathlib import Path

import pytest

from browser import browser, needs_browser, tab
from conftest import Cli, World


def mlflow_runs(uri: str, experiment: str) -> tuple[list, object]:  # type: ignore[type-arg]
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    found = client.get_experiment_by_name(experiment)
    assert found is not None
    return list(client.search_runs([found.experiment_id], max_results=500)), client


@pytest.mark.filterwarnings("ignore")
def test_mlflow_holds_a_parent_a_study_and_a_child_a_record_each_point_once(study: Path, cli: Cli) -> None:
    uri = f"sqlite:///{study / 'runs' / 'mlflow.db'}"
    cli("sync", "paper_a-micro", "--runs", study / "runs", MLFLOW_TRACKING_URI="")
    for _ in range(2):
        runs, client = mlflow_runs(uri, "cdbench/paper_a-micro")
        children = [r for r in runs if r.data.tags["cdbench.kind"] == "run"]
        parents = [r for r in runs if r.data.tags["cdbench.kind"] == "study"]
        assert (len(parents), len(children)) == (1, 25)
        assert {r.data.tags["mlflow.parentRunId"] for r in children} == {parents[0].info.run_id}
        kl = next(r for r in children if r.data.tags["cdbench.method"] == "kl")
        record = json.loads((study / "runs/records" / kl.data.tags["cdbench.run_id"] / "record.json").read_text())
        assert kl.data.metrics["final/accuracy"] == record["metrics"]["accuracy"]["value"]
        assert kl.data.params["training.lr"] == "0.001"
        steps = [m.step for m in client.get_metric_history(kl.info.run_id, "train/loss/kl")]  # type: ignore[attr-defined]
        assert steps == list(range(1, 9))
        # As after a sync that died in the middle: send again what was not marked complete.
        client.delete_tag(kl.info.run_id, "cdbench.complete")  # type: ignore[attr-defined]
        done = cli("sync", "paper_a-micro", "--runs", study / "runs", MLFLOW_TRACKING_URI="")
        assert done.returncode == 0, done.stderr
        assert "1 records sent, 24 were there already" in done.stdout


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


@needs_browser
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_person_finds_compares_and_plots_the_runs_in_a_browser(study: Path, server: str, cli: Cli) -> None:
    done = cli("sync", "paper_a-micro", "--mlflow", server, "--runs", study / "runs")
    assert done.returncode == 0, done.stderr
    runs, client = mlflow_runs(server, "cdbench/paper_a-micro")
    experiment = client.get_experiment_by_name("cdbench/paper_a-micro").experiment_id  # type: ignore[attr-defined]
    kl = [r for r in runs if r.data.tags.get("cdbench.method") == "kl"]
    record = json.loads((study / "runs/records" / kl[0].data.tags["cdbench.run_id"] / "record.json").read_text())
    assert kl[0].info.start_time == datetime.fromisoformat(record["started"]).timestamp() * 1000  # not when it was sent
    with browser() as started, tab(started, width=1600, offline=False) as opened:
        page = opened.page
        query = "workflowType=machine_learning&compareRunsMode=CHART"
        page.goto(f"{server}/#/experiments/{experiment}/runs?{query}")
        page.get_by_role("gridcell").filter(has_text="paper_a-micro").locator("button").first.click()  # its +
        page.get_by_text("/ addition_2digit / seed").nth(3).wait_for()  # the rows that are in view
        page.get_by_text(re.compile(r"\([1-9]\d*\)")).first.wait_for()  # charts: "final (8)"
        chart = page.locator(".js-plotly-plot").first
        chart.locator(".barlayer .point path").first.wait_for(state="attached")
        drawn = chart.locator("text.bartext").all_text_contents()  # a bar a run, with its number
        known = [value for r in runs for name, value in r.data.metrics.items() if name.startswith("final/")]
        assert len(drawn) > 3, drawn
        assert all(any(abs(float(text) - value) < 0.006 for value in known) for text in drawn), (drawn, known)
        chosen = urllib.parse.quote(json.dumps([r.info.run_id for r in kl]))
        page.goto(f"{server}/#/compare-runs?runs={chosen}&experiments={urllib.parse.quote(json.dumps([experiment]))}")
        for seed in (0, 1):
            page.get_by_text(f"kl lr=0.001 / addition_2digit / seed {seed}").first.wait_for()
        assert all(url.startswith((server, "data:", "blob:")) for url in opened.asked)
