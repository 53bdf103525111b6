"""What a newcomer waits for: `make smoke`, a method of one's own from `new method` to its row, and the studies themselves.

    python benchmarks/first_steps.py                       # make smoke, new method to row
    python benchmarks/first_steps.py --studies FOLDER      # make reproduce, reproduce paper_b; runs and reports stay there

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
STUDIES = {"make reproduce": ["reproduce", "paper_a", "failed_run"], "reproduce paper_b": ["reproduce", "paper_b"]}


def seconds(commands: list[list[str]], folder: Path) -> float:
    """Wall time of commands of ours, one after the other."""
    begun = time.perf_counter()
    for words in commands:
        subprocess.run([sys.executable, "-m", "cdbench", *words], cwd=folder, check=True, capture_output=True)
    return round(time.perf_counter() - begun, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=Path, metavar="FOLDER", help="run the studies there, in empty folders")
    studies = parser.parse_args().studies
    found: dict[str, float] = {}
    if studies:
        for name, words in STUDIES.items():
            store = studies / f"store-{words[-1]}"
            assert not store.exists(), f"{store} is there: what is measured begins with nothing"
            studies.mkdir(parents=True, exist_ok=True)
            found[name] = seconds([[*words, "--runs", str(studies / "runs"), "--store", str(store)]], studies)
        save("studies", {"seconds from an empty store": found})
        return
    for name, commands in STEPS.items():
        with tempfile.TemporaryDirectory(prefix="cdbench-first-") as folder:
            found[name] = seconds(commands, Path(folder))
            assert any(Path(folder).glob("runs/records/*/record.json"))
    save("first_steps", {"profile": "smoke", "seconds from an empty folder": found})


if __name__ == "__main__":
    main()
