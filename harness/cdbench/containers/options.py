"""What a container is given: options, mounts, and the promises that are read back from the engine.

What it sees:

    /opt/cdbench           the package, read-only
    /opt/plugins/N         methods (training only) and tasks of each plug-in folder, read-only
    /store                 the shared artefacts, read-only; for training the kinds that a method may see
    /step                  the step's own folder, the only place that it can write but /tmp: spec.json, and what it leaves
"""

import os
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cdbench import plugins
from cdbench.config import FolderModel, HubModel, Profile, RunSpec
from cdbench.containers.images import Image
from cdbench.errors import EnvironmentLacks
from cdbench.record import GPUS
from cdbench.requirements import hub_snapshot
from cdbench.store import OPEN_KINDS

OWNER, DEADLINE, KIND = "cdbench.owner", "cdbench.deadline", "cdbench.kind"
"""Labels of a container: who made it, when anybody may remove it, what it is for."""
GIB = 1 << 30
USER = 10001
"""Who a step is where the harness is root."""
_PACKAGE = Path(plugins.__file__).resolve().parents[1]
_SPARE_SECONDS = 120
_NAMESPACES, _SHARED = ("PidMode", "IpcMode", "UTSMode"), ("host", "container:", "ns:")
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(frozen=True)
class Promises:
    """What the engine must say that it will do; some engines drop options and say nothing."""

    memory: int
    processors: float
    processes: int
    output: int
    scratch: int
    user: str
    gpus: tuple[str, ...] = ()

    def broken(self, attrs: dict[str, Any]) -> list[str]:
        """Which promises the engine's own view of a container does not keep."""
        host = attrs["HostConfig"]
        requested = [name for request in host.get("DeviceRequests") or [] for name in request.get("DeviceIDs") or []]
        sizes = {limit["Name"]: limit["Hard"] for limit in host.get("Ulimits") or []}
        kept = {
            "no network": host["NetworkMode"] == "none",
            "read-only root": host["ReadonlyRootfs"] is True,
            "no capabilities": "ALL" in (host.get("CapDrop") or []) and not host.get("CapAdd"),
            "no new privileges": not {
                "no-new-privileges",
                "no-new-privileges:true",
                "no-new-privileges=true",
            }.isdisjoint(host.get("SecurityOpt") or []),
            "namespaces of its own": not any(str(host.get(mode) or "").startswith(_SHARED) for mode in _NAMESPACES),
            "not privileged": not host["Privileged"],
            "memory": host["Memory"] == self.memory and host["MemorySwap"] == self.memory,
            "processors": host["NanoCpus"] == int(self.processors * 1e9),
            "processes": host["PidsLimit"] == self.processes,
            "file size": sizes.get("fsize") == self.output,
            "scratch": f"size={self.scratch}" in (host.get("Tmpfs") or {}).get("/tmp", "")
            and host.get("ShmSize") == self.scratch,
            "user": attrs["Config"]["User"] == self.user,
            "read-only mounts": {m["Destination"] for m in attrs["Mounts"] if m["RW"]} <= {"/step", "/tmp"},
            "GPUs": requested == list(self.gpus),
        }
        return [name for name, holds in kept.items() if not holds]


def promises_of(spec: RunSpec, gpus: tuple[str, ...]) -> Promises:
    """What a container for a spec is promised."""
    limits = spec.profile.limits
    memory, output, scratch = (int(value * GIB) for value in (limits.memory_gib, limits.output_gib, limits.scratch_gib))
    return Promises(memory, spec.profile.threads, limits.processes, output, scratch, user(), gpus)


@dataclass(frozen=True)
class View:
    """What a container sees of a store: all of it; where a method runs in it all of the open kinds, and of the others these."""

    store: Path
    own: frozenset[str] = frozenset()


def options_of(
    image: Image, kind: str, spec: RunSpec, box: Path, view: View | None, gpus: tuple[str, ...]
) -> dict[str, Any]:
    """What the engine's client is told for a container; without a view of the store it is one that only looks."""
    from docker.types import DeviceRequest, LogConfig, Ulimit

    promises = promises_of(spec, gpus)
    requested = [DeviceRequest(device_ids=list(gpus), capabilities=[["gpu"]])] if gpus else None
    # It may wait for two steps of that length before it begins its own.
    deadline = int(time.time() + 3 * spec.profile.timeout_minutes * 60 + _SPARE_SECONDS)
    # What a step prints is read as it comes: `logs` loses what was rotated away.
    log = LogConfig(type="json-file" if view is None else "none")
    return {
        "labels": {OWNER: owner(), DEADLINE: str(deadline), KIND: kind},
        "user": user(),
        "network_mode": "none",  # network_disabled is not the same: Podman's socket ignored it and connected
        "read_only": True,
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges"],
        "tmpfs": {"/tmp": f"size={promises.scratch},mode=1777"},
        "shm_size": promises.scratch,
        "init": True,
        "mem_limit": promises.memory,
        "memswap_limit": promises.memory,
        "nano_cpus": int(promises.processors * 1e9),
        "pids_limit": promises.processes,
        "ulimits": [
            Ulimit(name="fsize", soft=promises.output, hard=promises.output),
            Ulimit(name="core", soft=0, hard=0),
            Ulimit(name="nofile", soft=4096, hard=4096),
        ],
        "mounts": _mounts(image, kind, spec, box, view),
        "environment": _environment(kind, spec, gpus),
        "device_requests": requested,
        "working_dir": "/step",
        "stdin_open": True,
        "log_config": log,
    }


