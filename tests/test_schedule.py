"""What a schedule makes of steps that end in every way, with a runner whose steps do no work."""

import json
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path

import pytest

from cdbench import record
from cdbench.config import RunSpec
from cdbench.errors import EnvironmentLacks
from cdbench.files import write_json
from cdbench.plan import Places, defaults_of, make_plan, places, single_run_study
from cdbench.record import Record
from cdbench.runners import End, Handle, Runner, WatchedHandle, schedule
from conftest import Silent, World

Step = Callable[[str, Path, RunSpec], End]


class Ended(WatchedHandle):
    def __init__(self, folder: Path, end: End) -> None:
        super().__init__(folder, "ended")
        self._told = end
        self._thread.start()

    def wait(self) -> End:
        return self._told

    def stop(self) -> None: ...


class Scripted(Runner):
    """Ends each step as `step` says; `lost` is what it says when it is asked for again, where it says something."""

    name, isolated = "scripted", True

    def __init__(self, step: Step, lost: str = "") -> None:
        self.step, self.lost = step, lost
        self.begun: list[str] = []

    def require(self, specs: list[RunSpec], scratch: Path) -> None:
        if self.lost:
            raise EnvironmentLacks(self.lost)

    def start(self, step: str, folder: Path, store: Path, spec: RunSpec, shared: Collection[str] = ()) -> Handle:
        self.begun.append(step)
        return Ended(folder, self.step(step, folder, spec))


class Heard(Silent):
    """What a display is told of steps that are tried again, and of what is only worth knowing."""

    def __init__(self) -> None:
        self.again: list[str] = []
        self.notes: list[str] = []

    def retried(self, job: object, why: str) -> None:
        self.again.append(why)

    def noted(self, job: object, text: str) -> None:
        self.notes.append(text)


def prepares(step: str, folder: Path) -> bool:
    """Does what a step that prepares leaves behind."""
    if step == "circuits":
        write_json(folder / record.PREPARED, {"artefacts": ["data/0"]})
    return step in ("model-teacher", "model-student", "circuits")


@pytest.fixture
def where(world: World, tmp_path: Path) -> Places:
    return places(str(tmp_path / "runs"), str(world.store))


@pytest.fixture
def run(world: World, where: Places, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Record]]:
    """Runs a method by a runner, without its teacher; the records that are on the disk afterwards."""
    monkeypatch.setattr(schedule, "_AGAIN_SECONDS", ())

    def do(runner: Runner, seeds: int = 1, display: Silent | None = None) -> list[Record]:
        study = single_run_study("finetune", "addition_2digit", str(world.profile_file), list(range(seeds)))
        plan = make_plan(study, where, isolated=True)
        try:
            with schedule.exclusive(where):
                schedule.Schedule(replace(plan, runs=plan.runs[1:]), where, runner, display or Silent(), 1).run()
        except EnvironmentLacks:
            assert isinstance(runner, Scripted) and runner.lost
        return [record.read(path.parent) for path in where.records.glob("*/record.json")]

    return do


def test_what_the_machine_fails_three_times_is_infra(run: Callable[..., list[Record]]) -> None:
    def step(name: str, folder: Path, spec: RunSpec) -> End:
        return End(0) if prepares(name, folder) else End(1, "infra", "the card fell off the bus")

    runner = Scripted(step)
    (found,) = run(runner)
    assert (found.status, found.error) == ("infra", "train: the card fell off the bus")
    assert runner.begun.count("train") == 3


def test_a_run_under_way_when_nothing_can_be_started_any_more_is_infra(run: Callable[..., list[Record]]) -> None:
    def step(name: str, folder: Path, spec: RunSpec) -> End:
        if prepares(name, folder):
            return End(0)
        runner.lost = "no container engine answers"
        return End(1, "infra", "the container engine went away")

    runner = Scripted(step)
    (found,) = run(runner)
    assert (found.status, found.error) == ("infra", "train: no container engine answers")


def test_a_tasks_file_that_leaves_in_the_middle_is_told(run: Callable[..., list[Record]]) -> None:
    """By `os._exit(0)`: the step ends well, and what all others need is not there."""
    (found,) = run(Scripted(lambda name, folder, spec: End(0)))
    assert found.status == "failed"
    assert "ablation and pairing / addition_2digit, circuits: ended with exit code 0 and no result" in found.error


def test_signals_that_cannot_be_made_are_not_asked_for_twice_and_keep_nobody_from_others(
    run: Callable[..., list[Record]],
) -> None:
    """A method that wants what no model has would else have all others of its study compute theirs for themselves."""
    sites = iter(["mlp.99.out", "mlp.99.out", "mlp.0.out", "mlp.1.out"])
    made: list[str] = []

    def step(name: str, folder: Path, spec: RunSpec) -> End:
        if name == "train":
            wanted = [{"source": "teacher", "site": next(sites), "position": "last_prompt"}]
            outcome = {"params": defaults_of(spec), "extras": {}, "cost": {}, "environment": {}, "inputs": {}}
            write_json(folder / "outcome.json", outcome | {"lacked": wanted})
        if name == "signals":
            (site,) = (each["site"] for each in json.loads((folder / record.WANTED).read_text())["signals"])
            made.append(site)
            return End(int(site == "mlp.99.out"))
        return End(0 if prepares(name, folder) or name == "train" else 1)

    heard = Heard()
    run(Scripted(step), seeds=4, display=heard)
    assert made == ["mlp.99.out", "mlp.0.out"]  # of the last nobody is left to read them
    (told,) = heard.notes
    assert told.startswith("not made (")
