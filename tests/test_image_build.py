"""docker/cpu.Dockerfile built for real, and a study in it.

Where no registry can be reached the base is bootstrapped from the machine's own Debian mirror, and the wheels come from pip's
configured sources, through an image of wheels: the two build arguments that are there for such machines.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cdbench.containers import images
from cdbench.containers.images import Image
from conftest import Cli, World
from engine import bootstrapped, engine_or_skip

BASE, WHEELS = "cdbench-test/base:bookworm", "cdbench-test/wheels:1"
PACKAGES = "ca-certificates,python3.11,python3.11-venv,libgomp1"
pytestmark = [pytest.mark.docker, pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Image]:
    engine = engine_or_skip()
    folder = tmp_path_factory.mktemp("image")
    bootstrapped(engine, BASE, PACKAGES, folder)
    (folder / "wheels").mkdir()
    for lock in ("requirements.cpu-torch.txt", "image.cpu.txt"):
        pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--require-hashes", "-d", folder / "wheels"]
        subprocess.run([*pip, "-r", images.folder() / lock], check=True, capture_output=True)
    subprocess.run(["tar", "-C", "wheels", "-cf", "wheels.tar", "."], cwd=folder, check=True)
    engine.api.import_image_from_file(str(folder / "wheels.tar"), *WHEELS.split(":"))
    (folder / "pip.conf").write_text("[global]\nno-index = true\n# hunter2\n")
    yield build(folder)
    for name in (BASE, WHEELS):
        engine.images.remove(name, force=True)


def build(folder: Path) -> Image:
    command = [sys.executable, "-m", "cdbench", "build", "--base", BASE, "--wheels", WHEELS, "--json"]
    command += ["--secret", f"id=pip_conf,src={folder / 'pip.conf'}"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return Image(**json.loads(done.stdout))


def test_the_image_says_what_it_was_built_from(built: Image) -> None:
    engine = engine_or_skip()
    assert built.base == f"{BASE}@{engine.images.get(BASE).id}"
    assert built.lock == images.lock_digest("cpu") and built.recipe == images.recipe("cpu")
    assert built.environment is None
    config = engine.images.get(built.tag).attrs["Config"]
    assert config["User"] == "10001:10001"
    assert images.find(engine, ("cpu",), None).recipe == built.recipe
    text = json.dumps([engine.images.get(built.tag).attrs, engine.images.get(built.tag).history()])
    assert "hunter2" not in text and "no-index" not in text


def test_a_study_in_the_built_image_has_the_numbers_of_one_outside(
    built: Image, cli: Cli, world: World, tmp_path: Path
) -> None:
    found = []
    for name, options in (("inside", ["--runner", "docker", "--image", built.tag]), ("outside", [])):
        (tmp_path / name).mkdir()
        places = ["--profile", world.profile_file, "--runs", tmp_path / name, "--store", world.store]
        done = cli("run", "cka_cd", *places, *options)
        assert done.returncode == 0, done.stderr
        found.append(
            {r.parent.name: json.loads(r.read_text()) for r in (tmp_path / name).glob("records/*/record.json")}
        )
    inside, outside = found
    assert inside.keys() == outside.keys() and len(inside) == 2
    for run_id, record in inside.items():
        assert record["metrics"] == outside[run_id]["metrics"]
        assert record["artefacts"].get("student.safetensors") == outside[run_id]["artefacts"].get("student.safetensors")
        assert record["environment"]["container"]["image_id"] == built.id
