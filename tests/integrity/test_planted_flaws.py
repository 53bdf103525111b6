"""Methods that cheat or break things, one file each in plugins/methods, run in containers as one study beside an honest row.

Each is either caught, with its fault named in the record, or cannot do what it tries, and then its metrics are those of the
untouched student.
"""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from cdbench.containers.images import Image
from cdbench.containers.waiting import containers_of
from cdbench.store import Store, content_hash
from conftest import MICRO, World

PLUGINS = Path(__file__).parent / "plugins"
CAUGHT = {
    "opens_a_socket": ("failed", "Network is unreachable"),
    "writes_outside": ("failed", "Read-only file system"),
    "edits_the_store": ("failed", "Read-only file system"),
    "is_root": ("failed", "Operation not permitted"),
    "returns_the_teacher": ("refused", "another architecture"),
    "another_architecture": ("refused", "has shape"),
    "extra_tensors": ("refused", "lookup_table"),
    "not_a_number": ("refused", "not finite"),
    "a_pickle": ("refused", "student.safetensors is not a safetensors file"),
    "a_symlink": ("refused", "student.safetensors is a symbolic link"),
    "a_fifo": ("refused", "student.safetensors is a pipe"),
    "a_huge_file": ("failed", "File too large"),
    "many_files": ("refused", "limits.output_gib"),
    # Root lists it all the same; another user's harness refuses what it may not look at.
    "hides_its_files": ("refused", "hides what it writes" if os.getuid() else "limits.output_gib"),
    "holds_deleted_files": ("refused", "GiB of deleted files; limits.output_gib allows less"),
    "empty_files": ("refused", "left more than 20000 files"),
    "forks_without_end": ("failed", "Resource temporarily unavailable"),
    "eats_memory": ("oom", "limits.memory_gib"),
    "a_child_eats_memory": ("oom", "limits.memory_gib"),
    "sleeps_for_ever": ("timeout", "no end after 1 minutes"),
    "kills_itself": ("failed", "killed by signal 9"),
    "forges_its_outcome": ("refused", "outcome.json"),
    "a_bottomless_outcome": ("refused", "outcome.json"),
    "other_hyperparameters": ("refused", "outcome.json says steps = 1, the spec says 10"),
    "exits_without_output": ("failed", "ended with exit code 0 and no result"),
    "detaches_the_student": ("failed", "term 'alignment' has weight 0.5 but no gradient"),
    "a_hostile_failure": ("failed", "ended with exit code 1 and no result"),
    "blames_the_machine": ("failed", "no space left on device"),
    "nests_without_end": ("refused", "limits.output_gib"),
    "prints_without_end": ("refused", "printed more than 256 MiB"),
    "speaks_in_tongues": ("failed", "RuntimeError"),
}
IMPOSSIBLE = [
    "reads_the_test_split", "talks_to_the_engine", "kills_its_parent", "prints_a_forged_record", "patches_everything",
    "changes_the_tokenizer", "returns_anothers_student", "patches_what_it_exports_with", "wants_the_moon", "hangs_who_watches",
]  # fmt: skip
FLAGGED = {
    "fades_its_gradient": "gave the student next to no gradient at 3 of 4 probed steps, first at step 5",
    "schedules_the_weight_to_zero": "weighed 0.5 at most and less than a thousandth of that on 12 of 16",
    "claims_a_weight_it_never_gives": "term 'alignment' weighed nothing on any step, and alignment_weight is 0.5",
    "leaves_a_trace_of_a_gradient": "gave the student next to no gradient at 4 of 4 probed steps, first at step 1",
}
RERUN = "seeds_from_the_clock"
TWINS = "trains_on_twins"
LIMITS = """
[limits]
memory_gib = 1.5
processes = 32
output_gib = 0.05
scratch_gib = 0.25
"""


@dataclass(frozen=True)
class Study:
    """Records of the study by method."""

    records: dict[str, dict[str, Any]]
    runs: Path
    profile: Path
    stderr: str
    env: dict[str, str]


