"""How long a report of two hundred runs takes, how large its page is, and when a browser shows it.

    python benchmarks/report.py --runs runs        # of paper_a's and of paper_b's

The runs are those of a finished study, multiplied: each copy is a run of its own, with another seed and record, until there are
two hundred. What is measured is the report alone, in a process of its own. The browser's figure needs Chromium and
playwright (in the dev extra); without a browser it is left out and said so.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from machine import save

from cdbench.config import RunSpec
from cdbench.plan import Places, read_study


def multiplied(source: Places, study: str, target: Places, wanted: int) -> int:
    """Copies a study's runs under new seeds until there are `wanted`; returns how many there are."""
    saved = read_study(study, source)
    ids: list[str] = []
    batch = 0
    while len(ids) < wanted:
        for run_id in saved.run_ids:
            if len(ids) < wanted:
                ids.append(copy(source.run(run_id), target, batch))
        batch += 1
    folder = target.study(study)
    folder.mkdir(parents=True)
    table = json.loads((saved.folder / "study.json").read_text()) | {"run_ids": ids}
    (folder / "study.json").write_text(json.dumps(table))
    return len(set(ids))


def copy(folder: Path, target: Places, batch: int) -> str:
    """One run under another seed: a spec, a record and files that fit each other."""
    table: dict[str, Any] = json.loads((folder / "record.json").read_text())
    spec = RunSpec.model_validate(table["spec"] | {"seed": table["spec"]["seed"] + 1000 * batch})
    made = target.run(spec.run_id)
    if made.exists():
        return spec.run_id
    made.mkdir(parents=True)
    for name in ("predictions.jsonl", "history.jsonl"):
        if (folder / name).exists():
            shutil.copyfile(folder / name, made / name)
    table |= {"run_id": spec.run_id, "spec": spec.model_dump(mode="json")}
    (made / "record.json").write_text(json.dumps(table))
    return spec.run_id


def first_view(page: Path) -> float | None:
    """Seconds until a browser has painted the page, the best of three; None without a browser."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        print("no Chromium here: the first view is not measured", file=sys.stderr)
        return None
    from playwright.sync_api import sync_playwright

    asked = "performance.getEntriesByName('first-contentful-paint')[0].startTime"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        found = []
        for _ in range(3):
            tab = browser.new_page()
            tab.goto(page.as_uri())
            tab.wait_for_function("performance.getEntriesByName('first-contentful-paint').length > 0")
            found.append(float(tab.evaluate(asked)) / 1000)
            tab.close()
        browser.close()
    return min(found)


def measured(source: Places, study: str, wanted: int) -> dict[str, Any]:
    """What a report of so many runs of a study takes."""
    with tempfile.TemporaryDirectory() as name:
        target = Places(Path(name) / "runs", Path(name) / "store")
        runs = multiplied(source, study, target, wanted)
        command = [sys.executable, "-m", "cdbench", "report", study, "--runs", str(target.runs)]
        began = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        seconds = time.perf_counter() - began
        page = target.study(study) / "report" / "index.html"
        return {
            "runs": runs,
            "report_seconds": round(seconds, 1),
            "page_megabytes": round(page.stat().st_size / 1e6, 2),
            "first_view_seconds": (view := first_view(page)) and round(view, 2),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--study", nargs="+", default=["paper_a", "paper_b"])
    parser.add_argument("--wanted", type=int, default=200)
    options = parser.parse_args()
    source = Places(options.runs.resolve(), options.runs.resolve() / "store")
    save("report", {study: measured(source, study, options.wanted) for study in options.study})


if __name__ == "__main__":
    main()
