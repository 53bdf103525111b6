"""Images: what is in one, how it is built, and which one a run takes.

An image holds the locked environment and nothing of ours; package and plug-ins are mounted, so that an image is built once a lock
and the code digest in the record stays the code that ran. Its tag is a hash of base digest, Dockerfile and lock.
"""

import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from cdbench import plugins
from cdbench.containers.engine import buildkit_command, connect
from cdbench.containers.host_image import host_image
from cdbench.errors import EnvironmentLacks, RunFailed, UserError
from cdbench.files import sha256
from cdbench.seeds import digest

Flavour = Literal["cpu", "cuda", "host"]
_CPU_TORCH = "requirements.cpu-torch.txt"
_LOCKS: dict[Flavour, tuple[str, ...]] = {
    "cuda": ("image.cuda.txt",),
    "cpu": (_CPU_TORCH, "image.cpu.txt"),
    "host": (_CPU_TORCH, "requirements.cpu.txt", "requirements.cuda.txt"),
}
_LABEL = "cdbench."
_PINNED = re.compile(r"@sha256:[0-9a-f]{64}$")
_LOCKED = re.compile(r"^([A-Za-z0-9][\w.-]*)==([^\s;\\]+)", re.MULTILINE)


@dataclass(frozen=True)
class Image:
    """A built image.

    Attributes:
        tag: its name.
        id: the engine's content hash.
        flavour: cpu, cuda, or host: this machine's Python, with the environment mounted.
        base: from what it was built, with digest.
        recipe: hash of Dockerfile and lock.
        lock: hash of the lock alone.
        python: the interpreter in it.
        environment: the folder of this machine that must be mounted; None where the image holds all.
    """

    tag: str
    id: str
    flavour: Flavour
    base: str
    recipe: str
    lock: str
    python: str
    environment: str | None


def folder() -> Path:
    """Where Dockerfiles and locks lie."""
    return plugins.roots()[-1] / "docker"


def lock_digest(flavour: Flavour) -> str:
    """One hash for the lock files of a flavour."""
    return digest({name: sha256(folder() / name) for name in _LOCKS[flavour]})


def recipe(flavour: Flavour) -> str:
    """What an image of today is built by."""
    if flavour == "host":
        return digest({"python": sys.version, "prefix": sys.prefix, "lock": lock_digest(flavour)})
    return digest({"Dockerfile": sha256(folder() / f"{flavour}.Dockerfile"), "lock": lock_digest(flavour)})


def default_base(flavour: Flavour) -> str:
    """The pinned base that the Dockerfile names."""
    text = (folder() / f"{flavour}.Dockerfile").read_text()
    found = re.search(r"^ARG BASE_IMAGE=(\S+)$", text, re.MULTILINE)
    assert found, f"{flavour}.Dockerfile names no base"
    return found[1]


def flavours(cuda: bool) -> tuple[Flavour, ...]:
    """Which images a profile can be run in, the one to prefer first."""
    return ("cuda",) if cuda else ("cpu", "host")


def find(client: Any, flavours: Sequence[Flavour], named: str | None) -> Image:
    """The image that a run takes: the named one, else the newest of today's recipe, by the order of flavours.

    Raises:
        EnvironmentLacks: there is none; says what builds it.
        UserError: the named one is not one of ours.
    """
    from docker.errors import ImageNotFound

    if named:
        try:
            return _read(client.images.get(named), named)
        except ImageNotFound:
            raise EnvironmentLacks(
                f"there is no image {named} on this engine: build it (cdbench build) or load it; one that is built anew has "
                "another id and goes by its tag (--image TAG)"
            ) from None
    for flavour in flavours:
        wanted = [f"{_LABEL}flavour={flavour}", f"{_LABEL}recipe={recipe(flavour)}"]
        found = client.images.list(filters={"label": wanted})
        if found:
            newest = max(found, key=lambda image: str(image.attrs["Metadata"].get("LastTagTime", "")))
            return _read(newest, newest.tags[0] if newest.tags else newest.id)
    what = " --cuda" if flavours[0] == "cuda" else ""
    raise EnvironmentLacks(
        f"no image of today's lock and Dockerfile is on this engine: build one with `cdbench build{what}`"
        + ("" if what else ", or with `cdbench build --from-host` where no registry can be reached")
    )


def _read(image: Any, tag: str) -> Image:
    labels = {k.removeprefix(_LABEL): v for k, v in (image.labels or {}).items() if k.startswith(_LABEL)}
    try:
        return Image(
            tag=tag,
            id=image.id,
            flavour=labels["flavour"],
            base=labels["base"],
            recipe=labels["recipe"],
            lock=labels["lock"],
            python=labels["python"],
            environment=labels.get("environment"),
        )
    except KeyError as error:
        raise UserError(
            f"image {tag} has no label cdbench.{error.args[0]}: it was not made by `cdbench build`"
        ) from None


