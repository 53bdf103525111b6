"""The wheel holds one top-level name, and what it installs finds the same plug-ins as the checkout."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from conftest import Cli

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_an_installed_wheel_lists_what_the_checkout_lists(tmp_path: Path, cli: Cli) -> None:
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path / "dist", ROOT]
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    wheel = next((tmp_path / "dist").glob("*.whl"))
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"cdbench"}
    assert "cdbench/plugins/methods/cka_cd.py" in names
    assert "cdbench/plugins/reports/templates/report.html.j2" in names
    assert not [
        name for name in names if name.endswith("__init__.py") and "/plugins/" in name.replace("plugins/__init__", "")
    ]
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    # The wheel's copy must be what runs, not the checkout that is installed beside it.
    code = "import cdbench, sys; print(cdbench.__file__)"
    env = os.environ | {"PYTHONPATH": str(site)}
    where = subprocess.run([sys.executable, "-c", code], env=env, cwd=tmp_path, capture_output=True, text=True)
    assert where.stdout.startswith(str(site))
    installed, checkout = cli("list", "--json", PYTHONPATH=str(site)), cli("list", "--json")
    assert json.loads(installed.stdout) == json.loads(checkout.stdout)
    doctor = cli("doctor", "--json", PYTHONPATH=str(site))
    assert {f["what"]: f["state"] for f in json.loads(doctor.stdout)}["methods"] == "ok"
