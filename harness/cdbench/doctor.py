"""Looks at the machine: what works, and what to do about the rest."""

import os
import platform
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from cdbench import config, discover, plugins, provenance
from cdbench.containers import engine, images
from cdbench.errors import CdbenchError, EnvironmentLacks
from cdbench.plan import Places
from cdbench.requirements import nvidia_driver

State = Literal["ok", "missing", "note"]
_MARKS = {"ok": "✓", "missing": "✗", "note": "·"}
_LEAST_FREE_GIB = 2


@dataclass(frozen=True)
class Finding:
    """One thing looked at. `missing` is needed and not there; `note` is only worth knowing."""

    what: str
    state: State
    text: str

    @property
    def mark(self) -> str:
        """A character for the terminal."""
        return _MARKS[self.state]

    def as_json(self) -> dict[str, Any]:
        """For machines."""
        return asdict(self)


def examine(where: Places, profile: str | None) -> list[Finding]:
    """All findings; those about a profile only when one is named."""
    wanted = None if profile is None else config.build_profile(profile, {})
    findings = [_python(), _torch(), _cores(), _gpu(), _disk(where), _writable(where)]
    findings += [_plugins("methods"), _plugins("tasks")]
    findings += [_engine(), _client(), *_images(wanted is not None and wanted.device == "cuda")]
    findings.append(_token())
    if wanted is not None:
        from cdbench.requirements import missing

        needs = missing(wanted)
        findings += [Finding(f"profile {profile}", "missing", sentence) for sentence in needs]
        if not needs:
            findings.append(Finding(f"profile {profile}", "ok", "this machine has what it needs"))
    return findings


def _python() -> Finding:
    return Finding("python", "ok", f"{platform.python_version()} on {platform.system()} {platform.machine()}")


def _torch() -> Finding:
    import torch

    libraries = provenance.versions()
    return Finding("torch", "ok", f"{torch.__version__}, transformers {libraries['transformers']}")


def _cores() -> Finding:
    cores = os.cpu_count() or 1
    return Finding("cores", "ok", f"{cores}; --jobs {cores} runs {cores} at a time, one thread each")


def _gpu() -> Finding:
    import torch

    driver = nvidia_driver()
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        memory = f"{properties.total_memory / 2**30:.0f} GiB"
        return Finding("gpu", "ok", f"{properties.name}, {memory}, driver {driver or 'unknown'}")
    if driver:
        return Finding(
            "gpu", "note", f"one that torch does not see (driver {driver}): run make setup again on this machine"
        )
    build = "this torch is a CPU build" if torch.version.cuda is None else "CUDA build of torch, no visible device"
    return Finding("gpu", "note", f"none ({build}); tiny and smoke need none, paper does")


def _disk(where: Places) -> Finding:
    folder = where.runs
    while not folder.exists():
        folder = folder.parent
    return _room("disk", folder, "", "free some, or use --runs")


def _room(what: str, folder: Path, before: str, advice: str) -> Finding:
    """What is free at a folder."""
    free = shutil.disk_usage(folder).free / 2**30
    text = f"{before}{free:.1f} GiB free at {folder}"
    if free < _LEAST_FREE_GIB:
        return Finding(what, "missing", f"{text}; at least {_LEAST_FREE_GIB} are wanted: {advice}")
    return Finding(what, "ok", text)


def _writable(where: Places) -> Finding:
    folder = where.runs
    while not folder.exists():
        folder = folder.parent
    if not os.access(folder, os.W_OK):
        return Finding("runs folder", "missing", f"{folder} cannot be written: change its owner, or use --runs")
    return Finding("runs folder", "ok", str(where.runs))


def _plugins(kind: discover.Kind) -> Finding:
    try:
        found = discover.find(kind)
        ours = plugins.roots()[-1]
        brought = {name: path for name, path in found.items() if not path.is_relative_to(ours)}
        loaded = [name for name in found if name not in brought]
        for name in loaded:
            discover.load(kind, name)
        for path in brought.values():  # to be run in a container perhaps, unread: looked at, not imported
            discover.check_file(path)
    except CdbenchError as error:
        return Finding(kind, "missing", str(error))
    apart = (
        f"; {len(brought)} of others, not imported here (cdbench test FILE does): {', '.join(brought)}"
        if brought
        else ""
    )
    return Finding(kind, "ok", f"{len(loaded)} load: {', '.join(loaded)}{apart}")


def _engine() -> Finding:
    try:
        client = engine.connect(timeout=10)
    except EnvironmentLacks as error:
        return Finding("container engine", "note", f"{error}; only --runner docker needs one")
    text, root = f"{client.version()['Version']} at {engine.address()}", Path(str(client.info().get("DockerRootDir")))
    if not root.is_dir():  # an engine elsewhere
        return Finding("container engine", "ok", text)
    return _room("container engine", root, f"{text}, ", "docker image prune, or give it more")


def _client() -> Finding:
    try:
        command = engine.buildkit_command()
    except EnvironmentLacks as error:
        return Finding("image building", "note", str(error))
    return Finding("image building", "ok", f"BuildKit through {' '.join(command)}")


def _images(cuda: bool) -> list[Finding]:
    """The image that a run takes, under a profile for GPUs or any other."""
    try:
        client = engine.connect(timeout=10)
        image = images.find(client, images.flavours(cuda), os.environ.get("CDBENCH_IMAGE"))
    except CdbenchError as error:
        return [] if str(error).startswith("no container engine") else [Finding("image", "note", str(error))]
    found = [Finding("image", "ok", f"{image.tag}, based on {image.base}")]
    runtimes = client.info().get("Runtimes", {})
    if "nvidia" in runtimes:
        found.append(Finding("GPUs in containers", "ok", "the engine has NVIDIA's runtime"))
    else:
        found.append(Finding("GPUs in containers", "note", "the engine has no NVIDIA runtime; CPU profiles need none"))
    return found


def _token() -> Finding:
    if os.environ.get("HF_TOKEN"):
        return Finding("HF_TOKEN", "ok", "set")
    return Finding("HF_TOKEN", "note", "not set; only the paper profile's gated Llama weights need it")
