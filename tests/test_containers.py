"""The docker runner on a real engine: the same numbers as outside, and every way that a step, an engine or a harness can end."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from docker.errors import NotFound
from hypothesis import given
from hypothesis import strategies as st

from cdbench import record
from cdbench.config import RunSpec
from cdbench.containers import ENDED, images
from cdbench.containers.harvest import Kept, keep
from cdbench.containers.host_image import host_image
from cdbench.containers.images import Image
from cdbench.containers.options import Promises
from cdbench.containers.waiting import before_end, containers_of, reap
from cdbench.errors import EnvironmentLacks, UserError
from cdbench.runners import Handle
from cdbench.runners.docker import DockerRunner
from cdbench.store import Store
from conftest import Cli, World
from engine import PrivateEngine, engine_or_skip, skip_unless_needed

pytestmark = pytest.mark.docker
Write = Callable[[str, str, str], Path]
WAITS = '''"""Prints to both streams, then waits."""
import sys
import time
from dataclasses import dataclass
from cdbench.api import Method, Outcome, Problem

@dataclass(frozen=True)
class Waits(Method):
    seconds: float = 60.0

    def run(self, problem: Problem) -> Outcome:
        print("a word")
        print("a warning", file=sys.stderr)
        for i in range(300_000 if self.seconds == 0 else 0):
            print(f"line {i} {'x' * 60}")
        problem.log(1, value=1.0)
        time.sleep(self.seconds)
        return Outcome()
'''


ONE_STEP = """
import sys
from pathlib import Path
from cdbench.config import RunSpec
from cdbench.runners.docker import DockerRunner