@pytest.fixture(scope="session")
def study(image: Image, world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Study]:
    root = tmp_path_factory.mktemp("integrity")
    profile = root / "micro.toml"
    profile.write_text(MICRO.replace('device = "cpu"', 'device = "cpu"\ntimeout_minutes = 1') + LIMITS)
    # The longest first; others after the one that asks for a signal.
    methods = list(dict.fromkeys(["sleeps_for_ever", "base", *IMPOSSIBLE, *CAUGHT, *FLAGGED, RERUN, TWINS]))
    (root / "battery.toml").write_text(
        f'title = "Planted flaws"\ndescription = "One each."\nprofile = "{profile}"\nmethods = {json.dumps(methods)}\n'
        'tasks = ["addition_2digit"]\nseeds = [0]\nreference = false\n'
    )
    (root / "runs").mkdir()
    better = Store(world.store).artefact(
        "models", {"student": "another profile's"}, lambda to: trained_further(world, to)
    )
    env = os.environ | {"CDBENCH_PLUGINS": str(PLUGINS)}
    command = [sys.executable, "-m", "cdbench", "reproduce", "battery.toml", "--runner", "docker", "--image", image.tag]
    command += ["--store", str(world.store), "--jobs", "3", "--logs"]  # some only sleep
    done = subprocess.run(command, cwd=root, env=env, capture_output=True, text=True, timeout=500)
    assert done.returncode == 1, done.stderr[-3000:]
    found = [json.loads(path.read_text()) for path in (root / "runs" / "records").glob("*/record.json")]
    yield Study({r["spec"]["method"]: r for r in found}, root / "runs", profile, done.stderr, env)
    shutil.rmtree(better)  # the store is everybody's


def trained_further(world: World, to: Path) -> None:
    """A checkpoint that fits the student of this study, and is another."""
    student = world.workspace(build=False).student.folder
    save_file({k: v + 0.01 for k, v in load_file(student / "model.safetensors").items()}, to / "model.safetensors")


pytestmark = [pytest.mark.docker, pytest.mark.slow]


def test_every_planted_flaw_is_in_the_battery() -> None:
    files = {path.stem for path in (PLUGINS / "methods").glob("*.py")}
    assert files == {*CAUGHT, *IMPOSSIBLE, *FLAGGED, RERUN, TWINS}


@pytest.mark.parametrize("method", CAUGHT)
def test_what_is_caught_is_named_in_the_record(method: str, study: Study) -> None:
    record = study.records[method]
    status, words = CAUGHT[method]
    assert (record["status"], words in record["error"]) == (status, True), record["error"]
    assert record["metrics"] is None


@pytest.mark.parametrize("method", IMPOSSIBLE)
def test_what_cannot_be_done_changes_nothing(method: str, study: Study) -> None:
    record = study.records[method]
    assert record["status"] == "ok", record["error"]
    assert record["metrics"] == study.records["base"]["metrics"]
    assert record["extras"].get("found", []) == []


def test_who_looks_for_the_test_split_would_know_it(study: Study, world: World) -> None:
    """Else to find nothing would say nothing: outside, the same eyes see it in the store."""
    assert study.records["reads_the_test_split"]["extras"]["found"] == []
    module = planted("reads_the_test_split")
    seen = [name for folder, _, names in os.walk(world.store) for name in names if module.looks_heldout(folder, name)]
    assert "test.jsonl" in seen and len(seen) > 1


def test_who_looks_for_anothers_student_would_know_it(study: Study, world: World) -> None:
    """And would hand it in: outside, it finds the one that this battery has put into the store."""
    assert study.records["returns_anothers_student"]["extras"]["found"] == []
    own = load_file(world.workspace(build=False).student.folder / "model.safetensors")
    assert len(planted("returns_anothers_student").others(str(world.store), own)) == 1


