"""What a container costs a run: the same study by plain processes and by `--runner docker`, in alternation.

    python benchmarks/container_overhead.py

The tiny pair, one run at a time. Per run: from the end of one run to the end of the next, so that what is paid once a study
(models, probe, first containers) stands apart. Needs an engine and an image (`cdbench build`).
"""

import itertools
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from machine import save

from cdbench.containers import images
from cdbench.containers.engine import connect

ROUNDS, SEEDS = 2, 5
METHODS = ("finetune", "cka_cd")


def run(method: str, root: Path, runner: str) -> tuple[list[float], float]:
    """Seconds from each run's end to the next one's, and those that the steps themselves say they took, on average."""
    places = ["--runs", str(root / runner), "--store", str(root / "store")]
    seeds = ",".join(map(str, range(SEEDS)))
    command = ["run", method, "--seeds", seeds, "--jobs", "1", "--runner", runner, "--force", *places]
    subprocess.run([sys.executable, "-m", "cdbench", *command], check=True, capture_output=True)
    found = [json.loads(path.read_text()) for path in (root / runner).glob("records/*/record.json")]
    mine = [record for record in found if record["spec"]["method"] == method]
    ends = sorted((root / runner / "records" / record["run_id"] / "record.json").stat().st_mtime for record in mine)
    steps = statistics.mean(r["cost"]["train_seconds"] + r["cost"]["evaluate_seconds"] for r in mine)
    return [b - a for a, b in itertools.pairwise(ends)], steps


def main() -> None:
    image = images.find(connect(), ("cpu", "host"), None)
    result: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory(prefix="cdbench-overhead-") as name:
        root = Path(name)
        for method in METHODS:
            gaps: dict[str, list[float]] = {"local": [], "docker": []}
            inside: dict[str, list[float]] = {"local": [], "docker": []}
            for _ in range(ROUNDS):
                for runner in ("local", "docker"):
                    found, steps = run(method, root, runner)
                    gaps[runner] += found
                    inside[runner].append(steps)
            median = {runner: statistics.median(values) for runner, values in gaps.items()}
            result[method] = {
                "local seconds per run": round(median["local"], 2),
                "docker seconds per run": round(median["docker"], 2),
                "overhead seconds": round(median["docker"] - median["local"], 2),
                "of that in the steps themselves": round(
                    statistics.mean(inside["docker"]) - statistics.mean(inside["local"]), 2
                ),
            }
    save("container_overhead", {"image": image.flavour, "runs": ROUNDS * SEEDS, "jobs": 1, "methods": result})


if __name__ == "__main__":
    main()
