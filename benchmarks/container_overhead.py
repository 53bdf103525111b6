"""What a container costs a run: the same study by plain processes and by `--runner docker`, in alternation.

    python benchmarks/container_overhead.py

The tiny pair, one run at a time (a core is free, on which the next container imports torch while the last one works) and two at a
time (on two cores none is). Seconds per run are those from the first run's end to the last one's, divided by the runs between
them, so that what is paid once a study (models, probe, first containers) stands apart. Needs an engine and an image
(`cdbench build`).
"""

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from machine import save

from cdbench.containers import images
from cdbench.containers.engine import connect

METHOD, ROUNDS, SEEDS = "cka_cd", 2, 5


def run(root: Path, runner: str, jobs: int) -> tuple[float, float]:
    """Seconds per run, and those that the steps themselves say they took, on average."""
    places = ["--runs", str(root / runner), "--store", str(root / "store")]
    seeds = ",".join(map(str, range(SEEDS)))
    command = ["run", METHOD, "--seeds", seeds, "--jobs", str(jobs), "--runner", runner, "--force", *places]
    subprocess.run([sys.executable, "-m", "cdbench", *command], check=True, capture_output=True)
    found = [json.loads(path.read_text()) for path in (root / runner).glob("records/*/record.json")]
    mine = [record for record in found if record["spec"]["method"] == METHOD]
    ends = sorted((root / runner / "records" / record["run_id"] / "record.json").stat().st_mtime for record in mine)
    steps = statistics.mean(r["cost"]["train_seconds"] + r["cost"]["evaluate_seconds"] for r in mine)
    return (ends[-1] - ends[0]) / (SEEDS - 1), steps


def main() -> None:
    image = images.find(connect(), ("cpu", "host"), None)
    result: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory(prefix="cdbench-overhead-") as name:
        root = Path(name)
        for runner in ("local", "docker"):
            run(root, runner, 2)  # what is made once a study is there afterwards
        for jobs in (1, 2):
            found: dict[str, list[tuple[float, float]]] = {"local": [], "docker": []}
            for _ in range(ROUNDS):
                for runner, values in found.items():
                    values.append(run(root, runner, jobs))
            seconds = {runner: statistics.mean(each for each, _ in values) for runner, values in found.items()}
            steps = {runner: statistics.mean(each for _, each in values) for runner, values in found.items()}
            result[f"{jobs} at a time"] = {
                "local seconds per run": round(seconds["local"], 2),
                "docker seconds per run": round(seconds["docker"], 2),
                "overhead seconds": round(seconds["docker"] - seconds["local"], 2),
                "of that in the steps themselves": round((steps["docker"] - steps["local"]) / jobs, 2),
            }
    save(
        "container_overhead",
        {"image": image.flavour, "method": METHOD, "runs each": ROUNDS * SEEDS, "measured": result},
    )


if __name__ == "__main__":
    main()
