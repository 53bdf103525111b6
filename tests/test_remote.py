"""Steps on other machines, without a cluster: a try that was given up and works on changes nothing."""

import os
import threading
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from multiprocessing import forkserver
from pathlib import Path

import pytest

from cdbench.config import RunSpec
from cdbench.errors import EnvironmentLacks
from cdbench.files import write_json
from cdbench.plan import Places, Plan, make_plan, places, single_run_study
from cdbench.record import Record, failure_file
from cdbench.runners import End, Handle, Runner, schedule, slurm
from cdbench.runners.local import LocalRunner
from cdbench.runners.remote import Attempt, Order, RemoteRunner
from conftest import Silent, World
from test_schedule import Ended, Heard, prepares


class CutOff(RemoteRunner):
    """A cluster that loses sight of the first machine that trains, whose step goes on, and ends when the next one is through."""

    name = "cut-off"

    def __init__(self) -> None:
        super().__init__("local")
        self.first: Path | None = None
        self.second_is_through = threading.Event()
        self.zombie: threading.Thread | None = None

    def connect(self) -> None: ...

    def submit(self, order: Order, spec: RunSpec) -> tuple[Callable[[], End], Callable[[], None]]:
        if order.step == "train" and self.first is None:
            self.first = order.folder
            return self._is_lost, lambda: None
        if order.step != "train":
            return order.obey, lambda: None

        def through() -> End:
            end = order.obey()
            assert self.first
            # The first machine is back: what it writes last of all looks like a result.
            for name in ("outcome.json", "student.safetensors", "history.jsonl"):
                (self.first / name).write_text("of the lost one")
            return end

        return through, lambda: None

    def _is_lost(self) -> End:
        assert self.first
        (self.first / "checkpoint.pt").write_bytes(b"no checkpoint")
        (self.first / "train.stdout.log").write_text("printed before it was lost")
        raise ConnectionError("the node is gone")


@pytest.fixture(autouse=True)
def no_fork_server_stays() -> Iterator[None]:
    """It would keep this environment for whoever starts steps in this process later."""
    yield
    forkserver._forkserver._stop()  # type: ignore[attr-defined]


def study(world: World, runs: Path) -> tuple[Places, Plan]:
    where = places(str(runs), str(world.store))
    return where, make_plan(single_run_study("finetune", "addition_2digit", str(world.profile_file), [0]), where)


def ran(world: World, runs: Path, runner: Runner) -> Record:
    where, plan = study(world, runs)
    with schedule.exclusive(where):
        runner.require([run.spec for run in plan.runs], where.scratch)
        done = schedule.Schedule(plan, where, runner, Silent(), 1).run()
    return done[plan.run_ids[1]]


