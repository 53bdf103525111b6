"""Shared by all tests: shapes are checked, threads are fixed, and one tiny trained world serves everybody."""

import os
import warnings

os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false", HF_HUB_OFFLINE="1")
os.environ.update(MLFLOW_DISABLE_TELEMETRY="true", LMEVAL_LOG_LEVEL="ERROR")
# Five seconds a command, for what a few tests look at: they turn it on again by MLFLOW_TRACKING_URI="".
os.environ["MLFLOW_TRACKING_URI"] = "none"
for name in ("CDBENCH_PLUGINS", "CDBENCH_SET", "CDBENCH_RUNS", "CDBENCH_STORE"):
    os.environ.pop(name, None)

from jaxtyping import install_import_hook

with install_import_hook(["cdbench.objectives", "cdbench.circuits"], "beartype.beartype"):
    import cdbench.circuits.masks
    import cdbench.objectives.cka_alignment
    import cdbench.objectives.cross_entropy
    import cdbench.objectives.kl  # noqa: F401

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings

from cdbench import execute
from cdbench.config import Profile, RunSpec, build_profile
from cdbench.containers.images import Image
from cdbench.record import PREPARED
from cdbench.store import Store
from cdbench.workspace import Workspace
from engine import host_image

torch.set_num_threads(1)
settings.register_profile("cdbench", deadline=None, derandomize=True, max_examples=25)
settings.load_profile("cdbench")

MICRO = """
description = "The smallest pair that learns something; for tests."
device = "cpu"
[teacher]
source = "zoo"
layers = 3
hidden = 32
ffn = 64
steps = 120
lr = 4e-3
[student]
source = "zoo"
layers = 2
hidden = 32
ffn = 48
steps = 40
lr = 4e-3
[data]
train = 256
validation = 64
test = 96
length_shift = 16
[training]
lr = 1e-3
batch_size = 32
epochs = 2
warmup_steps = 4
probe_every = 4
[circuits]
calibration = 128
top_k = 2
"""


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """How long the container tests took: they are to take eight minutes at most."""
    reports = [each for kind in terminalreporter.stats.values() for each in kind if isinstance(each, pytest.TestReport)]
    inside = [each for each in reports if "docker" in each.keywords]
    if inside:
        number, seconds = len({each.nodeid for each in inside}), sum(each.duration for each in inside)
        terminalreporter.write_line(f"{number} container tests: {seconds:.0f} s one after the other, fixtures included")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Which tests stay on one worker (`make test` has two): those of one `group_of`."""
    from xdist.scheduler import LoadScopeScheduling

    class ByGroup(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return group_of(config.rootpath / nodeid.partition("::")[0])

    return ByGroup(config, log)


@cache
def group_of(file: Path) -> str:
    """A file; but all that look at the study, which takes a minute to make."""
    return "study" if re.search(r"\bstudy: Path\b", file.read_text()) else str(file)


def quiet(step: int, steps: int, note: str) -> None:
    """Progress that nobody looks at."""


class Silent:
    """A display of the schedule's that shows nothing."""

    def update(self, running: list[Any], waiting: int) -> None: ...

    def finished(self, run: object, result: object) -> None: ...

    def prepared(self, job: object) -> None: ...

    def retried(self, job: object, why: str) -> None: ...

    def noted(self, job: object, text: str) -> None: ...


@dataclass(frozen=True)
class World:
    """A profile file, a store in which its models are trained, and a way to run single steps in this process."""

    root: Path
    store: Path
    profile_file: Path
    profile: Profile

    def spec(self, method: str, *, seed: int = 0, task: str = "addition_2digit", **params: object) -> RunSpec:
        return RunSpec(profile=self.profile, method=method, params=params, task=task, seed=seed)  # type: ignore[arg-type]

    @property
    def shared(self) -> list[str]:
        """The artefacts that were made for every run, as kind/name."""
        (listed,) = (self.root / "prepare").glob(f"*/{PREPARED}")
        return list(json.loads(listed.read_text())["artefacts"])

    def workspace(self, spec: RunSpec | None = None, *, build: bool = True) -> Workspace:
        profile = spec.profile if spec else self.profile
        return Workspace(profile, spec.task if spec else "addition_2digit", Store(self.store), quiet, build)

    def folder(self, spec: RunSpec, where: Path) -> Path:
        folder = where / spec.run_id
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "spec.json").write_text(spec.model_dump_json())
        return folder

    def step(self, step: str, spec: RunSpec, where: Path) -> tuple[int, Path]:
        """Runs one step in this process; returns its exit code and folder."""
        folder = self.folder(spec, where)
        return execute.main([step, str(folder), str(self.store)]), folder


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    root = tmp_path_factory.mktemp("world")
    profile_file = root / "micro.toml"
    profile_file.write_text(MICRO)
    made = World(root, root / "store", profile_file, build_profile(str(profile_file), {}))
    spec = made.spec("teacher")
    for step in ("model-teacher", "model-student", "circuits"):
        code, folder = made.step(step, spec, root / "prepare")
        assert code == 0, (folder / f"failure-{step}.json").read_text()
    return made


