"""What a newcomer waits for: `make smoke`, and a method of one's own from `new method` to its row on the leaderboard.

    python benchmarks/first_steps.py

Each begins with an empty store, where models must be trained first, in a folder of its own.
"""

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


def main() -> None:
    seconds: dict[str, float] = {}
    for name, commands in STEPS.items():
        with tempfile.TemporaryDirectory(prefix="cdbench-first-") as folder:
            begun = time.perf_counter()
            for words in commands:
                subprocess.run([sys.executable, "-m", "cdbench", *words], cwd=folder, check=True, capture_output=True)
            seconds[name] = round(time.perf_counter() - begun, 1)
            assert any(Path(folder).glob("runs/records/*/record.json"))
    save("first_steps", {"profile": "smoke", "seconds from an empty folder": seconds})


if __name__ == "__main__":
    main()
