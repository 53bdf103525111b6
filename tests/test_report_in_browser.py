"""The report in a real headless Chromium without a network."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from browser import browser, needs_browser, tab
from conftest import World
from test_report import Page

pytestmark = needs_browser
NAMES = ["paper_a-micro", "failed_run-micro"]


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with browser() as started:
        yield started


@pytest.fixture(scope="module")
def circuits(world: World, mlflow_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A runs folder with a small study of paper B in it: its sections are of circuits."""
    root = tmp_path_factory.mktemp("circuits")
    (root / "runs").mkdir()
    shutil.copyfile(mlflow_template, root / "runs" / "mlflow.db")
    rows = {
        "methods": ["base", "finetune", "kl", "cot", "atp_cd", "head_cd"],
        "seeds": [0, 1],
        "tasks": ["addition_2digit"],
    }
    table = {"title": "Circuits", "description": "Small.", "profile": str(world.profile_file), **rows}
    (root / "circuits.toml").write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in table.items()))
    command = [
        sys.executable,
        "-m",
        "cdbench",
        "reproduce",
        "circuits.toml",
        "--store",
        str(world.store),
        "--set",
        "training.epochs=1",
    ]
    done = subprocess.run(
        command, cwd=root, env=os.environ | {"MLFLOW_TRACKING_URI": ""}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return root


def page_of(study: Path, name: str) -> str:
    (page,) = study.glob(f"runs/{name}/report/index.html")
    return page.as_uri()


def test_every_anchor_of_a_page_of_circuits_resolves_too(circuits: Path) -> None:
    (path,) = circuits.glob("runs/circuits*/report/index.html")
    page = Page(path.read_text())
    assert {"components", "figure-circuit-graph"} <= set(page.ids) and len(page.anchors) > 100
    assert set(page.anchors) <= set(page.ids) and page.outside == page.unnamed == []


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 820, 1280])
def test_the_page_is_whole_silent_and_accessible(
    name: str, scheme: str, width: int, study: Path, chromium: Any
) -> None:
    with tab(chromium, width=width, scheme=scheme) as opened:
        opened.page.goto(page_of(study, name))
        assert opened.said == [] and opened.outside == []
        assert opened.page.locator("figure").count() >= 6
        assert opened.page.evaluate("document.documentElement.scrollWidth") <= width  # tables scroll, the page does not
        assert opened.faults() == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_of_a_study_of_circuits_is_whole_silent_and_accessible(
    scheme: str, width: int, circuits: Path, chromium: Any
) -> None:
    with tab(chromium, width=width, scheme=scheme) as opened:
        opened.page.goto(page_of(circuits, "circuits*"))
        assert opened.said == [] and opened.outside == []
        for anchor in ("figure-circuit-graph", "figure-faithfulness", "figure-heads", "figure-component-cka"):
            assert opened.page.locator(f"#{anchor} svg").count() == 1, anchor
        assert opened.page.evaluate("document.documentElement.scrollWidth") <= width
        assert opened.faults() == []


@pytest.mark.parametrize("width", [390, 1280])
def test_what_can_be_opened_is_accessible_too(width: int, study: Path, circuits: Path, chromium: Any) -> None:
    for where, name in ((study, NAMES[0]), (study, NAMES[1]), (circuits, "circuits*")):
        with tab(chromium, width=width) as opened:
            opened.page.goto(page_of(where, name))
            opened.page.evaluate("document.querySelectorAll('details').forEach(each => { each.open = true })")
            assert opened.page.locator("details[open]").count() > 20
            assert opened.page.evaluate("document.documentElement.scrollWidth") <= width
            assert opened.faults() == []


@pytest.mark.parametrize("name", ["circuits*", *NAMES])
def test_tables_of_circuits_fit_a_page(name: str, circuits: Path, study: Path, chromium: Any) -> None:
    with tab(chromium, width=1280) as opened:
        opened.page.goto(page_of(circuits if name == "circuits*" else study, name))
        regions = opened.page.locator(".scroll[role=region]")
        wide = regions.evaluate_all(
            "all => all.filter(r => r.scrollWidth > r.clientWidth + 1).map(r => r.getAttribute('aria-label'))"
        )
    assert not [name for name in wide if "circuits" in name], wide


def test_axe_does_find_faults_on_a_page_that_has_some(tmp_path: Path, chromium: Any) -> None:
    bad = "<html><body><main><h1>x</h1><img src='data:,'><p style='color:#ccc;background:#fff'>pale</p></main></body></html>"
    (tmp_path / "bad.html").write_text(bad)
    with tab(chromium) as opened:
        opened.page.goto((tmp_path / "bad.html").as_uri())
        found = " ".join(opened.faults())
    assert "image-alt" in found and "color-contrast" in found and "html-has-lang" in found


def test_a_run_id_leads_to_the_page_of_that_run_and_back_to_its_row(study: Path, chromium: Any) -> None:
    with tab(chromium) as opened:
        page = opened.page
        page.goto(page_of(study, NAMES[0]))
        assert page.locator("article:visible").count() == 0
        page.locator("#row-4 summary").click()
        link = page.locator("#row-4 .ids a").first
        run_id = link.inner_text()
        link.click()
        shown = page.locator("article:visible")
        assert shown.count() == 1 and run_id in shown.locator("h2").inner_text()
        assert shown.locator("dt", has_text="accuracy").first.is_visible()
        assert opened.faults() == []
        shown.get_by_role("link", name="its row").click()
        assert page.url.endswith("#row-4") and page.locator("article:visible").count() == 0


def test_the_keyboard_alone_reaches_the_sections_and_scrolls_the_tables(study: Path, chromium: Any) -> None:
    with tab(chromium, width=390) as opened:
        page = opened.page
        page.goto(page_of(study, NAMES[0]))
        for _ in range(2):
            page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        page.wait_for_url("**#claims")  # on a busy machine the jump is not there at once
        claims = page.locator("[aria-label='Claims and verdicts']")
        assert claims.evaluate("region => region.scrollWidth <= region.clientWidth"), (
            "on a phone a claim is read downwards"
        )
        table = page.locator("[aria-label='Accuracy of each row']")
        table.focus()
        for _ in range(5):
            page.keyboard.press("ArrowRight")
        page.wait_for_function("document.querySelector('[aria-label=\"Accuracy of each row\"]').scrollLeft > 0")


def test_pages_of_runs_cost_the_first_view_nothing(study: Path, chromium: Any) -> None:
    with tab(chromium) as opened:
        opened.page.goto(page_of(study, NAMES[0]))
        heights = opened.page.evaluate("[...document.querySelectorAll('article')].map(a => a.offsetHeight)")
    assert heights == [0] * 25
