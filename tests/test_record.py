import json
import shutil
from pathlib import Path

import pytest

from cdbench import record
from cdbench.errors import UserError
from cdbench.record import Record

GOLDEN = Path(__file__).parent / "data" / "record-v1.json"


def place(folder: Path, **changes: object) -> Path:
    table = json.loads(GOLDEN.read_text()) | changes
    folder.mkdir(exist_ok=True)
    (folder / record.RECORD).write_text(json.dumps(table))
    return folder


def test_the_golden_record_of_schema_1_is_still_read(tmp_path: Path) -> None:
    done = record.read(place(tmp_path))
    assert done.status == "ok" and done.metrics is not None
    assert done.metrics.accuracy.k == json.loads(GOLDEN.read_text())["metrics"]["accuracy"]["k"]
    assert done.run_id == done.spec.run_id


def test_writing_and_reading_give_the_same_record(tmp_path: Path) -> None:
    done = Record.model_validate_json(GOLDEN.read_text())
    record.write(tmp_path, done)
    assert record.read(tmp_path) == done


def test_a_newer_schema_is_refused_with_advice(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has schema 2, this cdbench reads up to 1: update cdbench"):
        record.read(place(tmp_path, schema_version=2))


def test_an_altered_spec_is_noticed(tmp_path: Path) -> None:
    table = json.loads(GOLDEN.read_text())
    table["spec"]["seed"] = 7
    with pytest.raises(UserError, match="is not the hash of its spec"):
        record.read(place(tmp_path, spec=table["spec"]))


@pytest.mark.parametrize(("key", "value"), [("status", "great"), ("surprise", 1), ("metrics", {"accuracy": 1.0})])
def test_a_record_that_does_not_fit_the_schema_names_file_and_key(key: str, value: object, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"record\.json.*{key}"):
        record.read(place(tmp_path, **{key: value}))


OUTCOME = {"params": {"lr": 0.1}, "extras": {}, "cost": {}, "environment": {}, "inputs": {}, "notes": []}


@pytest.mark.parametrize(
    ("outcome", "history", "complaint"),
    [
        (OUTCOME, '{"step": 1, "time": 2, "loss/kl": 0.5}\n', None),
        (OUTCOME | {"metrics": {"accuracy": 1}}, "", "unknown key 'metrics'"),
        (OUTCOME | {"params": {"lr": 0.2}}, "", "says lr = 0.2, the spec says 0.1"),
        (OUTCOME | {"cost": {"steps": -1}}, "", "cost.steps = -1"),
        (OUTCOME | {"cost": {"steps": float("nan")}}, "", "cost.steps"),
        (OUTCOME | {"notes": ["x" * 2000]}, "", "notes"),
        (OUTCOME | {"cost": {"steps": float("inf")}}, "", "cost.steps"),
        (OUTCOME | {"cost": {"energy": 1.0}}, "", "cost.energy"),
        (OUTCOME | {"cost": {"train_wall_seconds": 1.0}}, "", "cost.train_wall_seconds"),
        (OUTCOME | {"extras": {"a": float("inf")}}, "", "outcome.json"),
        (OUTCOME | {"extras": {"a": "\ud800"}}, "", "outcome.json"),
        (OUTCOME | {"files": {"student.safetensors": "0"}}, "", "student.safetensors is not the file"),
        (OUTCOME, '{"loss": 0.5}\n', "history.jsonl"),
        (OUTCOME, '{"step": 1.5, "time": 1}\n', "history.jsonl"),
        (OUTCOME, '{"step": 1, "time": 1, "a\u2028b": 1}\n', "history.jsonl"),
        ([], "", "valid dictionary"),
        (OUTCOME, '{"step": 1, "loss": NaN}\n', "history.jsonl"),
        (OUTCOME, '{"step": 1, "loss": "low"}\n', "history.jsonl"),
        (OUTCOME, '{"step": 1, "time": 1, "loss/total": "5"}\n', "history.jsonl"),
        # No axis reaches from there to 1e308.
        (OUTCOME, '{"step": 1, "time": 1, "loss/total": -1e308}\n', "history.jsonl"),
        (OUTCOME, '{"step": 1, "time": 1, "loss//total": 1}\n', "history.jsonl"),
        (OUTCOME, '{"step": 1, "time": 1, "../loss": 1}\n', "history.jsonl"),
        (OUTCOME | {"params": {"weight": 10**400}}, "", "no hyperparameter is beyond"),
        (OUTCOME, "not json\n", "history.jsonl"),
    ],
)
def test_what_a_training_says_of_itself_is_checked(
    outcome: object, history: str, complaint: str | None, tmp_path: Path
) -> None:
    (tmp_path / "outcome.json").write_text(json.dumps(outcome))
    (tmp_path / "history.jsonl").write_text(history)

    def check() -> None:
        record.check_outcome(tmp_path, {"lr": 0.1})
        record.check_history(tmp_path)

    if complaint is None:
        check()
        return
    with pytest.raises(UserError) as caught:
        check()
    assert complaint in str(caught.value)


@pytest.mark.parametrize("text", ["{}", "[", '{"status": "ok"}', "1" * 5000, '{"status": "failed", "exit_code": "x"}'])
def test_a_failure_that_cannot_be_understood_is_none(text: str, tmp_path: Path) -> None:
    (tmp_path / "failure-train.json").write_text(text)
    assert record.read_failure(tmp_path, "train") is None


def test_artefacts_are_checked_against_their_hashes(tmp_path: Path) -> None:
    done = record.read(place(tmp_path, artefacts={"a.txt": record.sha256(GOLDEN), "b.txt": "0" * 64}))
    shutil.copy(GOLDEN, tmp_path / "a.txt")
    assert record.damaged_artefacts(tmp_path, done) == ["b.txt"]
    (tmp_path / "a.txt").write_text("other")
    assert record.damaged_artefacts(tmp_path, done) == ["a.txt", "b.txt"]
