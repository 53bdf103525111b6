"""Gives the plug-in folders one import path, `cdbench.plugins.methods.kl`, wherever they lie.

Searched, in this order: the folders in CDBENCH_PLUGINS (separated as PATH is), the packages that installed distributions name
under the entry-point group `cdbench.plugins`, then the checkout's root; in a wheel, the copies that the build places in this
folder. None of them has an `__init__.py` in `methods` or `tasks`: these are namespace packages, so files of several roots stand
side by side. Finding imports nothing.
"""

import os
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path

_HERE = Path(__file__).resolve().parent
_CHECKOUT = _HERE.parents[2]
GROUP = "cdbench.plugins"
NAMED_ONLY = "CDBENCH_PLUGINS_ONLY"
"""Set where the folders in CDBENCH_PLUGINS are all there is to search beside our own, as in a container."""


def sources() -> list[tuple[Path, str]]:
    """The folders that may hold `methods/`, `tasks/` and `reports/`, and who named each; a folder that two name once."""
    named = [Path(p).expanduser().resolve() for p in os.environ.get("CDBENCH_PLUGINS", "").split(os.pathsep) if p]
    own = _CHECKOUT if (_CHECKOUT / "pyproject.toml").is_file() and (_CHECKOUT / "methods").is_dir() else _HERE
    found = {folder: "CDBENCH_PLUGINS" for folder in named}
    for folder, origin in () if os.environ.get(NAMED_ONLY) else _installed():
        found.setdefault(folder, origin)
    found.pop(own, None)
    return [*found.items(), (own, "cdbench")]


def roots() -> list[Path]:
    """The folders alone."""
    return [folder for folder, _ in sources()]


@cache
def _installed() -> tuple[tuple[Path, str], ...]:
    return tuple((_folder(each), f"entry point '{each.name}'") for each in entry_points(group=GROUP))


def _folder(named: EntryPoint) -> Path:
    """The folder of a package, without importing it; a path that does not exist where there is none."""
    top, *rest = named.module.split(".")
    spec = find_spec(top)
    places = list(spec.submodule_search_locations or []) if spec else []
    return Path(places[0]).resolve().joinpath(*rest) if places else Path(f"<package {named.module}>")


def include(root: Path, *, instead_of: Path | None = None) -> None:
    """Adds a folder to those searched, for this process and those that it starts; in the place of another one."""
    earlier = [folder for folder in os.environ.get("CDBENCH_PLUGINS", "").split(os.pathsep) if folder]
    kept = [folder for folder in earlier if Path(folder) != instead_of]
    if root not in roots() or kept != earlier:
        os.environ["CDBENCH_PLUGINS"] = os.pathsep.join([*kept, str(root)])
        __path__[:] = [str(each) for each in roots()]


__path__ = [str(root) for root in roots()]