def test_a_lost_machine_that_works_on_changes_no_result(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cdbench.train.TrainingProblem.checkpoint_seconds", 1e9)
    runner = CutOff()
    found, plain = ran(world, tmp_path / "cut-off", runner), ran(world, tmp_path / "plain", LocalRunner())
    assert found.status == plain.status == "ok"
    assert found.metrics == plain.metrics
    assert found.artefacts["student.safetensors"] == plain.artefacts["student.safetensors"]
    folder = tmp_path / "cut-off" / "records" / found.run_id
    assert "of the lost one" not in (folder / "outcome.json").read_text()
    assert not list(folder.glob(".*")) and not (folder / "checkpoint.pt").exists()


class LosesItsGpu(Runner):
    """A runner on a GPU that is gone when the first training fails, and back for the next."""

    name, isolated = "loses-its-gpu", True

    def __init__(self) -> None:
        self.looks: list[str] = []

    def require(self, specs: list[RunSpec], scratch: Path) -> None:
        self.looks.append("look")
        if len(self.looks) == 1:
            raise EnvironmentLacks("GPU 0 is not there")

    def start(self, step: str, folder: Path, store: Path, spec: RunSpec, shared: Collection[str] = ()) -> Handle:
        if step == "train":
            fails_with_cuda(folder)
        return Ended(folder, End(0 if prepares(step, folder) else 1))


def fails_with_cuda(folder: Path) -> None:
    """Leaves what a training says whose GPU does."""
    told = {"status": "failed", "error": "CUDA error", "step": "train", "exit_code": 1}
    write_json(folder / failure_file("train"), told)


def test_a_gpu_that_vanishes_is_no_methods_failure(world: World, tmp_path: Path) -> None:
    where = places(str(tmp_path / "runs"), str(world.store))
    study = single_run_study("finetune", "addition_2digit", str(world.profile_file), [0])
    plan = make_plan(study, where, flags=["device=cuda"], isolated=True)
    runner, told = LosesItsGpu(), Heard()
    with schedule.exclusive(where):
        done = schedule.Schedule(replace(plan, runs=plan.runs[1:]), where, runner, told, 1).run()
    (found,) = done.values()
    assert told.again == ["CUDA error; GPU 0 is not there"]
    assert (found.status, found.error) == ("failed", "train: CUDA error")  # with its GPU it fails by itself


def test_a_step_that_fails_where_the_gpu_is_gone_is_tried_elsewhere(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The machine that lost it says so; elsewhere nobody could look."""
    spec = world.spec("finetune")
    wants = spec.model_copy(update={"profile": spec.profile.model_copy(update={"device": "cuda"})})
    smi = tmp_path / "bin" / "nvidia-smi"
    smi.parent.mkdir()
    monkeypatch.setenv("PATH", f"{smi.parent}:{os.environ['PATH']}")
    monkeypatch.setattr(LocalRunner, "start", lambda self, step, folder, store, spec, shared: Ended(folder, End(1)))
    fails_with_cuda(tmp_path)
    order = Order("train", tmp_path, world.store, tmp_path / "scratch", wants.model_dump_json(), "local", None, ())
    for says, status in (("echo 570.1", None), ("echo 'Unable to determine the device handle'; exit 9", "infra")):
        smi.write_text(f"#!/bin/sh\n{says}\n")
        smi.chmod(0o755)
        end = order.obey()
        assert (end.code, end.status) == (1, status)
    assert end.text == f"CUDA error; {os.uname().nodename}: nvidia-smi finds no GPU any more"


@pytest.fixture
def gpus_of(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[Callable[[Order], End]], list[str]]:
    """Which GPUs a cluster's step says that it was given."""

    def ask(step: Callable[[Order], End]) -> list[str]:
        seen: list[list[str]] = []
        monkeypatch.setattr(Order, "obey", lambda self, gpus=(): seen.append(list(gpus)) or End(0))
        step(Order("train", tmp_path, tmp_path, tmp_path, "{}", "docker", None, ()))
        (given,) = seen
        return given

    return ask


@pytest.mark.parametrize(
    ("told", "ids"),
    [({"SLURM_STEP_GPUS": "2,3"}, ["2", "3"]), ({"SLURM_JOB_GPUS": "1"}, ["1"]), ({}, [])],
)
def test_slurm_says_which_gpus_it_gave(
    monkeypatch: pytest.MonkeyPatch, gpus_of: Callable[..., list[str]], told: dict[str, str], ids: list[str]
) -> None:
    for name in ("SLURM_STEP_GPUS", "SLURM_JOB_GPUS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    assert gpus_of(slurm._step) == ids


def test_ray_says_which_gpus_it_gave(monkeypatch: pytest.MonkeyPatch, gpus_of: Callable[..., list[str]]) -> None:
    from cdbench.runners import ray as ray_runner

    monkeypatch.setattr("ray.get_gpu_ids", lambda: [3])
    assert gpus_of(ray_runner._step) == ["3"]


class Sbatch:
    """submitit's executor before a controller that does not answer at first."""

    def __init__(self, *told: str) -> None:
        self.told = list(told)

    def submit(self, step: object, order: object) -> str:
        import submitit

        if self.told:
            raise submitit.core.utils.FailedJobError(self.told.pop(0))
        return "job"


def test_a_controller_that_is_restarted_is_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr("cdbench.runners.slurm.sleep", slept.append)
    order = Order("train", tmp_path, tmp_path, tmp_path, "{}", "docker", None, ())
    busy = "sbatch: error: Batch job submission failed: Unable to contact slurm controller (connect failure)"
    assert slurm._handed_in(Sbatch(busy, "sbatch: error: Socket timed out on send/recv operation"), order) == "job"
    assert len(slept) == 2
    with pytest.raises(EnvironmentLacks, match="SLURM does not take the job: sbatch: error: Batch job submission"):
        slurm._handed_in(Sbatch(*[busy] * 9), order)
    with pytest.raises(EnvironmentLacks, match="invalid partition"):
        slurm._handed_in(Sbatch("sbatch: error: invalid partition specified: gpu"), order)
    assert len(slept) == 5


SHOWN = "JobId=7 JobName=x JobState=NODE_FAIL Reason=NodeDown ReqNodeList=(null) ExcNodeList=n9 NodeList=n[1-2] BatchHost=n1"


@pytest.mark.parametrize(
    ("key", "word"), [("JobState", "NODE_FAIL"), ("NodeList", "n[1-2]"), ("ReqNodeList", None), ("Nodes", None)]
)
def test_a_word_of_slurms_about_a_job(key: str, word: str | None) -> None:
    assert slurm._word(SHOWN, key) == word


def attempt(tmp_path: Path, name: str = "try") -> Attempt:
    return Attempt(tmp_path / "home", tmp_path / name)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "home").mkdir()
    for name in ("spec.json", "failure-train.json", "checkpoint.pt"):
        (tmp_path / "home" / name).write_text(name)
    return tmp_path / "home"


def contents(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


def test_a_try_gives_what_it_wrote_and_takes_what_it_removed(home: Path, tmp_path: Path) -> None:
    mine, other = attempt(tmp_path), attempt(tmp_path, "other")  # as teacher and student are made in one folder
    (mine.work / "outcome.json").write_text("result")
    (mine.work / "checkpoint.pt").unlink()
    (mine.work / "link").symlink_to("/etc/passwd")
    (other.work / "progress-train.json").write_text("9 of 10")
    other.take_over()
    assert contents(home)["checkpoint.pt"] == "checkpoint.pt"
    mine.take_over()
    expected = {name: name for name in ("spec.json", "failure-train.json")}
    assert contents(home) == {**expected, "outcome.json": "result", "progress-train.json": "9 of 10"}
    assert not mine.work.exists() and not other.work.exists()


def test_a_try_that_is_lost_leaves_its_last_whole_checkpoint_and_nothing_it_writes_later(
    home: Path, tmp_path: Path
) -> None:
    mine = attempt(tmp_path)

    def saved(text: str) -> None:  # as a training does it: whole or not at all
        (mine.work / "checkpoint.partial").write_text(text)
        os.replace(mine.work / "checkpoint.partial", mine.work / "checkpoint.pt")

    saved("step 30")
    mine.follow()
    assert contents(home)["checkpoint.pt"] == "step 30"
    saved("step 60")
    with (mine.work / "train.stderr.log").open("w") as log:
        log.write("warning\n")
        log.flush()
        mine.lost()
        log.write("later\n")
    saved("step 90")
    (mine.work / "outcome.json").write_text("late")
    found = contents(home)
    assert (found["checkpoint.pt"], found["train.stderr.log"]) == ("step 60", "warning\n")
    assert "outcome.json" not in found and not list(home.glob(".*"))


def test_what_ended_is_followed_no_more(home: Path, tmp_path: Path) -> None:
    mine = attempt(tmp_path)
    (mine.work / "checkpoint.pt").unlink()
    mine.take_over()
    mine.work.mkdir()
    (mine.work / "checkpoint.pt").write_text("late")
    mine.follow()
    assert "checkpoint.pt" not in contents(home)
