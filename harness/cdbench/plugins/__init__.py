"""Gives the plug-in folders one import path, `cdbench.plugins.methods.kl`, wherever they lie.

Searched, in this order: the folders in CDBENCH_PLUGINS (separated as PATH is), then the checkout's root; in a wheel, the
copies that the build places in this folder. None of them has an `__init__.py`: `methods` and `tasks` are namespace
packages, so files of several roots stand side by side.
"""

import os
from pathlib import Path

_HERE = Path(__file__).resolve().parent
_CHECKOUT = _HERE.parents[2]


def roots() -> list[Path]:
    """The folders that may hold `methods/`, `tasks/` and `reports/`."""
    extra = [Path(p).expanduser().resolve() for p in os.environ.get("CDBENCH_PLUGINS", "").split(os.pathsep) if p]
    own = _CHECKOUT if (_CHECKOUT / "pyproject.toml").is_file() and (_CHECKOUT / "methods").is_dir() else _HERE
    return [*extra, own]


def include(root: Path) -> None:
    """Adds a folder to those searched, for this process and those that it starts."""
    if root not in roots():
        earlier = os.environ.get("CDBENCH_PLUGINS", "")
        os.environ["CDBENCH_PLUGINS"] = os.pathsep.join(filter(None, [earlier, str(root)]))
        __path__[:] = [str(each) for each in roots()]


__path__ = [str(root) for root in roots()]
