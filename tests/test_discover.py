import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cdbench import discover, plugins
from cdbench.errors import UserError
from conftest import Cli

Write = Callable[[str, str, str], Path]
GOOD = '''"""A method that does nothing."""
from dataclasses import dataclass
from cdbench.api import Method, Outcome, Problem

@dataclass(frozen=True)
class Nothing(Method):
    strength: float = 0.5
    def run(self, problem: Problem) -> Outcome:
        return Outcome()
'''


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch, plugin_folder: Write) -> Callable[[str, str, str], Path]:
    def write(kind: str, name: str, source: str) -> Path:
        root = plugin_folder(kind, name, source)
        monkeypatch.setenv("CDBENCH_PLUGINS", str(root))
        monkeypatch.setattr(plugins, "__path__", [str(p) for p in plugins.roots()])
        for module in [m for m in sys.modules if m.startswith("cdbench.plugins.")]:
            monkeypatch.delitem(sys.modules, module)
        return root / kind / f"{name}.py"

    return write


def test_finding_and_listing_import_neither_plugins_nor_torch() -> None:
    code = (
        "import sys; from click.testing import CliRunner; from cdbench.cli import main;"
        "r = CliRunner().invoke(main, ['list']); assert r.exit_code == 0 and 'cka_cd' in r.output, r.output;"
        "bad = [m for m in sys.modules if m.startswith('cdbench.plugins.') or m in ('torch', 'mlflow', 'matplotlib')];"
        "assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_file_dropped_into_a_folder_is_a_row(use: Write) -> None:
    path = use("methods", "nothing", GOOD)
    assert discover.find("methods")["nothing"] == path
    assert discover.summary(path) == "A method that does nothing."
    assert discover.load("methods", "nothing").__name__ == "Nothing"
    assert discover.static_fields(path) == {"strength": 0.5}


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("", "is empty"),
        ("class (:", "line 1"),
        ("import cdbench.train\n" + GOOD, "imports cdbench.train"),
        ("from cdbench import evaluate\n" + GOOD, "imports cdbench.evaluate"),
        (
            "from . import helper\n" + GOOD,
            "line 1: imports a file beside it (from . import helper); a plug-in is one file",
        ),
        ("from .helper import thing\n" + GOOD, "imports a file beside it"),
        ("import broken\n" + GOOD, "imports a file beside it (broken)"),
        (GOOD + "\n@dataclass(frozen=True)\nclass Second(Nothing):\n    pass\n", "found Nothing, Second"),
        ("x = 1\n", "exactly one concrete Method, found none"),
        (GOOD.replace("@dataclass(frozen=True)", "@dataclass"), "must be a frozen dataclass"),
        (GOOD.replace("strength: float = 0.5", "strength: float"), "field 'strength' of Nothing needs a default"),
        ("1 / 0\n", "cannot be imported: ZeroDivisionError"),
        ("from cdbench.api import NoSuchThing\n", "cannot be imported"),
    ],
)
def test_a_broken_plugin_is_an_error_that_names_the_file(use: Write, source: str, complaint: str) -> None:
    path = use("methods", "broken", source)
    with pytest.raises(UserError, match="broken.py") as caught:
        discover.load("methods", "broken")
    assert complaint in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_broken_plugin_is_shown_when_listing_not_hidden(use: Write) -> None:
    path = use("methods", "broken", "class (:")
    assert discover.summary(path).startswith("BROKEN")


def test_two_files_of_one_name_are_an_error(use: Write) -> None:
    use("methods", "kl", GOOD)
    with pytest.raises(UserError, match=r"two methods are called 'kl'.*rename"):
        discover.find("methods")


def test_the_name_of_the_reference_row_cannot_be_taken(use: Write) -> None:
    use("methods", "teacher", GOOD)
    with pytest.raises(UserError, match="teacher"):
        discover.find("methods")


def test_a_missing_plugin_folder_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CDBENCH_PLUGINS", str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="nowhere"):
        discover.find("tasks")


def test_an_unknown_plugin_is_answered_with_those_there_are() -> None:
    with pytest.raises(UserError, match="unknown method 'cka'; there are: atp_cd, atp_random_pairs, "):
        discover.locate("methods", "cka")


