"""`cdbench check cka` as a user's CI runs it: exit codes, counterexample, cause, JSON, JUnit."""

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from cdbench.similarity.conformance.laws import LAWS
from cdbench.similarity.conformance.libraries import LIBRARIES
from conftest import Cli

QUICK = ("--only", "symmetry", "--only", "translation", "--only", "refusals")
UNCENTRED = """
import torch
def linear_cka(x, y):
    k, m = x @ x.T, y @ y.T
    return (k * m).sum() / (k.norm() * m.norm())
class Stream:
    def __init__(self):
        self.rows = []
    def update(self, x, y):
        self.rows.append((x, y))
    def compute(self, debiased=False):
        from cdbench.similarity import linear_cka
        return linear_cka(*(torch.cat(side) for side in zip(*self.rows)), debiased=debiased)
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "mymetrics.py").write_text(UNCENTRED)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_ours_passes(cli: Cli, here: Path) -> None:
    done = cli("check", "cka", *QUICK)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    for name in ("linear_cka", "cka_matrix", "StreamingCKA"):
        assert f"cdbench.similarity:{name}" in done.stdout
    assert "0 broken" in done.stdout and "BROKEN" not in done.stdout


def test_theirs_that_breaks_is_told_which_law_where_and_why(cli: Cli, here: Path) -> None:
    done = cli("check", "cka", "--impl", "mymetrics:linear_cka", *QUICK, "--junit", "cka.xml")
    assert done.returncode == 3
    assert "BROKEN  translation" in done.stdout and "held    symmetry" in done.stdout
    assert "smallest: n=5, d1=1" in done.stdout
    assert "its values are those of a known mistake" in done.stdout
    assert "subtract the mean of each column" in done.stdout
    assert "mymetrics:linear_cka breaks 2 laws: translation, refusals" in done.stderr
    assert "Traceback" not in done.stderr
    suite = ElementTree.parse(here / "cka.xml").getroot()[0]
    assert suite.get("tests") == str(len(suite)) and int(suite.get("failures", 0)) > 0
    assert any("subtract the mean" in (case[0].text or "") for case in suite if len(case) and case[0].tag == "failure")
    # It does not claim to be debiased, so that half is counted as skipped, with the reason.
    skipped = [case[0].get("message") for case in suite if len(case) and case[0].tag == "skipped"]
    assert set(skipped) == {"the implementation does not claim to be debiased"}
    assert suite.get("skipped") == str(len(skipped))


def test_json_holds_everything(cli: Cli, here: Path) -> None:
    done = cli("check", "cka", "--impl", "mymetrics:linear_cka", *QUICK, "--json")
    assert done.returncode == 3
    (report,) = json.loads(done.stdout)
    (diagnosis,) = report["diagnoses"]
    assert report["holds"] is False and diagnosis["recognised"] is True and diagnosis["estimator"] == "biased"
    assert diagnosis["causes"][0]["cause"] == "not_centred"
    broken = [f for f in report["findings"] if f["verdict"] == "broken"]
    assert {f["law"] for f in broken} == {"translation", "refusals"}
    assert all(f["seen"] and f["causes"] for f in broken)


def test_what_an_implementation_prints_or_raises_spoils_neither_json_nor_junit(cli: Cli, here: Path) -> None:
    (here / "loud.py").write_text(
        "print('imported')\ndef f(x, y):\n    print('called')\n    raise RuntimeError('\\x1b[31mred\\x00')\n"
        "def leaves(x, y):\n    raise SystemExit(0)\n"
    )
    done = cli("check", "cka", "--impl", "loud:f", "--only", "symmetry", "--json", "--junit", "cka.xml")
    assert done.returncode == 3
    assert json.loads(done.stdout)[0]["holds"] is False
    assert "imported" in done.stderr
    ElementTree.parse(here / "cka.xml")
    assert cli("check", "cka", "--impl", "loud:leaves", "--only", "refusals").returncode == 3


def test_both_names_of_the_switch_are_known_and_the_estimators_are_told(cli: Cli, here: Path) -> None:
    (here / "named.py").write_text(
        "from cdbench.similarity import linear_cka\n"
        "def f(x, y, unbiased=False):\n    return linear_cka(x, y, debiased=unbiased)\n"
        "class Stream:\n    rows = None\n    def update(self, x, y):\n"
        "        import torch\n"
        "        self.rows = (x, y) if self.rows is None else tuple(map(torch.cat, zip(self.rows, (x, y))))\n"
        "    def compute(self, debiased=False):\n        return linear_cka(*self.rows, debiased=debiased)\n"
    )
    done = cli("check", "cka", "--impl", "named:f", "--only", "definition")
    assert done.returncode == 0 and "tested as biased and debiased" in done.stdout
    done = cli("check", "cka", "--impl", "named:Stream", "--only", "definition", "--estimator", "debiased")
    assert done.returncode == 0 and "named:Stream, tested as debiased" in done.stdout
    done = cli("check", "cka", "--impl", "cdbench.similarity:StreamingCKA", "--only", "definition")
    assert done.returncode == 0, done.stdout


def test_what_is_skipped_is_counted_and_the_libraries_are_asked_all_the_same(cli: Cli, here: Path) -> None:
    laws = [law.name for law in LAWS if law.name != "symmetry"]
    skipped = [word for name in laws for word in ("--skip", name)]
    done = cli("check", "cka", "--impl", "cdbench.similarity:linear_cka", *skipped, "--json")
    assert done.returncode == 0, done.stderr
    (report,) = json.loads(done.stdout)
    out = {f["law"] for f in report["findings"] if f["seen"] == "left out by --skip"}
    assert out == set(laws)
    held = {f["law"] for f in report["findings"] if f["verdict"] == "held"}
    assert held == {"symmetry", *(f"agrees with {library.name}" for library in LIBRARIES)}


def test_a_class_that_is_fed_batches_is_tested_too(cli: Cli, here: Path) -> None:
    laws = ("--only", "batch_boundaries", "--only", "definition", "--only", "gradient")
    done = cli("check", "cka", "--impl", "mymetrics:Stream", *laws)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "held    batch_boundaries" in done.stdout
    assert "skipped gradient" in done.stdout and "not for a stream" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--impl", "mymetrics"), "write package.module:function"),
        (("--impl", "mymetrics:nothing"), "cannot import it"),
        (("--impl", "nowhere:f"), "No module named 'nowhere'"),
        (("--only", "nonsense"), "no law is called 'nonsense'; there are definition"),
        (("--only", "symmetry", "--skip", "symmetry"), "leave no law"),
        (("--impl", "mymetrics:linear_cka", "--only", "gradient", "--no-gradient"), "nothing was tested"),
        ((*QUICK[:2], "--junit", "nowhere/cka.xml"), "cannot write it"),
        (("--examples", "0"), "0"),
    ],
)
def test_wrong_use_is_told_and_exits_2(cli: Cli, here: Path, arguments: tuple[str, ...], complaint: str) -> None:
    done = cli("check", "cka", *arguments)
    assert done.returncode == 2
    assert complaint in done.stderr and "Traceback" not in done.stderr


def test_the_laws_are_listed(cli: Cli) -> None:
    done = cli("check", "cka", "--list")
    assert done.returncode == 0
    assert [line.split()[0] for line in done.stdout.splitlines()] == [law.name for law in LAWS]


def test_the_docs_say_how_many_laws_there_are_and_show_the_drawn_numbers() -> None:
    docs = Path(__file__).parents[1] / "docs"
    text = (docs / "cka.md").read_text()
    assert f"{len(LAWS)} laws" in text
    rows = [line.split(",") for line in (docs / "cka-bias.csv").read_text().splitlines()]
    biased = {row[0]: float(row[rows[0].index("biased")]) for row in rows[1:]}
    assert f"says {biased['32']:.2f}" in text and f"still\nsays {biased['1000']:.2f}" in text
    assert f"{biased['32']:.2f} at n = 32" in (docs / "cka-bias.svg").read_text()


@pytest.mark.parametrize(
    ("returned", "told"),
    [
        ("torch.tensor(0.5, device='meta')", "is no number"),
        ("torch.tensor(0.5).to_sparse()", "is no number"),
        ("10 ** 400", "is no number"),
        ("torch.tensor(0.5 + 5j)", "Tensor of shape (), complex64"),
        ("torch.tensor(True)", "Tensor of shape (), bool"),
        ("True", "returned bool"),
    ],
)
def test_what_is_no_number_breaks_a_law_and_not_the_battery(cli: Cli, here: Path, returned: str, told: str) -> None:
    (here / "odd.py").write_text(f"import torch\ndef f(x, y):\n    return {returned}\n")
    done = cli("check", "cka", "--impl", "odd:f", "--only", "symmetry", "--junit", "cka.xml")
    assert done.returncode == 3, done.stderr
    assert told in done.stdout and "Traceback" not in done.stderr
    assert ElementTree.parse(here / "cka.xml").getroot()[0].get("failures") != "0"


def test_a_battery_that_dies_leaves_an_error_and_no_empty_file(cli: Cli, here: Path) -> None:
    (here / "deadly.py").write_text("import os\ndef f(x, y):\n    os._exit(9)\n")
    assert cli("check", "cka", "--impl", "deadly:f", "--only", "symmetry", "--junit", "cka.xml").returncode == 9
    suite = ElementTree.parse(here / "cka.xml").getroot()[0]
    assert suite.get("errors") == "1" and "did not come to its end" in (suite[0][0].get("message") or "")


def test_who_changes_the_input_is_judged_on_what_was_given(cli: Cli, here: Path) -> None:
    (here / "changes.py").write_text(
        "from cdbench.similarity import linear_cka\n"
        "def f(x, y):\n    value = linear_cka(x, y)\n    x.zero_()\n    return value\n"
    )
    laws = ("--only", "definition", "--only", "symmetry", "--only", "determinism")
    done = cli("check", "cka", "--impl", "changes:f", *laws)
    assert done.returncode == 3, done.stderr
    assert "held    definition" in done.stdout and "the call changed its input" in done.stdout
    assert "the input is changed in place" in done.stdout


HOSTILE = r"""
import torch
from cdbench.similarity import linear_cka as right
class Mute(Exception):
    def __str__(self):
        raise IndexError("no words")
