"""A study as one file: read by the library of the standard, checked by sha256sum, worked on by our own commands."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from rocrate.rocrate import ROCrate

from cdbench import bundle, record
from conftest import Cli, World

STUDY = """
title = "Two rows"
description = "For a bundle."
profile = "{profile}"
methods = ["base", "finetune"]
tasks = ["addition_2digit"]
seeds = [0]
"""


@pytest.fixture(scope="module")
def runs(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("bundle")
    (root / "two_rows.toml").write_text(STUDY.format(profile=world.profile_file))
    (root / "runs").mkdir()
    command = [sys.executable, "-m", "cdbench", "reproduce", "two_rows.toml", "--store", str(world.store)]
    done = subprocess.run(command, cwd=root, env=os.environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return root / "runs"


def unpacked(file: Path, target: Path) -> Path:
    with zipfile.ZipFile(file) as archive:
        archive.extractall(target)
    return target


def test_a_bundle_can_be_checked_and_worked_on_without_us(runs: Path, cli: Cli, tmp_path: Path) -> None:
    done = cli("bundle", "two_rows", "--runs", runs, "--json")
    assert done.returncode == 0, done.stderr
    crate = unpacked(tmp_path / "two_rows.crate.zip", tmp_path / "crate")
    told = json.loads(done.stdout)
    assert told["sha256"] == hashlib.sha256((tmp_path / "two_rows.crate.zip").read_bytes()).hexdigest()
    assert sorted(told["entries"]) == sorted(str(p.relative_to(crate)) for p in crate.rglob("*") if p.is_file())
    checked = subprocess.run(
        ["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=crate, capture_output=True, text=True
    )
    assert checked.returncode == 0, checked.stdout
    (run,) = [
        r for r in crate.glob("records/*/record.json") if json.loads(r.read_text())["spec"]["method"] == "finetune"
    ]
    logs = {path.name for path in (runs / "records" / run.parent.name).glob("*.log")}
    assert logs and logs == {path.name for path in run.parent.glob("*.log")}
    assert cli("score", run.parent.name, "--runs", crate).returncode == 0
    shutil.rmtree(crate / "two_rows" / "report")
    assert cli("report", "two_rows", "--runs", crate).returncode == 0
    assert (crate / "two_rows" / "report" / "index.html").is_file()


def test_the_library_of_the_standard_reads_it(runs: Path, cli: Cli, tmp_path: Path) -> None:
    assert cli("bundle", "two_rows", "--runs", runs, "-o", "x.zip").returncode == 0
    folder = unpacked(tmp_path / "x.zip", tmp_path / "x")
    crate = ROCrate(folder)
    assert crate.name == "Two rows"
    actions = crate.get_by_type("CreateAction")
    assert {a["name"].split(" ")[0] for a in actions} == {"teacher", "base", "finetune"}
    for action in actions:
        assert action["instrument"].id == "#cdbench"
        assert all((folder / entity.id).is_file() for entity in action["result"])
    listed = {entity.id for entity in crate.get_by_type("File")}
    assert {
        "code/cdbench/plugins/docker/cpu.Dockerfile",
        "code/cdbench/plugins/docker/image.cpu.txt",
        "code/cdbench/plugins/methods/finetune.py",
        "two_rows/report/report.md",
    } <= listed
    assert not any(name.endswith("methods/kl.py") for name in listed)
    for entity in crate.get_by_type("File"):
        done = subprocess.run(["sha256sum", folder / entity.id], capture_output=True, text=True)
        assert done.stdout.split()[0] == entity["sha256"]


def test_the_packed_code_is_the_code_that_the_records_name(runs: Path, cli: Cli, world: World, tmp_path: Path) -> None:
    assert cli("bundle", "two_rows", "--runs", runs, "-o", "x.zip", "--no-weights").returncode == 0
    folder = unpacked(tmp_path / "x.zip", tmp_path / "x")
    assert not list(folder.rglob("*.safetensors"))
    assert "cdbench verify" not in (folder / "README.md").read_text()  # there is nothing to verify
    code = (
        "import json, sys\nfrom pathlib import Path\nfrom cdbench.config import RunSpec\nfrom cdbench.provenance import code_of\n"
        "r = json.loads(Path(sys.argv[1]).read_text())\nassert 'crate-code' in __import__('cdbench').__file__\n"
        "assert code_of(RunSpec.model_validate(r['spec'])).digest == r['code']['digest']"
    )
    shutil.move(folder / "code", tmp_path / "crate-code")
    for path in folder.glob("records/*/record.json"):
        env = os.environ | {"PYTHONPATH": str(tmp_path / "crate-code")}
        done = subprocess.run([sys.executable, "-c", code, path], env=env, capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 0, done.stderr


def test_the_commands_of_its_readme_repeat_it_with_the_packed_code(
    runs: Path, cli: Cli, world: World, tmp_path: Path
) -> None:
    assert cli("bundle", "two_rows", "--runs", runs, "-o", "x.zip").returncode == 0
    folder = unpacked(tmp_path / "x.zip", tmp_path / "x")
    # An environment that matches the lock, so that nothing is downloaded; all else is done as the README says.
    locks = sorted((folder / "code/cdbench/plugins/docker").glob("requirements.*.txt"))
    wanted = hashlib.sha256(b"".join(lock.read_bytes() for lock in locks)).hexdigest()[:16]
    python = folder / "env" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    (folder / "env" / ".cdbench-lock").write_text(
        f"cdbench-env {'CUDA' if shutil.which('nvidia-smi') else 'CPU'} {wanted}\n"
    )
    text = (folder / "README.md").read_text()
    commands = [line.strip() for line in text.splitlines() if line.startswith("    ")]
    ours = [line for line in commands if line.startswith("env/bin/python -m cdbench")]
    assert [line.split()[3] for line in ours] == ["score", "report", "verify"]
    script = "\n".join(["set -e", *(line for line in commands if "reproduce" not in line)])
    script = script.replace("export", "rm -r two_rows/report; export")
    script += "\nenv/bin/python -c 'import cdbench; print(cdbench.__file__)'"
    done = subprocess.run(["bash", "-c", script], cwd=folder, capture_output=True, text=True, env=os.environ)
    assert done.returncode == 0, done.stdout + done.stderr
    (folder / "code" / "sitecustomize.py").write_text("print('added')")
    added = next(line for line in commands if line.startswith("comm"))
    assert not any(line.startswith("code/") for line in done.stdout.splitlines())
    found = subprocess.run(["bash", "-c", added], cwd=folder, capture_output=True, text=True).stdout.splitlines()
    assert "code/sitecustomize.py" in found
    assert "libraries only" in done.stdout and "a second run gave the same bytes" in done.stdout
    assert done.stdout.splitlines()[-1].startswith(str(folder / "code"))
    assert (folder / "two_rows" / "report" / "index.html").is_file()
    for each in ("cpu.Dockerfile", "install-env.sh", "requirements.cpu.txt"):
        assert (folder / "code" / "cdbench" / "plugins" / "docker" / each).is_file()


def test_a_run_of_a_container_is_repeated_in_an_image_by_its_tag(runs: Path) -> None:
    """Its id no engine has but the one that built it."""
    done = record.read(next(runs.glob("records/*")))
    for tag, build in (("cdbench:cpu-0123", "cdbench build "), ("cdbench:host-0123", "cdbench build --from-host ")):
        made = done.model_copy(update={"environment": {"container": {"image": tag, "image_id": "sha256:00"}}})
        told = bundle._verify(made)
        assert build in told and f"--image {tag}" in told and "sha256" not in told


def test_what_cannot_be_packed_is_said(runs: Path, cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "there.zip").write_text("")
    copy = shutil.copytree(runs, tmp_path / "copy")
    record = next(copy.glob("records/*/student.safetensors"))
    record.write_bytes(b"other")
    for words, complaint in (
        (["two_rows", "-o", "there.zip", "--runs", runs], "exists already"),
        (["three_rows", "--runs", runs], "no study 'three_rows' was run"),
        (["two_rows", "--runs", copy], "student.safetensors is missing or was altered"),
    ):
        done = cli("bundle", *words)
        assert done.returncode == 2, done.stderr
        assert complaint in done.stderr
    assert not list(tmp_path.glob(".*.partial")) and not (tmp_path / "two_rows.crate.zip").exists()