def build_from_host(say: Callable[[str], None]) -> Image:
    """Makes an image of this machine's Python and loads it.

    Raises:
        EnvironmentLacks: no engine, not Linux on x86-64, or an environment that is not the lock's.
    """
    if other := _off_lock():
        more = f" and {len(other) - 3} more" if len(other) > 3 else ""
        raise EnvironmentLacks(
            f"the environment {sys.prefix} is not the lock's, by which its image would be called: {'; '.join(other[:3])}{more}. "
            "Run make setup"
        )
    client = connect(timeout=600)
    tag = f"cdbench:host-{recipe('host')[:12]}"
    say(f"making {tag} out of {sys.base_prefix}; its environment is {sys.prefix}, mounted read-only")
    labels = {
        "flavour": "host",
        "base": f"this machine's Python {sys.version.split()[0]}",
        "recipe": recipe("host"),
        "lock": lock_digest("host"),
        "python": f"{sys.prefix}/bin/python",
        "environment": sys.prefix,
    }
    data = host_image(tag, {f"{_LABEL}{key}": value for key, value in labels.items()})
    say(f"loading {len(data) / 1e6:.0f} MB into the engine")
    client.images.load(data)
    return _read(client.images.get(tag), tag)


def _off_lock() -> list[str]:
    """What this environment has otherwise than the lock, of all that the steps of a run import."""
    found = []
    for name in _LOCKS["cpu"]:
        for package, version in _LOCKED.findall((folder() / name).read_text()):
            try:
                have = metadata.version(package)
            except metadata.PackageNotFoundError:
                have = "none"
            if public(have) != public(version):
                found.append(f"{package} {have} in place of {version}")
    return found


def public(version: str) -> str:
    """2.13.0+cpu and 2.13.0 are two builds of one version."""
    return version.partition("+")[0]


@dataclass(frozen=True)
class Sources:
    """What an image is made from in place of what its Dockerfile names.

    Attributes:
        base: with digest, unless the engine has it.
        python: the same for the image that a CUDA image takes its Python from.
        wheels: an image whose files are wheels, where no index has them.
        mirror: scheme and host of a package mirror, in place of those that the base names.
    """

    base: str | None = None
    python: str | None = None
    wheels: str | None = None
    mirror: str | None = None


def build(
    flavour: Flavour, say: Callable[[str], None], sources: Sources = Sources(), secrets: Sequence[str] = ()
) -> Image:
    """Builds an image with BuildKit, what the client says going to the terminal.

    `secrets`: `id=pip_conf,src=FILE` and `id=ca_bundle,src=FILE`, in no layer and no history.

    Raises:
        EnvironmentLacks: no engine, or no client with BuildKit.
        UserError: a base that is neither pinned nor here, a mirror that is no URL, a secret that is no file.
        RunFailed: the build failed; what the client said stands above.
    """
    client = connect()
    command = buildkit_command()
    base = sources.base or default_base(flavour)
    pinned = _pin(client, base, "--base")
    if sources.python:
        pinned += f" with the Python of {_pin(client, sources.python, '--python')}"
    if sources.mirror and not re.fullmatch(r"https?://[\w.:-]+", sources.mirror):
        raise UserError(f"--mirror {sources.mirror}: scheme and host are expected, http://mirror.example")
    for secret in secrets:
        _check_secret(secret)
    text = digest({"base": pinned, "recipe": recipe(flavour)})
    tag = f"cdbench:{flavour}-{text[:12]}"
    labels = {
        "flavour": flavour,
        "base": pinned,
        "recipe": recipe(flavour),
        "lock": lock_digest(flavour),
        "python": "/opt/venv/bin/python",
    }
    command += ["--file", str(folder() / f"{flavour}.Dockerfile"), "--tag", tag, "--progress", "plain"]
    replaced = {"BASE": base, "PYTHON": sources.python, "WHEELS": sources.wheels}
    arguments = [f"{name}_IMAGE={image}" for name, image in replaced.items() if image]
    arguments += [f"APT_MIRROR={sources.mirror}"] if sources.mirror else []
    command += [word for argument in arguments for word in ("--build-arg", argument)]
    command += [word for secret in secrets for word in ("--secret", secret)]
    command += [word for key, value in labels.items() for word in ("--label", f"{_LABEL}{key}={value}")]
    say(f"building {tag} with {command[0]}, base {pinned}")
    done = subprocess.run(
        [*command, str(folder())], env={**os.environ, "DOCKER_BUILDKIT": "1"}, stdout=sys.stderr, stderr=sys.stderr
    )
    if done.returncode != 0:
        raise RunFailed(
            f"the build of {tag} failed (exit code {done.returncode} of {command[0]}); its words stand above"
        )
    return _read(client.images.get(tag), tag)


def _pin(client: Any, base: str, option: str) -> str:
    """The base with a digest: its own, or that of the image of this name on the engine."""
    from docker.errors import ImageNotFound

    if _PINNED.search(base):
        return base
    try:
        return f"{base}@{client.images.get(base).id}"
    except ImageNotFound:
        raise UserError(
            f"{option} {base} is not pinned: write NAME@sha256:DIGEST, or load the image into this engine first"
        ) from None


def _check_secret(secret: str) -> None:
    fields = dict(word.partition("=")[::2] for word in secret.split(","))
    if fields.get("id") not in {"pip_conf", "ca_bundle"} or not Path(fields.get("src", "")).is_file():
        raise UserError(f"--secret {secret!r}: write id=pip_conf,src=FILE or id=ca_bundle,src=FILE")
