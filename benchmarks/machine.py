"""Times taken in turns, the machine that they come from, and where results go."""

import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from cdbench.provenance import head_commit, processor, versions

RESULTS = Path(__file__).parent / "results"


def alternately(ways: dict[str, Callable[[], Any]], repeats: int) -> tuple[dict[str, float], dict[str, Any]]:
    """Median seconds of each way, run in turns after one warm-up, and what each gave."""
    results = {name: way() for name, way in ways.items()}
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            began = time.perf_counter()
            way()
            times[name].append(time.perf_counter() - began)
    return {name: statistics.median(each) for name, each in times.items()}, results


def machine() -> dict[str, Any]:
    """Processor, cores, threads, library versions."""
    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": platform.system(),
        "versions": versions(),
    }


def save(name: str, result: dict[str, Any]) -> None:
    """Prints a result and writes it to results/<name>.json with the day, the commit and the machine."""
    commit, dirty = head_commit()
    made = {
        "date": datetime.now(UTC).date().isoformat(),
        "commit": commit[:12] + ("+" if dirty else ""),
        "machine": machine(),
    }
    text = json.dumps({**made, **result}, indent=1)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(text + "\n")
    print(text)
