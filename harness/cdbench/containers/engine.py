"""The container engine: reached through the SDK, or a sentence that says what to do."""

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

from cdbench.errors import EnvironmentLacks

CLIENT = "CDBENCH_DOCKER"
"""Environment variable: which docker client builds images."""


def connect(timeout: float = 60) -> Any:
    """A client of the engine (DOCKER_HOST, or the default socket); one for each thread.

    Raises:
        EnvironmentLacks: no engine answers.
    """
    import docker
    from docker.errors import DockerException

    # The SDK leaves its socket open where there is nothing to connect to.
    if address().startswith("unix://") and not Path(address().removeprefix("unix://")).exists():
        raise EnvironmentLacks(f"no container engine answers at {address()}: {_advice('No such file')}")
    try:
        client = docker.DockerClient.from_env(timeout=timeout)
        client.ping()
    except (DockerException, ValueError) as error:  # an address that is none
        raise EnvironmentLacks(f"no container engine answers at {address()}: {_advice(str(error))}") from None
    return client


def address() -> str:
    """Where the engine is looked for."""
    return os.environ.get("DOCKER_HOST") or "unix:///var/run/docker.sock"


def _advice(text: str) -> str:
    if "ermission denied" in text:
        return "permission denied; add yourself to the group 'docker' (usermod -aG docker $USER) and log in again"
    if "No such file" in text:
        return "there is no such socket; install Docker and start it (systemctl start docker), or set DOCKER_HOST"
    if "refused" in text:
        return "the connection was refused; start it (systemctl start docker), or set DOCKER_HOST"
    return text.splitlines()[0]


def clients() -> list[Path]:
    """Every docker command on PATH, in its order; only the one that CDBENCH_DOCKER names, if it does."""
    if named := os.environ.get(CLIENT):
        return [Path(named)]
    folders = os.environ.get("PATH", os.defpath).split(os.pathsep)
    found = [Path(path).resolve() for folder in folders if (path := shutil.which("docker", path=folder))]
    return list(dict.fromkeys(found))


def buildkit_command() -> list[str]:
    """The beginning of a command that builds with BuildKit.

    Raises:
        EnvironmentLacks: no client can; says which were tried, and why each cannot.
    """
    told = []
    for client in clients():
        try:
            listed = _help(client, "buildx", "build")
            if "--secret" in listed:
                return [str(client), "buildx", "build", "--load"]
            # Before version 23 the client had BuildKit inside.
            if "--secret" in _help(client, "build"):
                return [str(client), "build"]
            told.append(f"{client} has no BuildKit (install the package docker-buildx-plugin or docker-buildx)")
        except OSError as error:
            told.append(f"{client} cannot be run ({error.strerror})")
    listed = "; ".join(told) or "there is no docker command on PATH"
    raise EnvironmentLacks(f"no client can build images: {listed}. Set {CLIENT} to one that can, or build --from-host")


def _help(client: Path, *words: str) -> str:
    done = subprocess.run(
        [str(client), *words, "--help"],
        env={**os.environ, "DOCKER_BUILDKIT": "1"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.stdout if done.returncode == 0 else ""