@pytest.fixture(scope="session")
def mlflow_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty, migrated MLflow store."""
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    code = f"from mlflow import MlflowClient; MlflowClient('sqlite:///{path}').search_experiments()"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    return path


@pytest.fixture(scope="session")
def image() -> Image:
    """The image that the container tests run in."""
    return host_image()


@pytest.fixture(scope="session")
def begun_runs(world: World, image: Image, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A runs folder in which containers have prepared the shared artefacts and evaluated the teacher; to be copied."""
    root = tmp_path_factory.mktemp("begun")
    places = ["--profile", str(world.profile_file), "--runs", str(root / "runs"), "--store", str(world.store)]
    command = [sys.executable, "-m", "cdbench", "run", "base", *places, "--runner", "docker", "--image", image.tag]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    shutil.rmtree(root / "runs" / "records" / world.spec("base").run_id)
    return root / "runs"


@pytest.fixture(scope="session")
def study(world: World, mlflow_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A runs folder with a small paper_a and failed_run study in it."""
    root = tmp_path_factory.mktemp("study")
    (root / "runs").mkdir()
    shutil.copyfile(mlflow_template, root / "runs" / "mlflow.db")
    command = [sys.executable, "-m", "cdbench", "reproduce", "paper_a", "failed_run", "--profile", world.profile_file]
    command += ["--store", world.store, "--seeds", "0,1", "--set", "training.epochs=1"]
    env = os.environ | {"MLFLOW_TRACKING_URI": ""}
    done = subprocess.run([str(c) for c in command], cwd=root, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (root / "stderr.txt").write_text(done.stderr)
    # Other seeds and epochs make another study, with a name of its own; the tests go by the plain one.
    for name in ("paper_a-micro", "failed_run-micro"):
        made = next((root / "runs").glob(f"{name}-??????"))
        table = json.loads((made / "study.json").read_text()) | {"name": name}
        (made / "study.json").write_text(json.dumps(table))
        made.rename(root / "runs" / name)
    return root


@pytest.fixture
def port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.fixture
def server(port: int, tmp_path: Path, mlflow_template: Path) -> Iterator[str]:
    """A real MLflow server on loopback."""
    shutil.copyfile(mlflow_template, tmp_path / "server.db")
    command = [
        str(Path(sys.executable).with_name("mlflow")), "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
        "--backend-store-uri", f"sqlite:///{tmp_path / 'server.db'}", "--artifacts-destination", str(tmp_path / "artifacts"),
    ]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        for _ in range(300):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.2)
        else:
            pytest.fail("the MLflow server did not come up in 60 s")
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, 9)
        process.wait()


Cli = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    """Runs the real command in a folder of its own; keyword arguments are environment variables."""

    def run(*args: object, timeout: float = 240, **env: str) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", "cdbench", *map(str, args)]
        return subprocess.run(
            command, cwd=tmp_path, env=os.environ | env, capture_output=True, text=True, timeout=timeout
        )

    return run


@pytest.fixture
def plugin_folder(tmp_path: Path) -> Callable[[str, str, str], Path]:
    """Writes a plug-in file into a folder for CDBENCH_PLUGINS; returns that folder."""

    def write(kind: str, name: str, source: str) -> Path:
        folder = tmp_path / "plugins" / kind
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.py").write_text(source)
        return tmp_path / "plugins"

    return write


def history_of(folder: Path) -> list[dict[str, float]]:
    """A run's history without the times, which differ from run to run."""
    rows = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "time"} for row in rows]


warnings.filterwarnings("ignore", message=".*fork.*", category=DeprecationWarning)
