from pathlib import Path

import pytest

from cdbench import config
from cdbench.config import FolderModel, build_profile, layered_overrides, load_study, parse_assignment, plan_specs
from cdbench.errors import UserError
from cdbench.plan import canonical
from cdbench.requirements import folder_content


def table(text: str, tmp_path: Path) -> str:
    path = tmp_path / "own.toml"
    path.write_text(text)
    return str(path)


TINY = Path(config.__file__).parent / "profiles" / "tiny.toml"


def test_every_shipped_profile_and_study_is_valid() -> None:
    for name in config.available("profiles"):
        assert build_profile(name, {}).name == name
    for name in config.available("studies"):
        assert plan_specs(load_study(name), {}, "tiny")


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (("lr = 1e-4", "learning_rate = 1e-4"), "unknown key 'training.learning_rate'"),
        (("lr = 1e-4", "lr = -1.0"), "training.lr = -1.0"),
        (("layers = 4", 'layers = "four"'), "teacher.layers = 'four'"),
        (("hidden = 96", "hidden = 97"), "heads must divide hidden"),
        (("train = 4000\n", ""), "key 'data.train' is missing"),
        (("train = 4000\nvalidation = 500\n", ""), "keys 'data.train', 'data.validation' are missing"),
        (("[circuits]", "lr = 1\n[circuits]"), "Cannot overwrite a value"),
        (
            ("device =", "lr = 1\ndevice ="),
            "unknown key 'lr'; did you mean 'teacher.lr' or 'student.lr' or 'training.lr'?",
        ),
        (("lr = 1e-4", "lrr = 1e-4"), "unknown key 'training.lrr'; did you mean 'training.lr'?"),
        (("lr = 1e-4", "pace = 1e-4"), "unknown key 'training.pace'; there are: training.lr, training.batch_size, "),
        (
            ("[circuits]", "[copper]\n[circuits]"),
            "unknown key 'copper'; there are: name, description, teacher.…, student.…, data.…",
        ),
        (("[data]", "[data"), "not valid TOML"),
        (("lr = 1e-4", "lr = nan"), "training.lr"),
    ],
)
def test_a_wrong_profile_is_an_error_naming_file_and_key(
    change: tuple[str, str], complaint: str, tmp_path: Path
) -> None:
    assert change[0] in TINY.read_text()
    path = table(TINY.read_text().replace(*change), tmp_path)
    with pytest.raises(UserError, match=r"own\.toml") as caught:
        build_profile(path, {})
    assert complaint in str(caught.value)


def test_unknown_names_are_answered_with_those_there_are() -> None:
    with pytest.raises(UserError, match="unknown profile 'huge'; there are: paper, smoke, tiny"):
        build_profile("huge", {})
    with pytest.raises(UserError, match="unknown study 'paper_z'; there are: failed_run, paper_a"):
        load_study("paper_z")


def test_flags_beat_environment_beats_file_beats_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cdbench.toml").write_text('[set]\n"training.lr" = 3.0\n"training.epochs" = 3\n"data.seed" = 3\n')
    monkeypatch.setenv("CDBENCH_SET", "training.lr=2.0 training.epochs=2")
    study = {"training.lr": 4.0, "training.epochs": 4, "data.seed": 4, "data.test": 4}
    assert layered_overrides(study, ["training.lr=1.0"]) == {
        "training.lr": (1.0, "--set"),
        "training.epochs": (2, "CDBENCH_SET"),
        "data.seed": (3, "cdbench.toml"),
        "data.test": (4, "study"),
    }


def test_an_unquoted_dotted_key_in_cdbench_toml_means_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cdbench.toml").write_text("[set]\ntraining.lr = 2e-4\n")
    changed = build_profile("tiny", layered_overrides({}, []))
    assert changed.training == build_profile("tiny", {}).training.model_copy(update={"lr": 2e-4})
    for wrong in ("set = 3", "[set]\ntraining.lr = [1]", "[sets]\na = 1"):
        (tmp_path / "cdbench.toml").write_text(wrong)
        with pytest.raises(UserError, match=r"cdbench\.toml"):
            layered_overrides({}, [])