def planted(name: str) -> Any:
    """The module of a planted flaw, imported here."""
    spec = importlib.util.spec_from_file_location(name, PLUGINS / "methods" / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def test_the_harness_takes_the_time_of_what_it_has_locked_in(study: Study) -> None:
    cost = study.records["fades_its_gradient"]["cost"]
    assert cost["train_wall_seconds"] >= cost["train_seconds"] > 0


def test_patches_would_work_on_an_evaluator_in_the_same_process() -> None:
    """Else that they change nothing would say nothing."""
    code = f"""
import runpy, types
import cdbench.execute, torch
for name, method in (("patches_everything", "PatchesEverything"), ("patches_what_it_exports_with", "PatchesWhatItExportsWith")):
    made = runpy.run_path({str(PLUGINS / "methods")!r} + f"/{{name}}.py")[method]
    made().run(types.SimpleNamespace(student=torch.nn.Linear(1, 1)))
print(cdbench.execute.evaluate_run("folder", "spec", "workspace"), cdbench.execute.save_file({{}}, "file"))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == ["1.0", "b'accuracy", "1.0'"], done.stderr


@pytest.mark.parametrize("method", FLAGGED)
def test_what_is_only_suspicious_stands_beside_the_result(method: str, study: Study) -> None:
    record = study.records[method]
    assert record["status"] == "ok", record["error"]
    assert any(FLAGGED[method] in note for note in record["notes"]), record["notes"]


def test_a_seed_from_the_clock_shows_when_the_run_is_repeated(study: Study, world: World) -> None:
    def verify(method: str) -> "subprocess.CompletedProcess[str]":
        run_id = study.records[method]["run_id"]
        command = [sys.executable, "-m", "cdbench", "verify", run_id, "--rerun", "--runs", str(study.runs)]
        return subprocess.run(
            [*command, "--store", str(world.store)], env=study.env, capture_output=True, text=True, timeout=120
        )

    with ThreadPoolExecutor() as pool:
        honest, drawn = pool.map(verify, ("schedules_the_weight_to_zero", RERUN))
    assert honest.returncode == 0, honest.stdout + honest.stderr
    assert drawn.returncode == 3, drawn.stderr
    assert "student.safetensors is another one this time" in drawn.stdout


def test_a_signal_that_nobody_can_make_costs_the_study_nothing(study: Study) -> None:
    assert "note   signals / addition_2digit: not made (site 'mlp.99.out': the model has layers 0 to 2)" in study.stderr


def test_who_watches_sees_what_is_printed_and_nothing_that_is_put_in_its_place(study: Study) -> None:
    lines = [line for line in study.stderr.splitlines() if line.startswith("hangs_who_watches ")]
    assert any(line.endswith(", train | what it really prints") for line in lines), lines
    assert Path("/etc/passwd").read_text().splitlines()[0] not in study.stderr


def test_hostile_words_are_fit_for_a_terminal_and_a_record(study: Study) -> None:
    error = study.records["speaks_in_tongues"]["error"]
    assert "\x1b" not in error and "\x07" not in error and len(error) < 3000
    assert "\x1b" not in study.stderr
    assert (
        "\\u001b"
        not in (study.runs / "records" / study.records["speaks_in_tongues"]["run_id"] / "record.json").read_text()
    )


def test_a_refused_or_failed_run_leaves_nothing_but_its_record_and_logs(study: Study) -> None:
    for method in ("a_huge_file", "many_files", "a_symlink", "prints_a_forged_record"):
        folder = study.runs / "records" / study.records[method]["run_id"]
        assert all(path.is_file() and not path.is_symlink() for path in folder.iterdir())
        assert not any(path.name.startswith("part-") for path in folder.iterdir())
        assert sum(path.stat().st_size for path in folder.iterdir()) < 1 << 20
    assert not any((study.runs / "scratch").iterdir())


def test_who_trains_on_twins_of_test_problems_is_counted(study: Study, world: World) -> None:
    """With the split of the paper; with our own there are none to train on."""
    assert study.records["base"]["inputs"]["test_twins_in_train"] == 0
    assert study.records["base"]["inputs"]["split"] == "strict"
    strict = study.records[TWINS]
    assert (strict["status"], strict["inputs"]["split"]) == ("ok", "strict")
    assert strict["inputs"]["test_twins_in_train"] == heldout_among_twins(strict, world.store) == 0
    runs, store = study.runs.parent / "leaky", study.runs.parent / "leaky-store"
    where = ["--profile", str(study.profile), "--runs", str(runs), "--store", str(store)]
    command = [sys.executable, "-m", "cdbench", "run", TWINS, "--set", "data.split=paper", *where]
    done = subprocess.run(command, env=study.env, cwd=runs.parent, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    found = [json.loads(path.read_text()) for path in runs.glob("records/*/record.json")]
    assert all(record["inputs"]["test_twins_in_train"] > 0 for record in found)
    assert all(record["inputs"]["split"] == "paper" for record in found)
    (leaky,) = (record for record in found if record["spec"]["method"] == TWINS)
    assert leaky["inputs"]["test_twins_in_train"] == heldout_among_twins(leaky, store) > 0


def heldout_among_twins(record: dict[str, Any], store: Path) -> int:
    """How many problems of a run's test split stand among those that it says it trained on."""
    twins = set(record["extras"]["twins"])
    (file,) = (
        path for path in store.glob("heldout/*/test.jsonl") if content_hash(path.parent) == record["inputs"]["heldout"]
    )
    return sum(json.loads(line)["prompt"] in twins for line in file.read_text().splitlines())


def test_the_record_says_in_what_it_ran(study: Study, image: Image) -> None:
    container = study.records["base"]["environment"]["container"]
    assert container["image_id"] == image.id
    assert container["lock"] == image.lock
    assert container["base"] == image.base
    assert container["network"] == "none"
    assert container["limits"]["memory"] == int(1.5 * 2**30)
    assert study.records["base"]["environment"]["trained_in"] == container


def test_the_engine_holds_nothing_afterwards(study: Study, image: Image) -> None:
    from engine import engine_or_skip

    assert [container.labels for container in containers_of(engine_or_skip(), study.runs)] == []