def test_hyperparameters_are_checked_by_name_and_type() -> None:
    with pytest.raises(UserError, match="no hyperparameter 'lambda'; it has: alignment_weight"):
        discover.make_method("cka_cd", {"lambda": 0.1})
    with pytest.raises(UserError, match="alignment_weight = 'much'"):
        discover.make_method("cka_cd", {"alignment_weight": "much"})
    with pytest.raises(UserError, match="reduction = 'max'"):
        discover.make_method("cka_cd", {"reduction": "max"})
    assert discover.make_method("cka_cd", {"alignment_weight": 0.05}).alignment_weight == 0.05  # type: ignore[attr-defined]


def distribution(site: Path, target: str, *, with_files: bool = True) -> dict[str, str]:
    """Lays out an installed package `circuit_ideas` that names `target` as its plug-ins; returns the environment to find it."""
    info = site / "circuit_ideas-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: circuit-ideas\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[cdbench.plugins]\nideas = {target}\n")
    package = site / "circuit_ideas"
    (package / "bench" / "methods").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('finding imports nothing')\n")
    if with_files:
        (package / "bench" / "methods" / "from_a_package.py").write_text(GOOD)
    return {"PYTHONPATH": str(site)}


def test_an_installed_package_brings_its_methods_by_entry_point(tmp_path: Path, cli: Cli) -> None:
    env = distribution(tmp_path / "site", "circuit_ideas.bench")
    listed = cli("list", **env)
    assert listed.returncode == 0, listed.stderr
    assert "from_a_package" in listed.stdout and "A method that does nothing." in listed.stdout
    dry = cli("run", "from_a_package", "-n", **env)
    assert dry.returncode == 0 and "from_a_package" in dry.stdout
    loaded = subprocess.run(
        [sys.executable, "-c", "from cdbench import discover; print(discover.load('methods', 'from_a_package').__name__)"],
        env=os.environ | env, capture_output=True, text=True,
    )  # fmt: skip
    assert loaded.stdout == "Nothing\n", loaded.stderr
    # Where only named folders are searched, as in a container, it is not there.
    assert "from_a_package" not in cli("list", CDBENCH_PLUGINS_ONLY="1", **env).stdout
    # Named twice, found once.
    both = cli("list", CDBENCH_PLUGINS=str(tmp_path / "site" / "circuit_ideas" / "bench"), **env)
    assert both.returncode == 0 and both.stdout.count("from_a_package") == 1


@pytest.mark.parametrize("target", ["no_such_package", "circuit_ideas.nowhere"])
def test_an_entry_point_that_leads_nowhere_is_an_error_that_names_it(target: str, tmp_path: Path, cli: Cli) -> None:
    done = cli("list", **distribution(tmp_path / "site", target))
    assert done.returncode == 2 and "entry point 'ideas' names" in done.stderr and "Traceback" not in done.stderr


def test_the_fields_of_a_loss_term_in_the_same_file_are_not_the_methods(use: Write) -> None:
    source = GOOD.replace(
        "@dataclass(frozen=True)\nclass Nothing(Method):",
        "@dataclass(frozen=True)\nclass Own:\n    name: str = 'own'\n\n"
        "class Base(Method):\n    width: int = 3\n\n@dataclass(frozen=True)\nclass Nothing(Base):",
    )
    assert discover.static_fields(use("methods", "nothing", source)) == {"width": 3, "strength": 0.5}


def test_a_tasks_splits_depend_on_its_own_file_and_those_of_its_length_shift(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A task that somebody adds changes no finished run of another."""
    own = discover.task_files("addition_3digit")
    assert set(own) == {"addition_3digit", "addition_4digit", "addition_5digit"}
    assert set(discover.task_files("addition_5digit", ("subtraction_2digit",))) == {
        "addition_5digit",
        "subtraction_2digit",
    }
    (tmp_path / "tasks").mkdir()
    text = discover.find("tasks")["addition_5digit"].read_text()
    (tmp_path / "tasks" / "another.py").write_text(text)
    made = 'names = ["addition_5digit"]\n\n\n'
    (tmp_path / "tasks" / "computed.py").write_text(
        text.replace("class Addition5Digit(Task):", f"{made}class A(Task):\n    length_shift = tuple(names)")
    )
    monkeypatch.setenv("CDBENCH_PLUGINS", str(tmp_path))
    assert discover.task_files("addition_3digit") == own
    # What cannot be read from the source may be any of them.
    assert discover.task_files("computed") == discover.find("tasks")
