"""Text that somebody hostile wrote: in no format does it become more than text."""

import csv
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from browser import browser, needs_browser, tab
from cdbench.report.escaping import csv_cell, markdown_cell, tex, tex_comment
from conftest import Cli, World

EVIL = r"""<script>window.hacked=1</script><img src=x onerror="window.hacked=1"> | `b` [a](javascript:x) # h
| \input{/etc/passwd} & 100 % $x$ _a_ ^b {c} ~ =HYPERLINK("x")"""
METHOD = '''"""Says nasty things: {doc}"""

from dataclasses import dataclass

from cdbench.api import Method, Outcome, Problem


@dataclass(frozen=True)
class Evil(Method):
    label: str = {label!r}

    def run(self, problem: Problem) -> Outcome:
        {act}
        return Outcome(extras={{"problem_classes": {{"operands": {label!r}, "classes": "1"}}, "k_selection": {label!r}}})
'''
STUDY = """title = {evil}
description = {evil}
profile = "tiny"
tasks = ["addition_2digit"]
methods = ["base", "evil", "evil_fails"]
seeds = [0, 1]
"""


@pytest.fixture
def report(world: World, tmp_path: Path, cli: Cli) -> Path:
    import json

    folder = tmp_path / "plugins" / "methods"
    folder.mkdir(parents=True)
    doc = EVIL.replace("\\", "\\\\").replace('"', "'")
    (folder / "evil.py").write_text(METHOD.format(doc=doc, label=EVIL, act='problem.log(1, **{"loss/total": 1.0})'))
    (folder / "evil_fails.py").write_text(METHOD.format(doc=doc, label=EVIL, act=f"raise RuntimeError({EVIL!r})"))
    (tmp_path / "evil_study.toml").write_text(STUDY.format(evil=json.dumps(EVIL)))
    where = ["--profile", world.profile_file, "--store", world.store, "--runs", tmp_path / "runs"]
    done = cli("reproduce", "evil_study.toml", *where, CDBENCH_PLUGINS=str(tmp_path / "plugins"))
    assert done.returncode == 1, done.stderr  # two runs failed, as they should
    assert "Traceback" not in done.stderr
    return next((tmp_path / "runs").glob("evil_study*/report"))


@needs_browser
def test_no_format_of_a_report_does_what_a_hostile_text_says(report: Path) -> None:
    with browser() as started, tab(started) as opened:
        opened.page.goto((report / "index.html").as_uri())
        assert opened.page.evaluate("window.hacked") is None
        assert opened.page.locator("img").count() == 0 and opened.page.locator("script").count() == 0
        assert opened.said == [] and opened.outside == []
        assert "<script>window.hacked=1</script>" in opened.page.locator("h1").inner_text()  # shown as what it is
        assert opened.page.locator("#failures + ul li").count() == 2
    markdown = (report / "report.md").read_text()
    assert require_plain(markdown) == set()
    assert "<script>" not in markdown and "[a](javascript" not in markdown
    for block in re.findall(r"(?:^\|.*\n)+", markdown, flags=re.MULTILINE):
        bars = {line.replace(r"\|", "").count("|") for line in block.splitlines()}
        assert len(bars) == 1, block  # no cell was opened by the text
    for name in ("table1.tex", "claims.tex"):
        text = re.sub(r"(?<!\\)%.*", "", (report / name).read_text())  # comments are printable ASCII on their line
        assert r"\input" not in text.replace(r"\textbackslash{}input", "") and "^^" not in text
    for file in report.glob("*.csv"):
        with file.open() as opened_file:
            for row in csv.reader(opened_file):
                assert not any(cell.startswith(("=", "+", "@")) for cell in row)


def test_no_leaderboard_does_what_a_hostile_text_says(report: Path, cli: Cli, world: World, tmp_path: Path) -> None:
    runs, plugins = report.parents[1], {"CDBENCH_PLUGINS": str(tmp_path / "plugins")}
    where = ["--profile", world.profile_file, "--store", world.store, "--runs", runs]
    done = cli("run", "evil", "--set", f"method.label={EVIL}\x1b[31m", *where, **plugins)
    assert done.returncode == 0, done.stderr
    assert cli("leaderboard", "write", "--runs", runs, "--into", "LB.md").returncode == 0
    text = (tmp_path / "LB.md").read_text()
    links = require_plain(text)
    assert "label" in text and links and all(re.fullmatch("#run-[0-9a-f]{16}", link) for link in links)
    assert cli("leaderboard", "check", "LB.md", "--runs", runs).returncode == 0
    for how in ((), ("--long",), ("--json",)):
        shown = cli("leaderboard", "show", "--runs", runs, *how)
        assert shown.returncode == 0, shown.stderr
        assert "hacked" in shown.stdout and all(c.isprintable() or c == "\n" for c in shown.stdout)


def require_plain(markdown: str) -> set[str]:
    """Read as CommonMark with tables, by somebody else: no HTML, no picture; says where links lead to."""
    targets = set()
    for token in MarkdownIt("commonmark").enable("table").parse(markdown):
        for each in (token, *(token.children or ())):
            assert each.type not in ("html_block", "html_inline", "image"), each
            if each.type == "link_open":
                targets.add(str(each.attrs["href"]).split("/")[0])
    return targets


@given(st.text())
def test_a_markdown_cell_of_any_text_is_text_to_commonmark(text: str) -> None:
    assert require_plain(f"| a | b |\n|---|---|\n| {markdown_cell(text)} | x |\n") == set()


def test_a_markdown_cell_makes_no_forge_link_or_mention_anybody() -> None:
    """Beyond CommonMark forges link addresses without brackets, and tell whoever is named."""
    made = markdown_cell("http://a.example www.b.example me@c.example @somebody")
    assert not re.search(r"://|www\.|@[a-z]", made) and made.replace("\u2060", "").endswith("@somebody")


@given(st.text())
def test_latex_of_any_text_is_balanced_and_holds_no_command_of_the_texts_own(text: str) -> None:
    made = tex(text)
    bare = re.sub(r"\\([{}$&#%_|]|textbackslash\{\}|textascii(circum|tilde)\{\}|ldots\{\}|[a-zA-Z]+)", "", made)
    assert not re.search(r"[\\&#%_^\n]", bare)
    assert bare.count("{") == bare.count("}") and bare.count("$") % 2 == 0
    commands = set(re.findall(r"\\([a-zA-Z]+)", made))
    assert commands <= {
        "textbackslash", "textasciicircum", "textasciitilde", "ldots", "pm", "times", "cdot", "to", "leq", "geq",
        "lambda", "Sigma", "nabla",
    }  # fmt: skip
    comment = tex_comment(text)
    assert comment.isprintable() and comment.isascii() and "^" not in comment


@given(st.text())
def test_a_markdown_cell_of_any_text_is_one_line_without_markup(text: str) -> None:
    cell = markdown_cell(text)
    bare = re.sub(r"\\[\\|`\[\]!*_~#]", "", cell)
    assert not re.search(r"[\n|`\[\]<>*]", bare)


@given(st.text())
def test_a_csv_cell_of_any_text_is_no_formula(text: str) -> None:
    assert not str(csv_cell(text)).startswith(("=", "+", "-", "@", "\t", "\r"))
