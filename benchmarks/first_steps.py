"""What a newcomer waits for: `make smoke`, a method of one's own from `new method` to its row, and the studies themselves.

    python benchmarks/first_steps.py                       # make smoke, new method to row
    python benchmarks/first_steps.py --studies FOLDER      # make reproduce, reproduce paper_b; runs and reports stay there
    python benchmarks/first_steps.py --studies FOLDER --only paper_b

Each begins with an empty store, where models must be trained first.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from machine import save

STEPS = {
    "make smoke": [["reproduce", "paper_a", "failed_run", "--profile", "smoke"]],
    "new method to row": [["new", "method", "idea"], ["leaderboard", "add", "idea.py", "--profile", "smoke"]],
}
STUDIES = {"paper_a": ["reproduce", "paper_a", "failed_run"], "paper_b": ["reproduce", "paper_b"]}
"""`make reproduce` is the first."""


def seconds(commands: list[list[str]], folder: Path) -> float:
    """Wall time of commands of ours, one after the other."""
    begun = time.perf_counter()
    for words in commands:
        subprocess.run([sys.executable, "-m", "cdbench", *words], cwd=folder, check=True, capture_output=True)
    return round(time.perf_counter() - begun, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=Path, metavar="FOLDER", help="run the studies there, in empty folders")
    parser.add_argument("--only", choices=list(STUDIES), help="one of the two")
    given = parser.parse_args()
    studies: Path | None = given.studies
    found: dict[str, float] = {}
    if studies:
        for name, words in STUDIES.items():
            if given.only not in (None, name):
                continue
            store = studies / f"store-{name}"
            assert not store.exists(), f"{store} is there: what is measured begins with nothing"
            studies.mkdir(parents=True, exist_ok=True)
            took = seconds([[*words, "--runs", str(studies / "runs"), "--store", str(store)]], studies)
            save(f"study_{name}", {"command": f"cdbench {' '.join(words)}", "seconds from an empty store": took})
        return
    for name, commands in STEPS.items():
        with tempfile.TemporaryDirectory(prefix="cdbench-first-") as folder:
            found[name] = seconds(commands, Path(folder))
            assert any(Path(folder).glob("runs/records/*/record.json"))
    save("first_steps", {"profile": "smoke", "seconds from an empty folder": found})


if __name__ == "__main__":
    main()