runner, folder = DockerRunner(sys.argv[1]), Path(sys.argv[2])
spec = RunSpec.model_validate_json((folder / "spec.json").read_text())
runner.require([spec], Path(sys.argv[4]))
handle = runner.start("evaluate", folder, Path(sys.argv[3]), spec)
print("started", flush=True)
sys.stdin.readline()
handle._thread.join()
print(handle.ended())
runner.close()
"""


@pytest.fixture
def args(world: World, tmp_path: Path, begun_runs: Path, image: Image) -> list[str]:
    shutil.copytree(begun_runs, tmp_path / "runs")
    places = ["--profile", str(world.profile_file), "--runs", str(tmp_path / "runs"), "--store", str(world.store)]
    return [*places, "--runner", "docker", "--image", image.tag]


@pytest.fixture
def waits(plugin_folder: Write, monkeypatch: pytest.MonkeyPatch) -> str:
    folder = str(plugin_folder("methods", "waits", WAITS))
    monkeypatch.setenv("CDBENCH_PLUGINS", folder)
    return folder


@pytest.fixture
def runner(image: Image, world: World, tmp_path: Path) -> Iterator[DockerRunner]:
    made = DockerRunner(image.tag)
    made.require([world.spec("base")], tmp_path / "scratch")
    yield made
    made.close()


def containers(folder: Path) -> list[Any]:
    return containers_of(engine_or_skip(), folder)


def kill_all(folder: Path) -> None:
    for container in containers(folder):
        with contextlib.suppress(NotFound):  # ended by itself between the two
            container.kill()


def until(what: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)


def records(tmp_path: Path) -> dict[str, dict[str, Any]]:
    found = [json.loads(path.read_text()) for path in (tmp_path / "runs" / "records").glob("*/record.json")]
    return {record["spec"]["method"]: record for record in sorted(found, key=lambda each: each["spec"]["seed"])}


def lacked_signals(tmp_path: Path) -> list[list[dict[str, str]]]:
    found = [json.loads(path.read_text()) for path in (tmp_path / "runs" / "records").glob("*/outcome.json")]
    return sorted((outcome["lacked"] for outcome in found), key=len)


def begun(spec: RunSpec, world: World, tmp_path: Path, runner: DockerRunner) -> Handle:
    """A training that has come as far as its method."""
    folder = world.folder(spec, tmp_path)
    handle = runner.start("train", folder, world.store, spec, world.shared)
    log = folder / "train.stderr.log"
    until(lambda: log.exists() and "a warning" in log.read_text())
    return handle


def finished(handle: Handle) -> Any:
    until(lambda: handle.ended() is not None)
    return handle.ended()


def test_the_same_study_gives_the_same_metrics_in_a_container_and_outside_bit_for_bit(
    cli: Cli, args: list[str], tmp_path: Path, image: Image, world: World
) -> None:
    shutil.copytree(world.store, tmp_path / "store", ignore=shutil.ignore_patterns("signals"))
    args[args.index(str(world.store))] = str(tmp_path / "store")
    inside = cli("run", "cka_cd", *args, "--seeds", "0,1", "--jobs", "1")
    assert inside.returncode == 0, inside.stderr
    # What a method has computed is not for others: a trusted step makes the signals that the first run lacked for the second.
    assert "ready  signals / addition_2digit" in inside.stderr
    assert [len(lacked) for lacked in lacked_signals(tmp_path)] == [0, 3]
    outside = cli("run", "cka_cd", *args[:-4], "--seeds", "0,1", "--dry-run")
    assert outside.stdout.count("finished, same spec and code") == 3
    assert f"in containers of {image.tag} ({image.id})" in inside.stderr
    first = records(tmp_path)
    shutil.rmtree(tmp_path / "runs" / "records")
    assert cli("run", "cka_cd", *args[:-4], "--seeds", "0,1").returncode == 0
    second = records(tmp_path)
    for method in ("teacher", "cka_cd"):
        assert first[method]["metrics"] == second[method]["metrics"]
        for name in ("student.safetensors", "predictions.jsonl"):
            assert first[method]["artefacts"].get(name) == second[method]["artefacts"].get(name)
        assert second[method]["environment"]["container"] is None
    # What a plain process made does not count where a container is asked for.
    again = cli("run", "cka_cd", *args, "--dry-run")
    assert "made outside a container before" in again.stdout


def evaluated(handle: Handle) -> tuple[str, dict[str, Any]]:
    """The container in which it was, and its metrics."""
    container = handle._container  # type: ignore[attr-defined]
    end = finished(handle)
    assert end.code == 0, end
    return container.get().id, json.loads((handle._target / "metrics.json").read_text())["metrics"]  # type: ignore[attr-defined]


def test_evaluations_take_turns_in_a_container_and_know_nothing_of_each_other(
    world: World, tmp_path: Path, runner: DockerRunner
) -> None:
    """The second has no weights of its own: with those of the first in its folder it would be judged by them."""
    trained, untouched = world.spec("finetune"), world.spec("base")
    code, weights = world.step("train", trained, tmp_path / "outside")
    assert code == 0
    shutil.copy(weights / "student.safetensors", world.folder(trained, tmp_path))
    found = [
        evaluated(runner.start("evaluate", world.folder(spec, tmp_path), world.store, spec))
        for spec in (trained, untouched, trained)
    ]
    assert len({container for container, _ in found}) == 1
    assert found[0][1] == found[2][1] != found[1][1]
    assert all((tmp_path / spec.run_id / "evaluate.stdout.log").is_file() for spec in (trained, untouched))
    (waiting,) = runner._ahead["evaluate"]
    assert not any(waiting.box.path.iterdir())
    assert runner.image
    ask = "import glob, os; print(glob.glob('/tmp/tmp*'), os.listdir('/dev/shm'))"
    inside = waiting.get().exec_run([runner.image.python, "-c", ask])
    assert (inside.exit_code, inside.output) == (0, b"[] []\n")
    runner.close()
    assert containers(tmp_path) == []


def test_steps_that_prepare_take_turns_in_a_container(world: World, tmp_path: Path, runner: DockerRunner) -> None:
    """Also after one that had to make something; what it leaves for the store is no longer there for the next."""
    spec, used = world.spec("base"), []
    folder = world.folder(spec, tmp_path)
    shutil.copytree(world.store, tmp_path / "store", ignore=shutil.ignore_patterns("counterfactuals", "circuits"))
    for step in ("model-teacher", "model-student", "circuits", "circuits"):
        handle = runner.start(step, folder, tmp_path / "store", spec)
        assert finished(handle).code == 0
        used.append(handle._container.get().id)  # type: ignore[attr-defined]
        until(lambda: not runner._busy)
        (waiting,) = runner._ahead["prepare"]
        assert not any(waiting.box.path.iterdir())
    assert len(set(used)) == 1
    assert sorted(json.loads((folder / record.PREPARED).read_text())["artefacts"]) == sorted(world.shared)
    assert Store(tmp_path / "store").has(world.shared)
    (folder / "spec.json").write_text("{}")
    assert finished(runner.start("circuits", folder, tmp_path / "store", spec)).code != 0
    until(lambda: not runner._busy)
    assert runner._ahead["prepare"] == [] and containers(tmp_path) == []


def test_an_evaluation_that_fails_ends_its_container_and_the_next_has_another(
    world: World, tmp_path: Path, runner: DockerRunner
) -> None:
    bad, good = world.spec("finetune"), world.spec("base")
    folder = world.folder(bad, tmp_path)
    (folder / "student.safetensors").write_bytes(b"nothing of the kind")
    handle = runner.start("evaluate", folder, world.store, bad)
    assert finished(handle).code != 0
    assert json.loads((folder / record.failure_file("evaluate")).read_text())["status"] == "refused"
    assert containers(tmp_path) == []
    evaluated(runner.start("evaluate", world.folder(good, tmp_path), world.store, good))


def test_an_evaluation_whose_container_is_killed_is_tried_in_another(
    world: World, tmp_path: Path, runner: DockerRunner
) -> None:
    spec = world.spec("base")
    folder = world.folder(spec, tmp_path)
    first, metrics = evaluated(runner.start("evaluate", folder, world.store, spec))
    handle = runner.start("evaluate", folder, world.store, spec)
    kill_all(tmp_path)
    assert (finished(handle).status, handle._container.get().id) == ("infra", first)  # type: ignore[attr-defined]
    second, again = evaluated(runner.start("evaluate", folder, world.store, spec))
    assert second != first and again == metrics
    kill_all(tmp_path)  # while it waits
    third, again = evaluated(runner.start("evaluate", folder, world.store, spec))
    assert third != second and again == metrics


@given(
    st.lists(st.one_of(st.binary(max_size=40), st.integers(0, len(ENDED)).map(lambda n: ENDED[:n])), max_size=6),
    st.data(),
)
def test_what_a_step_printed_is_told_from_the_word_that_it_ended(parts: list[bytes], data: st.DataObject) -> None:
    printed = b"".join(parts).replace(ENDED, b"")
    cuts = sorted(data.draw(st.lists(st.integers(0, len(printed + ENDED)), max_size=5)))
    text, held = b"", b""
    for a, b in zip([0, *cuts], [*cuts, None], strict=True):
        assert held != ENDED or a == len(printed + ENDED)
        kept, held = before_end(held + (printed + ENDED)[a:b])
        text += kept
    assert (text, held) == (printed, ENDED)


def test_what_is_printed_is_kept_whole_with_both_streams_apart(
    waits: str, world: World, tmp_path: Path, runner: DockerRunner
) -> None:
    spec = world.spec("waits", seconds=0.0)
    assert finished(begun(spec, world, tmp_path, runner)).code == 0
    folder = tmp_path / spec.run_id
    out = (folder / "train.stdout.log").read_text().splitlines()
    assert out[0] == "a word" and len(out) == 300_001 and out[-1].startswith("line 299999 ")
    assert (folder / "train.stderr.log").read_text() == "a warning\n"


def test_what_a_step_prints_can_be_watched_as_it_comes(waits: str, args: list[str], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "cdbench", "run", "waits", *args]
    seen: set[str] = set()
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as study:
        assert study.stderr
        while len(seen) < 2 and (line := study.stderr.readline()):
            seen |= {line} if ", train" in line else set()
        study.terminate()  # it would wait for a minute
        study.stderr.read()
    label = "waits lr=0.001 / addition_2digit / seed 0, train"
    assert seen == {f"{label} | a word\n", f"{label} ! a warning\n"}


def test_stopping_a_step_removes_its_container(waits: str, world: World, tmp_path: Path, runner: DockerRunner) -> None:
    handle = begun(world.spec("waits"), world, tmp_path, runner)
    handle.stop()
    assert handle.ended() is not None
    runner.close()
    assert containers(tmp_path) == []


def test_a_container_that_is_killed_from_outside_is_no_fault_of_the_method(
    waits: str, world: World, tmp_path: Path, runner: DockerRunner
) -> None:
    handle = begun(world.spec("waits"), world, tmp_path, runner)
    kill_all(tmp_path)
    end = finished(handle)
    assert (end.status, end.text) == ("infra", "the container was killed from outside")


def test_a_study_goes_on_when_a_container_is_killed_in_the_middle(
    waits: str, args: list[str], tmp_path: Path, world: World
) -> None:
    command = [sys.executable, "-m", "cdbench", "run", "waits", *args, "--set", "method.seconds=4"]
    study = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    try:
        until(lambda: any("a warning" in log.read_text() for log in tmp_path.glob("runs/records/*/train.stderr.log")))
        kill_all(tmp_path)
        told = study.communicate(timeout=120)[1]
    finally:
        study.kill()
    assert study.returncode == 0, told
    assert "again  waits" in told and "killed from outside" in told
    assert records(tmp_path)["waits"]["status"] == "ok"


def test_a_container_ends_with_a_harness_that_is_killed(waits: str, args: list[str], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "cdbench", "run", "waits", *args]
    study = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL)
    try:
        until(lambda: any("a warning" in log.read_text() for log in tmp_path.glob("runs/records/*/train.stderr.log")))
    finally:
        study.send_signal(signal.SIGKILL)
        study.wait()
    until(lambda: all(container.status in ("exited", "dead") for container in containers(tmp_path)), 20)
    reap(engine_or_skip())  # unless another harness on this engine has done so in the meantime
    assert containers(tmp_path) == []


SAVES = WAITS.replace(
    '        print("a word")\n',
    """        from pathlib import Path
        for name in ("checkpoint.pt", "history.jsonl"):
            Path("/step", name).write_text(name)
        print("a word")