class Shapeless:
    def __repr__(self):
        raise IndexError("no form")
def half_a_letter(x, y):
    raise ValueError("\ud800 \ufffe \x85 \x00 <&>")
def mute(x, y):
    raise Mute
def shapeless(x, y):
    return Shapeless()
def in_place(x, y):
    x -= x.mean(0)
    y -= y.mean(0)
    return right(x, y)
def fussy(x, y):
    if x.requires_grad:
        raise RuntimeError("no luck today")
    raise RuntimeError("normalised_shape must be given")
def asked(x, y, debiased):
    return right(x, y, debiased=debiased)
def asked_by_name(x, y, *, unbiased):
    return right(x, y, debiased=unbiased)
"""


@pytest.mark.parametrize("name", ["half_a_letter", "mute", "shapeless"])
def test_whatever_an_implementation_says_every_form_of_the_report_holds_it(cli: Cli, here: Path, name: str) -> None:
    (here / "hostile.py").write_text(HOSTILE)
    words = ("check", "cka", "--impl", f"hostile:{name}", *QUICK)
    done = cli(*words, "--junit", "cka.xml")
    assert done.returncode == 3 and "Traceback" not in done.stderr, done.stderr
    suite = ElementTree.parse(here / "cka.xml").getroot()[0]
    assert int(suite.get("failures", 0)) > 0 and suite.get("errors") in (None, "0")
    assert json.loads(cli(*words, "--json").stdout)[0]["findings"]


def test_what_an_exception_is_due_to_is_guessed_from_its_words_alone(cli: Cli, here: Path) -> None:
    (here / "hostile.py").write_text(HOSTILE)
    only = ("--only", "gradient", "--only", "determinism")

    def causes(name: str, law: str) -> set[str]:
        (report,) = json.loads(cli("check", "cka", "--impl", f"hostile:{name}", *only, "--json").stdout)
        return {cause for found in report["findings"] if found["law"] == law for cause in found.get("causes", [])}

    assert causes("in_place", "gradient") == {"in_place"}
    assert "detached" not in causes("fussy", "gradient")


@pytest.mark.parametrize("name", ["asked", "asked_by_name"])
def test_a_switch_without_a_default_is_given(cli: Cli, here: Path, name: str) -> None:
    (here / "hostile.py").write_text(HOSTILE)
    done = cli("check", "cka", "--impl", f"hostile:{name}", *QUICK)
    assert done.returncode == 0, done.stdout + done.stderr
