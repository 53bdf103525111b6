"""What ran: code digest, commit, package versions, machine."""

import os
import platform
import subprocess
import sys
from functools import cache
from importlib import metadata
from pathlib import Path

from cdbench import __version__
from cdbench.config import RunSpec
from cdbench.discover import find, plugin_digest, task_files
from cdbench.files import sha256
from cdbench.record import Code
from cdbench.seeds import digest

_PACKAGE = Path(__file__).resolve().parent
_VIEWS = {
    "__main__.py", "ability.py", "ability_command.py", "build_command.py", "bundle.py", "check_command.py",
    "circuit_command.py", "circuit_inside_command.py", "circuit_mib_command.py", "circuit_options.py", "circuit_output.py",
    "circuit_session.py", "cli.py", "compare_command.py", "containers",
    "display.py", "doctor.py", "inference.py", "leaderboard_command.py", "lm_eval_tasks.py", "new_command.py",
    "plan.py", "plugin_test.py", "report", "requirements.py", "runners", "scoring.py", "session.py",
    "test_command.py", "tracking.py",
}  # fmt: skip
"""Parts of the package that no number in a record depends on."""
_CODE = ("harness", "methods", "tasks", "pyproject.toml")
"""What makes a checkout differ from its commit; a file that somebody wrote beside it does not."""
_LIBRARIES = ("torch", "transformers", "tokenizers", "safetensors", "numpy", "scipy", "scikit-learn", "pydantic")


@cache
def _package_digest() -> str:
    files = sorted(
        path for path in _PACKAGE.rglob("*.py") if path.relative_to(_PACKAGE).parts[0] not in _VIEWS | {"plugins"}
    )
    return digest({str(path.relative_to(_PACKAGE)): sha256(path) for path in files})


@cache
def evaluation_digest() -> str:
    """Of what turns exported weights into metrics."""
    files = [
        _PACKAGE / f"{name}.py"
        for name in (
            "evaluate",
            "generation",
            "predictions",
            "signals",
            "sites",
            "tokens",
            "models",
            "data",
            "judge",
            "component_cka",
        )
    ]
    files += [*sorted((_PACKAGE / "circuits").glob("*.py")), *sorted((_PACKAGE / "similarity").glob("*.py"))]
    return digest({"code": {path.name: sha256(path) for path in files}, "libraries": versions()})


@cache
def versions() -> dict[str, str]:
    """Versions of the libraries that numbers depend on, without importing them."""
    return {name: metadata.version(name) for name in _LIBRARIES} | {"python": platform.python_version()}


@cache
def head_commit() -> tuple[str, bool]:
    """The checkout's commit, and whether code differs from it; "unknown" where there is no checkout."""
    root = _PACKAGE.parents[1]
    if not (root / ".git").exists():
        return "unknown", False

    def git(*args: str) -> str:
        return subprocess.run(
            ["git", "-C", str(root), *args], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        return git("rev-parse", "HEAD"), bool(git("status", "--porcelain", "--", *_CODE))
    except (subprocess.CalledProcessError, FileNotFoundError):
        return "unknown", False


def code_of(spec: RunSpec) -> Code:
    """The code that a run of this spec depends on."""
    tasks = task_files(spec.task, spec.profile.data.zoo_tasks)
    plugins = {f"tasks/{name}": plugin_digest(path) for name, path in tasks.items()}
    methods = find("methods")
    if spec.method in methods:
        plugins[f"methods/{spec.method}"] = plugin_digest(methods[spec.method])
    commit, dirty = head_commit()
    return Code(
        version=__version__,
        digest=digest({"package": _package_digest(), "plugins": plugins, "libraries": versions()}),
        commit=commit,
        dirty=dirty,
        evaluation=evaluation_digest(),
    )


def environment() -> dict[str, object]:
    """The machine, as the record has it. Call it in the process that computes."""
    import torch

    cuda = torch.cuda.is_available()
    return {
        "versions": versions() | {"torch build": torch.__version__},
        "platform": platform.platform(),
        "processor": f"{processor()}, {torch.backends.cpu.get_cpu_capability()}",
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name(0) if cuda else None,
        "cuda": torch.version.cuda,
        "executable": Path(sys.executable).name,
        "container": None,
    }


def processor() -> str:
    """Name, family, model and stepping: in a virtual machine the name alone stands for many, whose last digits differ."""
    try:
        lines = Path("/proc/cpuinfo").read_text().partition("\n\n")[0].splitlines()
    except OSError:
        return platform.processor()
    told = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    if "model name" not in told:
        return platform.processor()
    parts = (("family", "cpu family"), ("model", "model"), ("stepping", "stepping"))
    numbers = " ".join(f"{name} {told[key]}" for name, key in parts if key in told)
    return told["model name"] + (f" ({numbers})" if numbers else "")
