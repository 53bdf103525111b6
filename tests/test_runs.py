"""Whole studies through the real command, with the micro pair: what a user does, and what goes wrong."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from conftest import Cli, Silent, World

Write = Callable[[str, str, str], Path]

CRASHES = '''"""Crashes."""
from dataclasses import dataclass
from cdbench.api import Method, Outcome, Problem

@dataclass(frozen=True)
class Crashes(Method):
    how: str = "raise"
    def run(self, problem: Problem) -> Outcome:
        import os, signal, time
        if self.how == "raise":
            raise RuntimeError("planned")
        if self.how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.how == "sleep":
            time.sleep(600)
        if self.how == "exit":
            os._exit(0)
        if self.how == "memory":
            raise MemoryError
        if self.how == "nan":
            state = {k: v * float("nan") for k, v in problem.student.state_dict().items()}
            return Outcome(weights=state)
        return "nothing"
'''


@pytest.fixture
def args(world: World, tmp_path: Path, mlflow_template: Path) -> list[str]:
    """Own runs folder with an empty MLflow store in it (making one takes 8 s), the shared store of artefacts."""
    (tmp_path / "runs").mkdir()
    shutil.copyfile(mlflow_template, tmp_path / "runs" / "mlflow.db")
    return ["--profile", str(world.profile_file), "--runs", str(tmp_path / "runs"), "--store", str(world.store)]


def records(tmp_path: Path) -> list[dict]:  # type: ignore[type-arg]
    return [json.loads(path.read_text()) for path in sorted((tmp_path / "runs" / "records").glob("*/record.json"))]


def test_a_study_runs_to_its_report_and_the_second_time_takes_everything_from_the_cache(
    cli: Cli, args: list[str], tmp_path: Path
) -> None:
    command = ["reproduce", "paper_a", "-k", "cka_cd", "--seeds", "0,1", "--json", *args]
    first = cli(*command, MLFLOW_TRACKING_URI="")
    assert first.returncode == 0, first.stderr
    result = json.loads(first.stdout)[0]
    assert [run["status"] for run in result["runs"]] == ["ok"] * 3
    assert Path(result["report"]).is_file()
    assert "3 runs: 3 to do" in first.stderr
    assert "MLflow: 3 records sent" in first.stderr
    second = cli(*command, MLFLOW_TRACKING_URI="")
    assert second.returncode == 0, second.stderr
    assert json.loads(second.stdout)[0]["runs"] == result["runs"]
    assert "3 runs: 0 to do, 3 finished before" in second.stderr
    assert "MLflow: 0 records sent, 3 were there already" in second.stderr
    assert result["study"].startswith("paper_a-micro-")  # other seeds make another study
    saved = json.loads((tmp_path / "runs" / result["study"] / "study.json").read_text())
    assert len(saved["run_ids"]) == 25  # -k narrows what is run now, not the study
    dry = cli(*command[: -len(args) - 1], "-n", *args)
    assert dry.stdout.count("finished, same spec and code") == 3
    assert "training.lr" in dry.stdout and "micro.toml" in dry.stdout
    forced = cli(*command[: -len(args) - 1], "-n", "--force", *args)
    assert forced.stdout.count("(forced)") == 3


def test_two_runs_of_one_spec_have_the_same_metrics_bit_for_bit(cli: Cli, world: World, tmp_path: Path) -> None:
    metrics = []
    for name in ("one", "two"):
        where = ["--runs", str(tmp_path / name), "--store", str(tmp_path / name / "store")]
        done = cli("run", "cka_cd", "--profile", world.profile_file, "--json", "--jobs", 1, *where)
        assert done.returncode == 0, done.stderr
        metrics.append([run["metrics"] for run in json.loads(done.stdout)[0]["runs"]])
    assert metrics[0] == metrics[1]


FAILURES = {
    "raise": ("failed", "RuntimeError: planned"),
    "kill": ("oom", "signal 9"),
    "exit": ("failed", "exit code 0 and no result"),
    "memory": ("oom", "MemoryError"),
    "nan": ("refused", "not finite"),
    "odd": ("failed", "expected an Outcome"),
}


def test_a_run_that_fails_is_a_row_and_the_study_goes_on(
    cli: Cli, args: list[str], plugin_folder: Write, tmp_path: Path
) -> None:
    env = {"CDBENCH_PLUGINS": str(plugin_folder("methods", "crashes", CRASHES))}
    study = tmp_path / "mine.toml"
    study.write_text(
        'title = "Mine"\ndescription = "<b>All</b> of them fail."\ntasks = ["addition_2digit"]\n'
        f'methods = ["crashes"]\nseeds = [0]\n[sweep]\n"method.how" = {list(FAILURES)}\n'
    )
    done = cli("reproduce", study, *args, **env)
    assert done.returncode == 1
    assert "6 of the runs came to no result" in done.stderr
    made = {r["params"].get("how"): r for r in records(tmp_path) if r["spec"]["method"] == "crashes"}
    for how, (status, text) in FAILURES.items():
        assert (made[how]["status"], made[how]["metrics"]) == (status, None)
        assert text in made[how]["error"]
    again = cli("reproduce", study, "-n", *args, **env)
    assert "refused before" in again.stdout and "oom before" in again.stdout
    assert again.stdout.count("reuse") == 1  # the teacher; a failed run is never taken from the cache
    page = (next((tmp_path / "runs").glob("mine*/report/index.html"))).read_text()
    assert "6 of 7 runs came to no result" in page and "RuntimeError: planned" in page
    assert "&lt;b&gt;All" in page and "<b>All" not in page


def test_a_run_that_never_ends_is_stopped_at_its_time_limit(
    cli: Cli, world: World, args: list[str], plugin_folder: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cdbench.plan import make_plan, places, single_run_study
    from cdbench.runners import schedule
    from cdbench.runners.local import LocalRunner

    folder = plugin_folder("methods", "crashes", CRASHES)
    monkeypatch.setenv("CDBENCH_PLUGINS", str(folder))
    where = places(str(tmp_path / "runs"), str(world.store))
    study = single_run_study("crashes", "addition_2digit", str(world.profile_file), [0])
    plan = make_plan(study, where, flags=["method.how=sleep", "timeout_minutes=1"])

    class Hurried(Silent):
        def update(self, running: list[schedule.Job], waiting: int) -> None:
            for job in running:
                if job.step == "train":  # what it needs may take its time, on a machine that is busy
                    job.started -= 20  # a minute passes in three looks

    with schedule.exclusive(where):
        done = schedule.Schedule(plan, where, LocalRunner(), Hurried(), 1).run()
    assert done[plan.run_ids[1]].status == "timeout"
    assert "no end after 1 minutes" in done[plan.run_ids[1]].error


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_study_keeps_what_is_finished_and_goes_on(
    number: signal.Signals, cli: Cli, world: World, args: list[str], tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "cdbench", "reproduce", "paper_a", "--jobs", "1", "--seeds", "0", *args]
    # A shell's background job is started with Ctrl-C ignored, and its children inherit that: these shall not.
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    signal.signal(signal.SIGINT, previous)
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("[2/"):
            break
    process.send_signal(number)
    rest = process.stderr.read()
    process.stderr.close()
    assert process.wait(30) == 130, rest
    assert "the same command goes on from here" in rest
    assert "Traceback" not in rest
    kept = {r["run_id"]: r for r in records(tmp_path) if r["status"] == "ok"}
    assert len(kept) >= 2
    done = cli(*command[3:], "--no-report")
    assert done.returncode == 0, done.stderr
    after = {r["run_id"]: r for r in records(tmp_path)}
    assert all(after[run_id] == kept[run_id] for run_id in kept)
    assert len(after) == 13 and all(r["status"] == "ok" for r in after.values())


def test_after_sigkill_nothing_is_left_running_and_the_study_goes_on(cli: Cli, args: list[str], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "cdbench", "reproduce", "paper_a", "-k", "finetune", "--seeds", "0,1", *args]
    command += ["--set", "training.epochs=40"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("start  finetune"):
            break
    time.sleep(1)
    family = psutil.Process(process.pid).children(recursive=True)
    assert len(family) >= 3  # the fork server and two steps, at least
    process.send_signal(signal.SIGKILL)
    process.wait(10)
    process.stderr.close()
    _, alive = psutil.wait_procs(family, timeout=15)
    assert alive == []
    done = cli(*command[3:], "--no-report")
    assert done.returncode == 0, done.stderr
    assert {r["status"] for r in records(tmp_path)} == {"ok"}


def test_a_run_stopped_between_training_and_evaluation_is_not_trained_again(
    finished: str, cli: Cli, args: list[str], tmp_path: Path
) -> None:
    folder = tmp_path / "runs" / "records" / finished
    for name in ("record.json", "metrics.json", "predictions.jsonl"):
        (folder / name).unlink()
    weights = (folder / "student.safetensors").stat().st_mtime_ns
    dry = cli("run", "finetune", "-n", *args)
    assert "only the evaluation is left" in dry.stdout
    assert cli("run", "finetune", *args).returncode == 0
    assert (folder / "student.safetensors").stat().st_mtime_ns == weights
    assert json.loads((folder / "record.json").read_text())["status"] == "ok"


def test_a_shared_step_that_crashes_makes_failed_rows_and_a_report(cli: Cli, args: list[str], tmp_path: Path) -> None:
    done = cli("reproduce", "paper_a", "--seeds", "0", "--set", "teacher.hidden=1000000", *args)
    assert done.returncode == 1, done.stderr
    made = records(tmp_path)
    assert len(made) == 13
    assert all(r["status"] in ("failed", "oom") and "teacher model" in r["error"] for r in made)
    assert next((tmp_path / "runs").glob("paper_a-micro-*/report/index.html")).is_file()


def test_a_method_hyperparameter_goes_to_the_methods_that_have_it(cli: Cli, args: list[str]) -> None:
    dry = cli("reproduce", "paper_a", "--seeds", "0", "--set", "method.alignment_weight=1", "-n", "--json", *args)
    labels = [run["label"] for run in json.loads(dry.stdout)[0]["runs"]]
    assert sum("alignment_weight=1 " in label for label in labels) == 6  # cka_cd, supervised_cd and four controls
    same = cli("reproduce", "paper_a", "--seeds", "0", "--set", "method.alignment_weight=1.0", "-n", "--json", *args)
    assert [r["run_id"] for r in json.loads(dry.stdout)[0]["runs"]] == [
        r["run_id"] for r in json.loads(same.stdout)[0]["runs"]
    ]


def test_a_second_harness_in_the_same_folder_is_told_to_wait(cli: Cli, args: list[str], tmp_path: Path) -> None:
    from cdbench.plan import places
    from cdbench.runners.schedule import exclusive

    with exclusive(places(str(tmp_path / "runs"), None)):
        done = cli("run", "base", *args)
    assert done.returncode == 2
    assert f"another cdbench (process {os.getpid()}) is working" in done.stderr


@pytest.fixture
def finished(cli: Cli, args: list[str], tmp_path: Path) -> str:
    """The run id of a finished finetune run."""
    done = cli("run", "finetune", "--json", *args)
    assert done.returncode == 0, done.stderr
    return str(json.loads(done.stdout)[0]["runs"][1]["run_id"])


def test_verify_and_score_agree_with_the_record_and_notice_what_was_altered(
    finished: str, cli: Cli, args: list[str], tmp_path: Path
) -> None:
    where = args[2:]
    verified = cli("verify", finished, *where)
    assert (verified.returncode, verified.stderr) == (0, "")
    scored = cli("score", finished, "--json", *where)
    assert scored.returncode == 0, scored.stderr
    folder = tmp_path / "runs" / "records" / finished
    stored = json.loads((folder / "record.json").read_text())
    assert json.loads(scored.stdout)["accuracy"] == stored["metrics"]["accuracy"]
    # Somebody improves the record.
    better = json.loads((folder / "record.json").read_text())
    better["metrics"]["accuracy"]["k"] += 10
    (folder / "record.json").write_text(json.dumps(better))
    for command in ("verify", "score"):
        noticed = cli(command, finished, *where)
        assert noticed.returncode == 3, noticed.stderr
    assert "accuracy: the record says" in cli("verify", finished, *where).stdout
    # Judged by other code, where nobody need have done anything.
    older = better | {"code": better["code"] | {"evaluation": "0" * 16}}
    (folder / "record.json").write_text(json.dumps(older))
    elsewhere = cli("verify", finished, *where)
    assert elsewhere.returncode == 2 and "was judged by 0000000000000000 and not by" in elsewhere.stderr
    assert f"check out commit {stored['code']['commit'][:12]}" in elsewhere.stderr
    (folder / "record.json").write_text(json.dumps(better))
    # Somebody gives it other answers, or other data, and the record the new sums.
    for file, old, new, told in (
        ("predictions.jsonl", '"given": "', '"given": "9', "the weights give other answers than the record's"),
        ("spec.json", '"seed": 0', '"seed": 7', "spec.json is not the record's spec"),
    ):
        text = (folder / file).read_text()
        assert old in text
        (folder / file).write_text(text.replace(old, new))
        forged = json.loads(json.dumps(stored))
        forged["artefacts"][file] = hashlib.sha256((folder / file).read_bytes()).hexdigest()
        (folder / "record.json").write_text(json.dumps(forged))
        noticed = cli("verify", finished, *where)
        assert noticed.returncode == 3 and told in noticed.stdout, noticed.stdout
        (folder / file).write_text(text)
    # Somebody alters the weights.
    (folder / "record.json").write_text(json.dumps(stored))
    weights = bytearray((folder / "student.safetensors").read_bytes())
    weights[-1] ^= 0x40
    (folder / "student.safetensors").write_bytes(weights)
    noticed = cli("verify", finished, *where)
    assert noticed.returncode == 3
    assert "student.safetensors is missing or was altered" in noticed.stdout
    assert "its student.safetensors was altered" in cli("run", "finetune", "-n", *args).stdout


def test_without_its_store_a_run_is_not_accused_of_anything(
    finished: str, cli: Cli, args: list[str], tmp_path: Path
) -> None:
    done = cli("verify", finished, "--runs", tmp_path / "runs", "--store", tmp_path / "empty")
    assert done.returncode == 2
    assert "Verifying needs the store" in done.stderr


@pytest.mark.slow
def test_an_exported_student_scores_the_same_through_the_lm_eval_command(
    finished: str, cli: Cli, args: list[str], world: World, tmp_path: Path
) -> None:
    where = args[2:]
    assert cli("export", finished, "student", *where).returncode == 0
    tasks = cli("tasks-path", *args).stdout.strip()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    command = [
        Path(sys.executable).with_name("lm_eval"), "run", "--model", "hf", "--model_args",
        f"pretrained={tmp_path / 'student'}", "--include_path", tasks, "--tasks", "cdbench_addition_2digit",
        "--device", "cpu", "--batch_size", "32", "--output_path", elsewhere / "out",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=elsewhere, capture_output=True, text=True, env=os.environ)
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads(next((elsewhere / "out").rglob("results_*.json")).read_text())
    theirs = result["results"]["cdbench_addition_2digit"]["exact_match,answer"]
    stored = json.loads((tmp_path / "runs" / "records" / finished / "record.json").read_text())
    assert theirs == pytest.approx(stored["metrics"]["accuracy"]["value"])
    assert cli("export", finished, "student", *where).returncode == 2  # not empty


def test_a_damaged_store_stops_the_study_with_one_sentence(cli: Cli, world: World, tmp_path: Path) -> None:
    store = tmp_path / "store"
    shutil.copytree(world.store, store)
    files = list((store / "models").glob("*/model.safetensors"))
    for file in files:  # other tests may have brought models that this study does not read
        file.write_bytes(file.read_bytes()[:-10])
    done = cli("run", "base", "--profile", world.profile_file, "--store", store)
    assert done.returncode == 2
    assert "was cut short or altered" in done.stderr and any(str(file) in done.stderr for file in files)
    assert "Traceback" not in done.stderr


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 4 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting a small file system is not permitted here (needs root)")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("free_kib", [100, 500, 3400])
def test_a_full_disk_ends_in_a_sentence_and_keeps_finished_records(
    free_kib: int, cli: Cli, world: World, small_disk: Path
) -> None:
    (small_disk / "fill").write_bytes(bytes((4096 - free_kib) * 1024))
    where = ["--profile", world.profile_file, "--runs", small_disk / "runs", "--store", world.store]
    done = cli("reproduce", "paper_a", "--seeds", "0", *where, MLFLOW_TRACKING_URI="")
    assert "Traceback" not in done.stderr
    if free_kib < 1000:
        assert done.returncode in (1, 4)
        assert "disk is full" in done.stderr or "No space left" in done.stderr
    else:  # enough for the study, not for MLflow's database: MLflow is only a view
        assert done.returncode == 0
        assert "warning: MLflow" in done.stderr and "cdbench sync paper_a-micro" in done.stderr
    for path in (small_disk / "runs" / "records").glob("*/record.json"):
        assert json.loads(path.read_text())["run_id"] == path.parent.name
    (small_disk / "fill").unlink()
    if free_kib < 1000:
        again = cli("reproduce", "paper_a", "--seeds", "0", "-k", "base", "--no-report", *where)
        assert again.returncode == 0, again.stderr


def test_hub_weights_that_are_missing_are_named_with_what_to_do(cli: Cli) -> None:
    done = cli("reproduce", "paper_a", "--profile", "paper", HF_HUB_OFFLINE="1")
    assert done.returncode == 4
    for part in ("CUDA GPU", "meta-llama/Meta-Llama-3-8B", "licence", "HF_TOKEN", "hf download"):
        assert part in done.stderr
    assert "Traceback" not in done.stderr


def test_a_local_checkpoint_takes_the_place_of_the_zoo(cli: Cli, world: World, tmp_path: Path) -> None:
    folders = {role: world.workspace().checkpoint(role).folder for role in ("teacher", "student")}  # type: ignore[arg-type]
    text = world.profile_file.read_text()
    for role, folder in folders.items():
        start = text.index(f"[{role}]")
        end = text.index("[", start + 1)
        text = f'{text[:start]}[{role}]\nsource = "folder"\npath = "{folder}"\n{text[end:]}'
    (tmp_path / "local.toml").write_text(text)
    done = cli("run", "kl", "--profile", "local.toml", "--json")
    assert done.returncode == 0, done.stderr
    zoo = cli("run", "kl", "--profile", world.profile_file, "--json", "--store", world.store)
    assert json.loads(done.stdout)[0]["runs"][1]["metrics"] == json.loads(zoo.stdout)[0]["runs"][1]["metrics"]


def test_models_of_different_vocabularies_are_refused(cli: Cli, world: World, tmp_path: Path) -> None:
    copy = tmp_path / "other"
    shutil.copytree(world.workspace().teacher.folder, copy)
    tokenizer = json.loads((copy / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"]["?"] = len(tokenizer["model"]["vocab"])
    (copy / "tokenizer.json").write_text(json.dumps(tokenizer))
    text = world.profile_file.read_text()
    start, end = text.index("[teacher]"), text.index("[student]")
    (tmp_path / "mixed.toml").write_text(f'{text[:start]}[teacher]\nsource = "folder"\npath = "{copy}"\n{text[end:]}')
    done = cli("run", "kl", "--profile", "mixed.toml")
    assert done.returncode == 2, done.stderr
    assert "different vocabularies" in done.stderr


def test_a_method_is_taken_by_its_path_and_found_by_its_name_afterwards(
    cli: Cli, args: list[str], tmp_path: Path
) -> None:
    file = tmp_path / "theirs.py"
    file.write_text(CRASHES.replace("Crashes", "Theirs").replace('"nothing"', "Outcome()"))
    done = cli("run", file, "--set", "method.how=return", *args)
    assert done.returncode == 0, done.stderr
    (stored,) = [r for r in records(tmp_path) if r["spec"]["method"] == "theirs"]
    kept = tmp_path / "runs" / "plugins" / "methods" / "theirs.py"
    assert kept.read_text() == file.read_text()
    file.write_text(file.read_text() + "\n# Another idea.\n")
    looked = cli("run", file, "--set", "method.how=return", "-n", *args)
    assert "code or library versions changed since" in looked.stdout, looked.stderr
    assert "Another idea" not in kept.read_text(), "a dry run changes nothing"
    file.unlink()
    verified = cli("verify", stored["run_id"], "--rerun", *args[2:])
    assert verified.returncode == 0, verified.stderr
    assert "a second run gave the same bytes" in verified.stdout


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("kl.py", "there is a method 'kl' already"),
        ("gone.py", "cannot be read: No such file"),
        ("a-b.py", "'a-b' cannot be"),
    ],
)
def test_a_path_that_is_no_new_method_is_a_users_mistake(
    name: str, complaint: str, cli: Cli, args: list[str], tmp_path: Path
) -> None:
    if name != "gone.py":
        (tmp_path / name).write_text(CRASHES)
    done = cli("run", tmp_path / name, *args)
    assert done.returncode == 2
    assert complaint in done.stderr


def test_an_image_without_the_docker_runner_is_a_users_mistake(cli: Cli, args: list[str]) -> None:
    done = cli("run", "base", *args, "--image", "cdbench:any")
    assert done.returncode == 2
    assert "--image is for --runner docker" in done.stderr


def test_shared_artefacts_that_are_there_are_not_made_again(cli: Cli, args: list[str], tmp_path: Path) -> None:
    first, second = (cli("run", "base", *args, "--force") for _ in range(2))
    assert first.returncode == second.returncode == 0, second.stderr
    assert "ablation and pairing" in first.stderr
    assert "ablation and pairing" not in second.stderr
