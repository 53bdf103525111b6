"""The container engine of the tests: where one must be there (CI) its absence fails, elsewhere it skips, saying why."""

import os
from functools import cache
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
