"""docker/cpu.Dockerfile built for real, and a study in it; docker/cuda.Dockerfile too, where CDBENCH_BUILD_CUDA is set.

Where no registry can be reached the base is bootstrapped from the machine's own Debian mirror, and the wheels come from pip's
configured sources, through an image of wheels: the two build arguments that are there for such machines.
"""

import json
import os
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
LOCKS = {"cpu": ("requirements.cpu-torch.txt", "image.cpu.txt"), "cuda": ("image.cuda.txt",)}
PACKAGES = "ca-certificates,python3.11,python3.11-venv,libgomp1"
pytestmark = [pytest.mark.docker, pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module", params=LOCKS)
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Image]:
    engine, flavour = engine_or_skip(), request.param
    if flavour == "cuda" and not os.environ.get("CDBENCH_BUILD_CUDA"):
        pytest.skip("3 GB of wheels and 10 GB of disk: only with CDBENCH_BUILD_CUDA=1")
    folder = tmp_path_factory.mktemp("image")
    bootstrapped(engine, BASE, PACKAGES, folder)
    (folder / "wheels").mkdir()
    for lock in LOCKS[flavour]:
        pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--require-hashes", "-d", folder / "wheels"]
        subprocess.run([*pip, "-r", images.folder() / lock], check=True, capture_output=True)
    subprocess.run(["tar", "-C", "wheels", "-cf", "wheels.tar", "."], cwd=folder, check=True)
    engine.api.import_image_from_file(str(folder / "wheels.tar"), *WHEELS.split(":"))
    (folder / "pip.conf").write_text("[global]\nno-index = true\n# hunter2\n")
    image = build(folder, flavour)
    yield image
    # Not left behind: whoever runs a study next would have it in this one.
    for name in (image.tag, BASE, WHEELS):
        engine.images.remove(name, force=True)


def build(folder: Path, flavour: str) -> Image:
    command = [sys.executable, "-m", "cdbench", "build", "--base", BASE, "--wheels", WHEELS, "--json"]
    command += ["--cuda", "--python", BASE] if flavour == "cuda" else []
    command += ["--secret", f"id=pip_conf,src={folder / 'pip.conf'}"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return Image(**json.loads(done.stdout))


def test_the_image_says_what_it_was_built_from(built: Image) -> None:
    engine = engine_or_skip()
    base = f"{BASE}@{engine.images.get(BASE).id}"
    assert built.base == (base if built.flavour == "cpu" else f"{base} with the Python of {base}")
    assert built.lock == images.lock_digest(built.flavour) and built.recipe == images.recipe(built.flavour)
    assert built.environment is None
    config = engine.images.get(built.tag).attrs["Config"]
    assert config["User"] == "10001:10001"
    assert images.find(engine, (built.flavour,), None).recipe == built.recipe
    text = json.dumps([engine.images.get(built.tag).attrs, engine.images.get(built.tag).history()])
    assert "hunter2" not in text and "no-index" not in text


def test_packages_that_the_base_lacks_come_from_the_mirror_that_is_named(built: Image, tmp_path: Path) -> None:
    """Nobody listens there; apt says where it looked."""
    bare = "cdbench-test/bare:bookworm"
    (tmp_path / "Dockerfile").write_text(
        f"FROM {BASE}\nRUN rm -rf /usr/bin/python3.11 /etc/apt/sources.list.d/* "
        "&& echo 'deb http://deb.debian.org/debian bookworm main' > /etc/apt/sources.list\n"
    )
    engine_or_skip().images.build(path=str(tmp_path), tag=bare, rm=True)
    command = [sys.executable, "-m", "cdbench", "build", "--base", bare, "--mirror", "http://127.0.0.1:9"]
    command += ["--cuda", "--python", bare] if built.flavour == "cuda" else ["--cpu"]
    done = subprocess.run(command, capture_output=True, text=True)
    engine_or_skip().images.remove(bare, force=True)
    assert done.returncode == 1, done.stderr[-3000:]
    assert "http://127.0.0.1:9/debian" in done.stderr and "deb.debian.org" not in done.stderr
    assert "its words stand above" in done.stderr


def test_torch_in_it_is_the_build_of_its_flavour(built: Image) -> None:
    ask = "import torch; print(torch.version.cuda)"
    told = engine_or_skip().containers.run(built.tag, [built.python, "-c", ask], remove=True, network_mode="none")
    assert told.decode().strip() == {"cpu": "None", "cuda": "13.0"}[built.flavour]


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
