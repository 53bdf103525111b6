"""The container engine of the tests: where one must be there (CI) its absence fails, elsewhere it skips, saying why."""

import os
import shutil
import subprocess
import tempfile
import time
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

import psutil
import pytest

from cdbench.containers import images
from cdbench.containers.engine import connect
from cdbench.containers.images import Image
from cdbench.errors import EnvironmentLacks


@cache
def _engine() -> Any:
    return connect(timeout=20)


def skip_unless_needed(why: str, *, here: bool = True) -> NoReturn:
    """Skips, or fails where an engine and all that goes with it must be there; `here` False: on no machine of this kind it is."""
    if os.environ.get("CDBENCH_ENGINE_NEEDED") and here:
        pytest.fail(f"CDBENCH_ENGINE_NEEDED is set, and {why}")
    pytest.skip(why)


def engine_or_skip() -> Any:
    """A client of the engine, one for all tests."""
    try:
        return _engine()
    except EnvironmentLacks as error:
        skip_unless_needed(str(error))


def host_image() -> Image:
    """The image of this machine's Python, made once a session."""
    engine_or_skip()
    return images.build_from_host(lambda text: None)


class PrivateEngine:
    """A second container engine, that can be killed, and that believes it can give GPUs: a program of the name of NVIDIA's hook
    is on its PATH."""

    def __init__(self) -> None:
        self._root = Path(tempfile.mkdtemp(prefix="cdb", dir="/tmp"))  # a socket's path has at most 107 characters
        self.hook_log = self._root / "hook.log"
        self.address = f"unix://{self._root}/s"
        self._daemon: subprocess.Popen[bytes] | None = None
        hook = self._root / "bin" / "nvidia-container-runtime-hook"
        hook.parent.mkdir()
        hook.write_text(f'#!/bin/sh\necho "$@" >> {self.hook_log}\ncat > /dev/null\n')
        hook.chmod(0o755)

    @classmethod
    def or_skip(cls) -> "PrivateEngine":
        """One, where it can be had."""
        if os.getuid() != 0 or not shutil.which("dockerd"):
            skip_unless_needed("a second engine needs root and dockerd", here=os.getuid() == 0)
        return cls()

    def start(self) -> None:
        """Returns when it answers."""
        root = self._root
        # In a network namespace of its own: beside another engine, one without a bridge removes that one's.
        command = ["unshare", "--net", "dockerd", "--data-root", f"{root}/data", "--exec-root", f"{root}/exec",
                   "--pidfile", f"{root}/pid", "--host", self.address, "--bridge", "none", "--iptables=false",
                   "--ip6tables=false", "--ip-forward=false"]  # fmt: skip
        # Of one that was killed: its containerd went with it, and may still stand in the process table where nobody reaps.
        for left in ("pid", "s", "exec/containerd/containerd.pid"):
            (root / left).unlink(missing_ok=True)
        path = f"{root}/bin:{os.environ['PATH']}"
        with (root / "log").open("ab") as log:
            self._daemon = subprocess.Popen(command, env=os.environ | {"PATH": path}, stdout=log, stderr=log)
        for _ in range(600):
            if (root / "s").exists():
                return
            time.sleep(0.1)
        pytest.fail(f"no second engine came up: {(root / 'log').read_text()[-2000:]}")

    def kill(self) -> None:
        """As the kernel would for want of memory."""
        assert self._daemon
        self._daemon.kill()
        self._daemon.wait()

    def remove(self) -> None:
        """Ends it, and whatever of it is left."""
        if self._daemon:
            self._daemon.terminate()
            self._daemon.wait(60)
        for process in psutil.process_iter(["cmdline"]):
            if str(self._root) in " ".join(process.info["cmdline"] or []):
                process.kill()
        for line in Path("/proc/mounts").read_text().splitlines():
            if (place := line.split()[1]).startswith(str(self._root)):
                subprocess.run(["umount", "-l", place], check=False)
        shutil.rmtree(self._root, ignore_errors=True)


def debian_mirror() -> tuple[str, str]:
    """Where this machine's own apt takes its packages from, and the suite."""
    suite = "bookworm"
    told = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE)", "Created-By: Packages"],
        capture_output=True, text=True, check=True,
    ).stdout if shutil.which("apt-get") else ""  # fmt: skip
    for line in told.splitlines():
        mirror, release = line.split()
        if release == suite:
            return mirror, suite
    debian = "bookworm" in Path("/etc/os-release").read_text()
    skip_unless_needed("apt on this machine has no mirror of Debian 12, whose Python is 3.11", here=debian)


def bootstrapped(engine: Any, name: str, packages: str, folder: Path) -> None:
    """Makes an image of Debian 12 with these packages, without a registry, unless the engine has it."""
    if engine.images.list(name):
        return
    mirror, suite = debian_mirror()
    if not shutil.which("mmdebstrap"):
        skip_unless_needed("mmdebstrap is not installed (apt-get install mmdebstrap)")
    command = ["mmdebstrap", "--variant=minbase", "--quiet", f"--include={packages}", suite, "base.tar", mirror]
    done = subprocess.run(
        command, cwd=folder, env=os.environ | {"SOURCE_DATE_EPOCH": "0"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    engine.api.import_image_from_file(str(folder / "base.tar"), *name.split(":"))
