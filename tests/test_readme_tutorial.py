"""The README's tutorial, word for word: its files, its commands, and the lines that it shows of their output."""

import os
import re
import subprocess
import sys
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"


def blocks() -> list[tuple[str, str]]:
    text = README.read_text()
    section = text[text.index("### From an idea to a row") :]
    section = section[: section.index("\n## ")]
    return re.findall(r"```(console|python)\n(.*?)```", section, flags=re.DOTALL)


def test_the_tutorial_runs_word_for_word_from_nothing_to_a_checked_board(tmp_path: Path) -> None:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    ran = 0
    for kind, block in blocks():
        if kind == "python":
            (tmp_path / "logit_matching.py").write_text(block)
            continue
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, *shown = part.splitlines()
            done = subprocess.run(
                ["bash", "-c", command], cwd=tmp_path, env=os.environ | {"PATH": path}, capture_output=True, text=True
            )
            assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
            for line in shown:
                assert line in done.stdout, f"{command}\n{done.stdout}"
            ran += 1
    assert ran >= 8
    (report,) = (tmp_path / "runs").glob("run_logit_matching_addition_2digit*/report/index.html")
    assert "logit_matching" in report.read_text()
