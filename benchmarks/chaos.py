"""Random SIGKILLs over harness, workers and containers while a study runs, and what is left of it.

    python benchmarks/chaos.py --kills 100
    python benchmarks/chaos.py --kills 100 --runner local

The study is run once undisturbed. Then it is run again in another folder while something of it is killed every few seconds; a
harness that died is started again with the same command. At the end the command is repeated until all is done. Held against the
undisturbed study: no finished record lost or changed, none twice, no file half written, nothing left running, the same metrics.
"""

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from cdbench import record
from cdbench.containers.engine import connect
from cdbench.containers.waiting import containers_of, reap
from cdbench.store import MANIFEST, Store

PROFILE = """
description = "Small enough to be run a hundred times."
device = "cpu"
teacher = { source = "zoo", layers = 3, hidden = 32, ffn = 64, steps = 120, lr = 4e-3 }
student = { source = "zoo", layers = 2, hidden = 32, ffn = 48, steps = 40, lr = 4e-3 }
data = { train = 256, validation = 64, test = 96, length_shift = 16 }
training = { lr = 1e-3, batch_size = 32, epochs = 20, warmup_steps = 4, probe_every = 4 }
circuits = { calibration = 128, top_k = 2 }
"""

_ENDS_WITHIN = 20
"""Seconds after which a container whose harness was killed must have ended."""


@dataclass
class Tally:
    """What was killed, and what of the study did not survive it."""

    killed: Counter[str] = field(default_factory=Counter)
    starts: int = 0
    faults: list[str] = field(default_factory=list)
    statuses: dict[str, int] = field(default_factory=dict)
    """Of all records at the end."""
    seen: dict[str, str] = field(default_factory=dict)
    """Run id -> hash of its record, once it had finished well."""


def study(root: Path, seeds: int) -> Path:
    """A study file with `seeds` runs of each of two methods."""
    (root / "chaos_profile.toml").write_text(PROFILE)
    text = {
        "title": "Chaos", "description": "Runs that are killed.", "profile": str(root / "chaos_profile.toml"),
        "methods": ["kl", "cka_cd"], "tasks": ["addition_2digit"], "seeds": list(range(seeds)),
    }  # fmt: skip
    path = root / "chaos.toml"
    path.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in text.items()))
    return path


def command(file: Path, runs: Path, runner: str) -> list[str]:
    """What a user types."""
    words = ["reproduce", str(file), "--runs", str(runs), "--runner", runner, "--jobs", "2", "--no-report"]
    return [sys.executable, "-m", "cdbench", *words]