""",
)


def test_a_checkpoint_is_copied_out_of_its_container_while_the_training_is_at_work(
    world: World, tmp_path: Path, runner: DockerRunner, plugin_folder: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that it outlives the harness and the machine: with either the container's folder is gone."""
    monkeypatch.setenv("CDBENCH_PLUGINS", str(plugin_folder("methods", "waits", SAVES)))
    monkeypatch.setattr("cdbench.runners.docker._KEEP_SECONDS", 0.0)
    spec = world.spec("waits")
    handle = begun(spec, world, tmp_path, runner)
    folder = tmp_path / spec.run_id
    until(lambda: (folder / "history.jsonl").exists())
    assert (folder / "checkpoint.pt").read_text() == "checkpoint.pt"
    handle.stop()
    handle.close()


@pytest.mark.parametrize("there", ["link", "hard link", "pipe", "large", "hollow", "nothing"])
def test_only_plain_files_of_a_sane_size_are_kept_of_a_training_at_work(tmp_path: Path, there: str) -> None:
    box, target = tmp_path / "box", tmp_path / "run"
    box.mkdir()
    target.mkdir()
    (tmp_path / "secret").write_text("secret")
    checkpoint = box / "checkpoint.pt"
    if there == "link":
        checkpoint.symlink_to(tmp_path / "secret")
    elif there == "hard link":
        checkpoint.hardlink_to(tmp_path / "secret")
    elif there == "pipe":
        os.mkfifo(checkpoint)
    elif there == "large":
        checkpoint.write_bytes(b"x" * (3 << 20))
    elif there == "hollow":
        checkpoint.touch()
        os.truncate(checkpoint, 2 << 20)
    history, seen = box / "history.jsonl", Kept()
    history.write_text("{}\n")
    keep(box, target, 2 << 20, seen)
    assert [path.name for path in target.iterdir()] == ["history.jsonl"]
    checkpoint.unlink(missing_ok=True)
    checkpoint.write_text("sane")
    os.truncate(history, (64 << 20) + 1)  # more than the harvest would take
    keep(box, target, 1 << 30, seen)
    assert (target / "checkpoint.pt").read_text() == "sane"
    assert (target / "history.jsonl").read_text() == "{}\n"
    assert len(list(target.iterdir())) == 2
    (target / "checkpoint.pt").unlink()
    keep(box, target, 1 << 30, seen)
    assert not (target / "checkpoint.pt").exists()  # what was copied once is not copied again