@pytest.mark.parametrize("text", ['sweep = {"training.lr" = []}', "seeds = []", "surprise = 1", 'methods = "kl"'])
def test_a_wrong_study_names_file_and_key(text: str, tmp_path: Path) -> None:
    fields = {"title": '"t"', "description": '"d"', "tasks": '["addition_2digit"]', "methods": '["kl"]', "seeds": "[0]"}
    key, _, value = text.partition(" = ")
    path = tmp_path / "mine.toml"
    path.write_text("".join(f"{k} = {v}\n" for k, v in (fields | {key: value}).items()))
    with pytest.raises(UserError, match=rf"mine\.toml: .*{key}"):
        load_study(str(path))


def test_what_no_number_depends_on_is_not_in_the_run_id() -> None:
    one = plan_specs(load_study("paper_a"), {"timeout_minutes": (99, "--set")}, "tiny")
    assert [s.run_id for s in one] == [s.run_id for s in plan_specs(load_study("paper_a"), {}, "tiny")]


def test_an_override_out_of_range_names_who_set_it() -> None:
    with pytest.raises(UserError, match=r"^--set: training.lr = -2"):
        build_profile("tiny", layered_overrides({}, ["training.lr=-2"]))
    with pytest.raises(UserError, match=r"^--set: unknown key 'training.rate'"):
        build_profile("tiny", layered_overrides({}, ["training.rate=2"]))


@pytest.mark.parametrize("text", ["training.lr", "=3", "a.b=[1, 2]"])
def test_a_malformed_assignment_is_explained(text: str) -> None:
    with pytest.raises(UserError, match="--set"):
        parse_assignment(text, "--set")


def test_values_are_read_as_toml_and_else_as_text() -> None:
    assert parse_assignment("a=2e-4", "") == ("a", 2e-4)
    assert parse_assignment("a=true", "") == ("a", True)
    assert parse_assignment("a=one_to_one", "") == ("a", "one_to_one")


def test_the_run_id_is_the_hash_of_the_spec_and_of_nothing_else() -> None:
    specs = plan_specs(load_study("paper_a"), {}, "tiny")
    again = plan_specs(load_study("paper_a"), {}, "tiny")
    assert [s.run_id for s in specs] == [s.run_id for s in again]
    assert len({s.run_id for s in specs}) == len(specs) == 37
    changed = specs[1].model_copy(update={"seed": 99})
    assert changed.run_id != specs[1].run_id


def test_the_default_cell_of_the_failed_run_grid_is_the_row_of_table_1() -> None:
    grid = {canonical(s).run_id for s in plan_specs(load_study("failed_run"), {}, "tiny")}
    table_1 = {canonical(s).run_id for s in plan_specs(load_study("paper_a"), {}, "tiny") if s.method == "cka_cd"}
    assert table_1 < grid
    assert len(grid) == 13


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "pytorch_model.bin", "tokenizer.model"])
def test_a_checkpoint_is_another_one_when_any_file_that_is_loaded_changes(name: str, tmp_path: Path) -> None:
    for file in ("config.json", name):
        (tmp_path / file).write_text("{}")
    before = folder_content(FolderModel(source="folder", path=str(tmp_path)))
    (tmp_path / name).write_text("{ }")
    assert folder_content(FolderModel(source="folder", path=str(tmp_path))) != before


@pytest.mark.parametrize(("key", "size", "least"), [("test", 3, 4), ("length_shift", 1, 2)])
def test_too_few_held_out_problems_are_refused_before_anything_is_trained(key: str, size: int, least: int) -> None:
    with pytest.raises(UserError, match=f"--set: data.{key} = {size}; at least {least} problems are needed"):
        build_profile("smoke", {f"data.{key}": (size, "--set")})
    assert build_profile("smoke", {"data.length_shift": (0, "--set")}).data.length_shift == 0