def disturb(file: Path, runs: Path, runner: str, kills: int, draw: random.Random) -> Tally:
    """Runs the study and kills `kills` times; starts again whatever died."""
    tally = Tally()
    harness: subprocess.Popen[bytes] | None = None
    while sum(tally.killed.values()) < kills:
        if harness is None or harness.poll() is not None:
            if harness is not None and harness.returncode == 0:
                # All done before enough was killed: throw one finished run away, knowingly.
                gone = draw.choice(sorted(tally.seen) or [""])
                shutil.rmtree(runs / "records" / gone, ignore_errors=True)
                tally.seen.pop(gone, None)
            harness = subprocess.Popen(
                command(file, runs, runner), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            tally.starts += 1
        time.sleep(draw.uniform(0.5, 6))
        watch(runs, tally)
        if victim := choose(harness, runs, runner, draw):
            kind, kill = victim
            tally.killed[kind] += kill()  # what had ended by itself was not killed
            sys.stderr.write(f"\r{sum(tally.killed.values())} of {kills} killed, {len(tally.seen)} runs finished ")
            watch(runs, tally)
    harness = harness or subprocess.Popen(["true"])
    if harness.poll() is None:
        harness.kill()
    harness.wait()
    return tally


def choose(harness: "subprocess.Popen[bytes]", runs: Path, runner: str, draw: random.Random) -> tuple[str, Any] | None:
    """Something of the study that runs now, and how to kill it."""
    kinds = ["harness", "worker", "container"] if runner == "docker" else ["harness", "worker"]
    kind = draw.choice(kinds)
    if kind == "harness":
        return kind, lambda: harness.poll() is None and killed(harness.kill)
    if runner == "local":
        workers = [p for p in descendants(harness.pid) if "forkserver" in " ".join(command_of(p))]
        return (kind, lambda: killed(draw.choice(workers).kill)) if workers else None
    containers = [each for each in containers_of(connect(), runs) if each.status == "running"]
    if not containers:
        return None
    container = draw.choice(containers)
    if kind == "container":
        return kind, lambda: killed(container.kill)
    pids = [int(row[1]) for row in (quietly(container.top) or {"Processes": []})["Processes"] if "python" in row[-1]]
    return (kind, lambda: killed(os.kill, draw.choice(pids), signal.SIGKILL)) if pids else None


def descendants(pid: int) -> list[psutil.Process]:
    """Every process below this one."""
    try:
        return list(psutil.Process(pid).children(recursive=True))
    except psutil.Error:
        return []


def command_of(process: psutil.Process) -> list[str]:
    """A process's command; nothing when it has gone."""
    try:
        return [str(word) for word in process.cmdline()]
    except psutil.Error:
        return []


def killed(function: Any, *arguments: Any) -> bool:
    """Whether there still was something to kill."""
    try:
        function(*arguments)
    except Exception:
        return False
    return True


def quietly(function: Any, *arguments: Any) -> Any:
    """What is to be killed may have ended by itself in the meantime."""
    try:
        return function(*arguments)
    except Exception:
        return None


def finished(runs: Path) -> Iterator[tuple[str, bytes]]:
    """Run id and bytes of each record that says "ok"."""
    for path in runs.glob(f"records/*/{record.RECORD}"):
        data = path.read_bytes()
        if json.loads(data)["status"] == "ok":
            yield path.parent.name, data


def watch(runs: Path, tally: Tally) -> None:
    """A record that once said "ok" must be there ever after, unchanged."""
    now = {run_id: hashlib.sha256(data).hexdigest() for run_id, data in finished(runs)}
    for run_id, digest in tally.seen.items():
        if now.get(run_id) != digest:
            tally.faults.append(f"the finished record of {run_id} was {'changed' if run_id in now else 'lost'}")
    tally.seen |= now


def settle(file: Path, runs: Path, runner: str, tally: Tally) -> None:
    """Repeats the command, undisturbed, until it has nothing more to do."""
    for _ in range(3):
        tally.starts += 1
        done = subprocess.run(command(file, runs, runner), capture_output=True, text=True)
        if done.returncode == 0:
            return
    tally.faults.append(f"the study does not come to its end: {done.stderr[-500:]}")


def inspect(runs: Path, calm: Path, tally: Tally) -> None:
    """Holds records, artefacts and MLflow's view against the undisturbed study."""
    left, right = ({run_id: json.loads(data)["metrics"] for run_id, data in finished(where)} for where in (runs, calm))
    ended = [json.loads(path.read_text())["status"] for path in runs.glob(f"records/*/{record.RECORD}")]
    tally.statuses = dict(Counter(ended))
    if set(ended) != {"ok"} or len(ended) != len(right):
        tally.faults.append(f"of {len(right)} runs there are records of {tally.statuses}")
    if left != right:
        tally.faults.append(f"metrics differ: {sorted(k for k in right if left.get(k) != right[k])}")
    for run_id in left:
        folder = runs / "records" / run_id
        for name in record.damaged_artefacts(folder, record.read(folder)):
            tally.faults.append(f"{run_id}/{name} is not what its record says")
    store = Store(runs / "store")
    for manifest in (runs / "store").glob(f"*/*/{MANIFEST}"):
        store.open(manifest.parent)
    for name in ("store/tmp", "scratch"):
        if any((runs / name).glob("*")):
            tally.faults.append(f"{name} is not empty: {[p.name for p in (runs / name).iterdir()][:3]}")
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{runs / 'mlflow.db'}")
    sent = client.search_runs([e.experiment_id for e in client.search_experiments()], max_results=1000)
    children = Counter(r.data.tags["cdbench.run_id"] for r in sent if r.data.tags.get("cdbench.record"))
    if set(children) != set(right) or max(children.values()) > 1:
        tally.faults.append(f"MLflow holds {dict(children)}, the study has {len(right)} runs")


def inspect_machine(runs: Path, tally: Tally, runner: str) -> None:
    """Looks for processes and containers that outlived the harness; nothing else has cleaned up before."""
    last = time.monotonic() + _ENDS_WITHIN
    while left := running(runs, runner) + [
        f"process {p.pid}" for p in psutil.process_iter() if str(runs) in " ".join(command_of(p))
    ]:
        if time.monotonic() > last:
            tally.faults.append(f"still there {_ENDS_WITHIN} s after the harness was killed: {left}")
            return
        time.sleep(0.5)


def running(runs: Path, runner: str) -> list[str]:
    """Ids of the containers that run; those of a dead harness must have ended by themselves."""
    if runner != "docker":
        return []
    return [each.short_id for each in containers_of(connect(), runs) if each.status == "running"]


def chaos(root: Path, runner: str, kills: int, seeds: int, seed: int) -> tuple[Tally, int]:
    """Runs both studies under `root`; returns what happened and how many runs the study has."""
    file = study(root, seeds)
    subprocess.run(command(file, root / "calm", runner), check=True, capture_output=True)
    tally = disturb(file, root / "stormy", runner, kills, random.Random(seed))
    inspect_machine(root / "stormy", tally, runner)
    settle(file, root / "stormy", runner, tally)
    inspect(root / "stormy", root / "calm", tally)
    inspect_machine(root / "stormy", tally, runner)
    if runner == "docker":
        reap(connect())  # what ended with a killed harness is removed by the next one, or here
    return tally, 2 * seeds + 1


def main(arguments: Sequence[str]) -> int:
    """Prints and saves the outcome; 1 when anything was lost."""
    from machine import save

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--runner", choices=["local", "docker"], default="docker")
    parser.add_argument("--seeds", type=int, default=12, help="runs of each of two methods")
    parser.add_argument("--seed", type=int, default=0, help="of the killing")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="cdbench-chaos-") as name:
        tally, runs = chaos(Path(name), options.runner, options.kills, options.seeds, options.seed)
    save(
        f"chaos-{options.runner}",
        {
            "runner": options.runner,
            "seed": options.seed,
            "runs": runs,
            "statuses": tally.statuses,
            "killed": dict(tally.killed),
            "starts": tally.starts,
            "faults": tally.faults,
        },
    )
    return 1 if tally.faults else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