IMPORTS = """
import sys, time
from cdbench.runners import inside

class Slowly:
    def find_spec(self, name, path, target=None):
        if name == "cdbench.execute":
            print("imports", flush=True)
            time.sleep(600)

sys.meta_path.insert(0, Slowly())
inside.main(["folder", "store", "own"], again=False)
"""


def test_what_still_imports_ends_with_a_harness_that_is_killed() -> None:
    """Four of them at a time, on a machine that has other things to do, take a while."""
    held = subprocess.Popen([sys.executable, "-c", IMPORTS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert held.stdin and held.stdout
    try:
        assert held.stdout.readline() == "imports\n"
        assert held.poll() is None
        held.stdin.close()
        assert held.wait(60) == 1
    finally:
        held.kill()
        held.wait()
        held.stdout.close()


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_stops_the_container_and_the_same_command_goes_on(
    waits: str, args: list[str], tmp_path: Path, cli: Cli, how: signal.Signals
) -> None:
    command = [sys.executable, "-m", "cdbench", "run", "waits", *args, "--set", "method.seconds=3"]
    restore = lambda: signal.signal(signal.SIGINT, signal.default_int_handler)  # noqa: E731
    study = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, preexec_fn=restore)
    until(lambda: any("a warning" in log.read_text() for log in tmp_path.glob("runs/records/*/train.stderr.log")))
    study.send_signal(how)
    told = study.communicate(timeout=60)[1]
    assert study.returncode == 130, told
    assert containers(tmp_path) == []
    assert records(tmp_path)["waits"]["status"] == "interrupted"
    assert not any((tmp_path / "runs" / "scratch").iterdir())
    folder = tmp_path / "runs" / "records" / records(tmp_path)["waits"]["run_id"]
    (folder / "checkpoint.pt").write_bytes(b"of the training that was stopped")
    done = cli(*command[3:])
    assert done.returncode == 0, done.stderr
    assert not (folder / "checkpoint.pt").exists()  # it may be as large as three models


def test_a_promise_that_the_engine_dropped_is_named(world: World, image: Image, tmp_path: Path) -> None:
    promises = Promises(
        memory=1 << 30, processors=1, processes=64, output=1 << 20, scratch=1 << 20, user="10001:10001", gpus=("0",)
    )
    kept = {
        "NetworkMode": "none",
        "ReadonlyRootfs": True,
        "CapDrop": ["ALL"],
        "SecurityOpt": ["no-new-privileges"],
        "Privileged": False,
        "Memory": 1 << 30,
        "MemorySwap": 1 << 30,
        "NanoCpus": 1_000_000_000,
        "PidsLimit": 64,
        "Ulimits": [{"Name": "fsize", "Hard": 1 << 20}],
        "Tmpfs": {"/tmp": f"size={1 << 20},mode=1777"},
        "ShmSize": 1 << 20,
        "PidMode": "",
        "IpcMode": "private",
        "DeviceRequests": [{"DeviceIDs": ["0"]}],
    }
    mounts = [{"Destination": "/step", "RW": True}, {"Destination": "/store", "RW": False}]
    attrs: dict[str, Any] = {"Config": {"User": "10001:10001"}, "Mounts": mounts, "HostConfig": kept}
    assert promises.broken(attrs) == []
    assert promises.broken(attrs | {"Config": {"User": ""}}) == ["user"]
    assert promises.broken(attrs | {"Mounts": [{"Destination": "/store", "RW": True}]}) == ["read-only mounts"]
    for key, value, name in (
        ("NetworkMode", "bridge", "no network"),
        ("ReadonlyRootfs", False, "read-only root"),
        ("CapDrop", None, "no capabilities"),
        ("SecurityOpt", None, "no new privileges"),
        ("SecurityOpt", ["no-new-privileges=false"], "no new privileges"),
        ("PidMode", "host", "namespaces of its own"),
        ("IpcMode", "container:other", "namespaces of its own"),
        ("Privileged", True, "not privileged"),
        ("Memory", 0, "memory"),
        ("MemorySwap", -1, "memory"),
        ("NanoCpus", 0, "processors"),
        ("PidsLimit", None, "processes"),
        ("Ulimits", None, "file size"),
        ("Tmpfs", None, "scratch"),
        ("ShmSize", 64 << 20, "scratch"),
        ("DeviceRequests", None, "GPUs"),
    ):
        assert promises.broken(attrs | {"HostConfig": kept | {key: value}}) == [name]


def test_an_engine_that_is_not_there_is_one_sentence_and_exit_code_4(args: list[str], cli: Cli, tmp_path: Path) -> None:
    done = cli("run", "base", *args, DOCKER_HOST=f"unix://{tmp_path}/none.sock")
    assert done.returncode == 4
    assert f"no container engine answers at unix://{tmp_path}/none.sock" in done.stderr
    assert "start docker" in done.stderr


def test_an_image_that_is_not_there_is_one_sentence_and_exit_code_4(args: list[str], cli: Cli) -> None:
    done = cli("run", "base", *args[:-1], "cdbench:none")
    assert done.returncode == 4
    assert "no image cdbench:none on this engine" in done.stderr and "cdbench build" in done.stderr


def test_an_image_of_somebody_else_is_a_users_mistake(args: list[str], cli: Cli, image: Image) -> None:
    engine = engine_or_skip()
    foreign = "cdbench-test/foreign:1"
    engine.images.load(host_image(foreign, {}))
    try:
        done = cli("run", "base", *args[:-1], foreign)
    finally:
        engine.images.remove(foreign, force=True)
    assert done.returncode == 2
    assert "was not made by `cdbench build`" in done.stderr


def test_a_gpu_that_the_engine_cannot_give_is_refused_before_anything_runs(
    image: Image, world: World, tmp_path: Path
) -> None:
    profile = world.profile.model_copy(update={"device": "cuda"})
    spec = world.spec("base").model_copy(update={"profile": profile})
    with pytest.raises(EnvironmentLacks, match="name those to use, --gpus 0"):
        DockerRunner(image.tag).require([spec], tmp_path)
    if "nvidia" in engine_or_skip().info()["Runtimes"]:
        pytest.skip("this engine can give GPUs")
    with pytest.raises(EnvironmentLacks, match="NVIDIA container toolkit"):
        DockerRunner(image.tag, ["0"]).require([spec], tmp_path)
    assert containers(tmp_path) == []


@pytest.fixture
def private_engine(monkeypatch: pytest.MonkeyPatch) -> Iterator[PrivateEngine]:
    """A second engine with the image in it, that every client in this test talks to."""
    engine_or_skip()
    engine = PrivateEngine.or_skip()
    try:
        engine.start()
        monkeypatch.setenv("DOCKER_HOST", engine.address)
        images.build_from_host(lambda text: None)
        yield engine
    finally:
        engine.remove()


def test_gpus_are_counted_inside_before_anything_else(
    private_engine: PrivateEngine, image: Image, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This engine takes the order and gives none: what several engines have done."""
    spec = world.spec("base").model_copy(update={"profile": world.profile.model_copy(update={"device": "cuda"})})
    runner = DockerRunner(image.tag, ["0"])
    with pytest.raises(EnvironmentLacks, match="GPU 0 was asked for, and 0 GPUs are visible in its container"):
        runner.require([spec], tmp_path / "scratch")
    # One that falls off the bus in mid-study: the step says so itself, and the runner is asked whether it was the step's fault.
    monkeypatch.setattr(DockerRunner, "_probe", lambda *anything: None)
    runner.require([spec], tmp_path / "scratch")
    monkeypatch.undo()
    monkeypatch.setenv("DOCKER_HOST", private_engine.address)
    assert "0 GPUs are visible in its container" in runner.lacking_gpu(spec, tmp_path / "scratch")
    handle = runner.start("train", world.folder(spec, tmp_path), world.store, spec, world.shared)
    assert finished(handle).code == 4
    runner.close()
    told = record.read_failure(tmp_path / spec.run_id, "train")
    assert told and (told.status, told.error) == ("infra", "1 GPUs were asked for, 0 are visible")
    assert private_engine.hook_log.read_text().startswith("prestart")


def test_a_study_goes_on_when_the_engine_is_killed_and_comes_back(
    private_engine: PrivateEngine, waits: str, args: list[str], tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "cdbench", "run", "waits", *args, "--set", "method.seconds=3"]
    study = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    try:
        until(lambda: any("a warning" in log.read_text() for log in tmp_path.glob("runs/records/*/train.stderr.log")))
        private_engine.kill()
        private_engine.start()
        told = study.communicate(timeout=120)[1]
    finally:
        study.kill()
    assert study.returncode == 0, told
    assert "again  waits" in told
    assert records(tmp_path)["waits"]["status"] == "ok"
    assert containers(tmp_path) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with less room than a step is started with."""
    if os.getuid() != 0:
        pytest.skip("to mount a small file system needs root")
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=300m", "none", folder], capture_output=True, text=True
    )
    if mounted.returncode != 0:
        skip_unless_needed(f"no file system can be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def test_a_disk_that_fills_up_is_no_fault_of_the_method(
    waits: str, world: World, tmp_path: Path, small_disk: Path, image: Image
) -> None:
    runner = DockerRunner(image.tag)
    runner.require([world.spec("base")], small_disk / "scratch")
    spec = world.spec("waits")
    end = finished(runner.start("train", world.folder(spec, tmp_path), world.store, spec, world.shared))
    runner.close()
    assert end.status == "infra" and "less than 512 MiB are free" in end.text


def test_a_step_is_harvested_only_when_its_container_is_gone(
    waits: str, world: World, tmp_path: Path, runner: DockerRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = world.spec("waits", seconds=1.0)
    handle = begun(spec, world, tmp_path, runner)
    container = handle._container  # type: ignore[attr-defined]
    with monkeypatch.context() as patched:
        patched.setattr(container, "end", lambda: False)
        finished(handle)
    assert not (tmp_path / spec.run_id / "outcome.json").exists()
    assert container.end()


def test_more_runs_than_gpus_are_not_started() -> None:
    assert DockerRunner("any", ["0"]).capacity == 1
    assert DockerRunner("any").capacity is None


def test_an_image_with_other_libraries_is_refused(
    image: Image, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cdbench.runners import docker

    monkeypatch.setattr(docker, "versions", lambda: {"torch": "2.0.0+cpu"})
    with pytest.raises(EnvironmentLacks, match=r"torch 2\.\d+\.\d+\S* inside, 2\.0\.0\+cpu outside"):
        DockerRunner(image.tag).require([world.spec("base")], tmp_path)


def test_the_same_machine_gives_the_same_image(image: Image) -> None:
    first, second = (
        subprocess.run(
            [sys.executable, "-c", "import hashlib\nfrom cdbench.containers.host_image import host_image\n"
             "print(hashlib.sha256(host_image('t:1', {})).hexdigest())"],
            env=os.environ | {"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True,
        ).stdout
        for seed in ("1", "2")
    )  # fmt: skip
    assert first == second
    assert images.build_from_host(lambda text: None).id == image.id


def test_an_artefact_that_was_tampered_with_is_not_adopted(world: World, tmp_path: Path) -> None:
    source = world.workspace().training_data
    good = tmp_path / "box" / "data" / source.name
    shutil.copytree(source, good)
    store = Store(tmp_path / "store")
    store.adopt(tmp_path / "box")
    assert (tmp_path / "store" / "data" / source.name / "train.jsonl").read_bytes() == (
        source / "train.jsonl"
    ).read_bytes()
    for harm, words in (
        (_alter, "cut short or altered"),
        (_link, "no plain file"),
        (_misplace, "not the artefact of its key"),
    ):
        shutil.rmtree(tmp_path / "box", ignore_errors=True)
        shutil.copytree(source, good)
        harm(good)
        with pytest.raises(UserError, match=words):
            Store(tmp_path / "other").adopt(tmp_path / "box")
        assert not (tmp_path / "other" / "data").exists()


def _alter(folder: Path) -> None:
    (folder / "train.jsonl").write_text("")


def _link(folder: Path) -> None:
    (folder / "train.jsonl").unlink()
    (folder / "train.jsonl").symlink_to("/etc/passwd")


def _misplace(folder: Path) -> None:
    folder.rename(folder.with_name("0" * 16))


def test_an_engine_that_goes_away_and_comes_back_loses_nothing(world: World, image: Image, tmp_path: Path) -> None:
    """With a socket in between that can be cut, so that the tests' own engine stays up."""
    relay = Relay(tmp_path / "relay.sock")
    folder = world.folder(world.spec("teacher"), tmp_path)
    words = [image.tag, str(folder), str(world.store), str(tmp_path / "scratch")]
    process = subprocess.Popen(
        [sys.executable, "-c", ONE_STEP, *words],
        env=os.environ | {"DOCKER_HOST": f"unix://{relay.path}"},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout and process.stdin
    try:
        assert process.stdout.readline() == "started\n"
        relay.cut()
        told = process.communicate("\n", timeout=120)[0]
    finally:
        process.kill()
        process.communicate()
    assert "infra" in told and "container engine" in told, told
    reap(engine_or_skip())


class Relay:
    """A unix socket that passes everything on to the engine's, until it is cut."""

    def __init__(self, path: Path) -> None:
        import socket

        self.path = path
        self._server = socket.socket(socket.AF_UNIX)
        self._server.bind(str(path))
        self._server.listen(64)
        self._ends: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._lock, self._is_cut = threading.Lock(), False
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        import socket

        while True:
            try:
                near = self._server.accept()[0]
            except OSError:
                return
            far = socket.socket(socket.AF_UNIX)
            far.connect("/var/run/docker.sock")
            with self._lock:  # a connection that comes while the relay is cut must not stay half open
                if self._is_cut:
                    near.close()
                    far.close()
                    return
                self._ends += [near, far]
                for source, target in ((near, far), (far, near)):
                    self._threads.append(threading.Thread(target=self._pass, args=(source, target), daemon=True))
                    self._threads[-1].start()

    @staticmethod
    def _pass(source: Any, target: Any) -> None:
        import contextlib
        import socket

        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)

    def cut(self) -> None:
        import contextlib
        import socket

        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self.path.unlink()
        with self._lock:
            self._is_cut = True
        for end in self._ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for end in self._ends:
            end.close()