def _mounts(image: Image, kind: str, spec: RunSpec, box: Path, view: View | None) -> list[Any]:
    # mounts, not volumes: a missing source is an error instead of a new folder that belongs to root.
    mounts = [_mount("/step", box, write=True)]
    if image.environment:
        mounts.append(_mount(image.environment, Path(image.environment)))
    if view is None:
        return mounts
    mounts.append(_mount("/opt/cdbench/cdbench", _PACKAGE))
    mounts += [_mount(target, source) for target, source in _plugin_folders(kind).items()]
    if kind == "train":
        mounts += [_mount(f"/store/{name}", view.store / name) for name in (*OPEN_KINDS, *sorted(view.own))]
    else:
        mounts.append(_mount("/store", view.store))
    return mounts + _model_mounts(spec)


def _environment(kind: str, spec: RunSpec, gpus: tuple[str, ...]) -> dict[str, str]:
    # A CPU quota does not change what torch sees; only these do.
    values = dict.fromkeys(_THREADS, "1")
    values |= {
        "HOME": "/tmp",
        "TZ": "UTC",
        "HF_HOME": "/hf",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONHASHSEED": "0",
        "PYTHONPATH": "/opt/cdbench",
        "PYTHONDONTWRITEBYTECODE": "1",
        plugins.NAMED_ONLY: "1",
        "CDBENCH_PLUGINS": os.pathsep.join(dict.fromkeys(str(Path(name).parent) for name in _plugin_folders(kind))),
    }
    return values | ({GPUS: str(len(gpus))} if gpus else {})


def _plugin_folders(kind: str) -> dict[str, Path]:
    """Folder in the container -> folder of plug-ins here, but for a wheel's own, which come with the package.

    The evaluator imports none; it has the tasks because the address of a split is a hash of their files.
    """
    wanted = ("tasks",) if kind == "evaluate" else ("tasks", "methods")
    roots = [root for root in plugins.roots() if _PACKAGE not in root.parents]
    found = {f"/opt/plugins/{i}/{each}": root / each for i, root in enumerate(roots) for each in wanted}
    return {target: folder for target, folder in found.items() if folder.is_dir()}


def user() -> str:
    """Nobody in particular where the harness is root, else whoever runs it: then the files that a step leaves are theirs."""
    return f"{USER}:{USER}" if os.getuid() == 0 else f"{os.getuid()}:{os.getgid()}"


def made_by(profile: Profile) -> dict[str, Any]:
    """The part of a profile that a container is made by."""
    return profile.model_dump(include={"teacher", "student", "device", "threads", "timeout_minutes", "limits"})


def _mount(target: str, source: Path, *, write: bool = False) -> Any:
    from docker.types import Mount

    return Mount(target, str(source), type="bind", read_only=not write)


def _model_mounts(spec: RunSpec) -> list[Any]:
    """Checkpoints that somebody else trained: a folder at its own path, a hub model as a cache with nothing else in it."""
    mounts: dict[str, Path] = {}
    for config in (spec.profile.teacher, spec.profile.student):
        if isinstance(config, FolderModel):
            folder = Path(config.path).expanduser().resolve()
            mounts[str(folder)] = folder
        elif isinstance(config, HubModel) and (snapshot := hub_snapshot(config)):
            repository = snapshot.parents[1]
            mounts[f"/hf/hub/{repository.name}"] = repository
    return [_mount(target, source) for target, source in mounts.items()]


def require_promises(container: Any, promises: Promises) -> None:
    """Checks what the engine itself says of a container that it has made.

    Raises:
        EnvironmentLacks: it dropped an option; names it.
    """
    container.reload()
    if broken := promises.broken(container.attrs):
        raise EnvironmentLacks(f"the container engine did not accept: {', '.join(broken)}; nothing was started")


def owner() -> str:
    """host/user/namespace:pid:start time of this process; a pid alone may be another process tomorrow, or elsewhere."""
    return f"{_where()}:{os.getpid()}:{_start_time(os.getpid())}"


def _where() -> str:
    """Where a pid can be looked up: other users' may be hidden, and those of another namespace are numbered apart."""
    return f"{socket.gethostname()}/{os.getuid()}/{Path('/proc/self/ns/pid').stat().st_ino}"


def _start_time(pid: int) -> str | None:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[19]
    except OSError:
        return None


def is_alive(label: str) -> bool:
    """Whether the process that a label of OWNER names still runs; of another machine's or user's we cannot tell."""
    where, pid, start = label.rsplit(":", 2)
    return where != _where() or _start_time(int(pid)) == start
