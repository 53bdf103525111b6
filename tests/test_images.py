"""Images without an engine: what they are called by, and which client builds them."""

import shutil
from importlib import metadata
from pathlib import Path

import pytest

from cdbench import doctor
from cdbench.containers import engine, images
from cdbench.errors import EnvironmentLacks
from cdbench.plan import places

BUILDX = 'case "$*" in "buildx build --help") echo "--secret id=x";; *) exit 1;; esac'
BEFORE_23 = 'case "$*" in "build --help") [ "$DOCKER_BUILDKIT" = 1 ] && echo "--secret id=x";; *) exit 1;; esac'
NEITHER = 'echo "Usage: docker build"'


def client(folder: Path, script: str) -> Path:
    """A docker command of such words."""
    folder.mkdir()
    made = folder / "docker"
    made.write_text(f"#!/bin/sh\n{script}\n")
    made.chmod(0o755)
    return made


@pytest.fixture(autouse=True)
def no_client_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(engine.CLIENT, raising=False)


def test_the_first_client_with_buildkit_builds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = {
        name: client(tmp_path / name, script)
        for name, script in (("neither", NEITHER), ("old", BEFORE_23), ("new", BUILDX))
    }

    def on_path(*names: str) -> None:
        monkeypatch.setenv("PATH", ":".join([*(str(tmp_path / name) for name in names), "/usr/bin", "/bin"]))

    on_path("neither", "new", "old")
    assert engine.buildkit_command() == [str(found["new"]), "buildx", "build", "--load"]
    on_path("neither", "old", "new")
    assert engine.buildkit_command() == [str(found["old"]), "build"]
    monkeypatch.setenv(engine.CLIENT, str(found["new"]))
    assert engine.buildkit_command()[0] == str(found["new"])


def test_without_buildkit_each_client_is_named_and_what_is_wrong_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    neither = client(tmp_path / "neither", NEITHER)
    monkeypatch.setenv("PATH", f"{tmp_path / 'neither'}")
    monkeypatch.setattr(engine, "_help", lambda client, *words: "")
    with pytest.raises(EnvironmentLacks, match=f"{neither} has no BuildKit .*docker-buildx"):
        engine.buildkit_command()
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EnvironmentLacks, match="there is no docker command on PATH"):
        engine.buildkit_command()


def test_a_named_client_that_is_not_there_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(engine.CLIENT, str(tmp_path / "none"))
    with pytest.raises(EnvironmentLacks, match="none cannot be run .No such file"):
        engine.buildkit_command()
    (finding,) = [doctor._client()]
    assert (finding.state, "cannot be run" in finding.text) == ("note", True)


@pytest.mark.parametrize("flavour", ["cpu", "cuda"])
def test_an_image_is_called_by_its_dockerfile_and_lock(
    flavour: images.Flavour, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(images.folder(), tmp_path / "docker")
    monkeypatch.setattr(images, "folder", lambda: tmp_path / "docker")
    seen = {(images.recipe(flavour), images.lock_digest(flavour))}
    with (tmp_path / "docker" / f"{flavour}.Dockerfile").open("a") as file:
        file.write("# another\n")
    seen.add((images.recipe(flavour), images.lock_digest(flavour)))
    assert len({recipe for recipe, _ in seen}) == 2
    assert len({lock for _, lock in seen}) == 1
    with (tmp_path / "docker" / f"image.{flavour}.txt").open("a") as file:
        file.write("# another\n")
    assert images.recipe(flavour) not in {recipe for recipe, _ in seen}
    assert images.lock_digest(flavour) not in {lock for _, lock in seen}


def test_an_environment_that_is_not_the_locks_makes_no_image(monkeypatch: pytest.MonkeyPatch) -> None:
    assert images._off_lock() == []
    own = metadata.version

    def other(package: str) -> str:
        if package == "safetensors":
            raise metadata.PackageNotFoundError(package)
        return {"numpy": "1.0", "torch": f"{images.public(own('torch'))}+cu129"}.get(package) or own(package)

    monkeypatch.setattr(images.metadata, "version", other)
    with pytest.raises(EnvironmentLacks, match=r"numpy 1\.0 in place of .*; safetensors none in place of .*make setup"):
        images.build_from_host(lambda text: None)


def test_the_doctor_looks_for_the_image_that_the_profile_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(engine, "connect", lambda timeout: None)

    def none_of(client: object, flavours: tuple[str, ...], named: object) -> None:
        asked.append(flavours)
        raise EnvironmentLacks("no image of today's lock")

    monkeypatch.setattr(images, "find", none_of)
    assert [finding.text for finding in doctor._images(cuda=True)] == ["no image of today's lock"]
    doctor._images(cuda=False)
    assert asked == [("cuda",), ("cpu", "host")]


def test_the_doctor_needs_no_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none")
    found = {finding.what: finding for finding in doctor.examine(places(str(tmp_path / "runs"), None), None)}
    assert found["container engine"].state == "note"
    assert "only --runner docker needs one" in found["container engine"].text
    assert "image" not in found
