"""The container engine of the tests: where one must be there (CI) its absence fails, elsewhere it skips, saying why."""

import os
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from cdbench.containers import images
from cdbench.containers.engine import connect
from cdbench.containers.images import Image
from cdbench.errors import EnvironmentLacks


@cache
def _engine() -> Any:
    return connect(timeout=20)


def engine_or_skip() -> Any:
    """A client of the engine, one for all tests."""
    try:
        return _engine()
    except EnvironmentLacks as error:
        if os.environ.get("CDBENCH_ENGINE_NEEDED"):
            pytest.fail(f"CDBENCH_ENGINE_NEEDED is set, and {error}")
        pytest.skip(str(error))


def host_image() -> Image:
    """The image of this machine's Python, made once a session."""
    engine_or_skip()
    return images.build_from_host(lambda text: None)


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
    pytest.skip("apt on this machine has no mirror of Debian 12, whose Python is 3.11")


def bootstrapped(engine: Any, name: str, packages: str, folder: Path) -> None:
    """Makes an image of Debian 12 with these packages, without a registry, unless the engine has it."""
    if engine.images.list(name):
        return
    mirror, suite = debian_mirror()
    if not shutil.which("mmdebstrap"):
        if os.environ.get("CDBENCH_ENGINE_NEEDED"):
            pytest.fail("CDBENCH_ENGINE_NEEDED is set, and mmdebstrap is not installed")
        pytest.skip("mmdebstrap is not installed (apt-get install mmdebstrap)")
    command = ["mmdebstrap", "--variant=minbase", "--quiet", f"--include={packages}", suite, "base.tar", mirror]
    done = subprocess.run(
        command, cwd=folder, env=os.environ | {"SOURCE_DATE_EPOCH": "0"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    engine.api.import_image_from_file(str(folder / "base.tar"), *name.split(":"))
