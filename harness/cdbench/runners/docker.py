"""Steps in containers: one each, without network, on a read-only root, as nobody in particular, within limits.

What a container sees:

    /opt/cdbench           the package, read-only
    /opt/plugins/N         methods (training only) and tasks of each plug-in folder, read-only
    /store                 the shared artefacts, read-only; for training the kinds that a method may see
    /step                  the step's own folder, the only place that it can write but /tmp: spec.json, and what it leaves

When it has ended, the files that a step may leave are taken from its folder, if they are plain files of a sane size; nothing
else is. New artefacts are adopted into the store from steps that run no method. A container ends with its harness: the step
holds on to its stdin, and what even that left behind, the next start removes by its owner label.
"""

import contextlib
import json
import os
import shutil
import socket
import stat
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cdbench import plugins
from cdbench.config import FolderModel, HubModel, RunSpec
from cdbench.containers import images
from cdbench.containers.engine import connect
from cdbench.containers.images import Image
from cdbench.errors import CdbenchError, EnvironmentLacks
from cdbench.execute import GPUS, HELD_BY_STDIN
from cdbench.files import explained
from cdbench.provenance import versions
from cdbench.record import failure_file, log_file, progress_file
from cdbench.requirements import hub_snapshot
from cdbench.runners import End, Handle, Runner
from cdbench.store import TRAINING_KINDS, Store

OWNER, DEADLINE, STEP = "cdbench.owner", "cdbench.deadline", "cdbench.step"
"""Labels of a container: who made it, when anybody may remove it, what it does."""
_PACKAGE = Path(plugins.__file__).resolve().parents[1]
_USER = 10001
_GRACE_SECONDS = 5
_SPARE_SECONDS = 120
_ENGINE_SECONDS = 30
_GIB = 1 << 30
_SMALL = 64 << 20
"""Bytes that a file other than tensors may have."""
_LEAVES: dict[str, tuple[str, ...]] = {
    "train": ("outcome.json", "history.jsonl", "student.safetensors", "masks.safetensors", "checkpoint.pt"),
    "evaluate": ("metrics.json", "predictions.jsonl"),
}
_TENSORS = ("student.safetensors", "masks.safetensors", "checkpoint.pt")
_GIVEN = {"evaluate": ("student.safetensors", "masks.safetensors")}
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(frozen=True)
class Promises:
    """What the engine must say that it will do; some engines drop options and say nothing."""

    memory: int
    processors: float
    processes: int
    output: int
    scratch: int
    gpus: tuple[str, ...] = ()

    def broken(self, host: dict[str, Any]) -> list[str]:
        """Which promises the engine's own view of a container (its HostConfig) does not keep."""
        requested = [name for request in host.get("DeviceRequests") or [] for name in request.get("DeviceIDs") or []]
        sizes = {limit["Name"]: limit["Hard"] for limit in host.get("Ulimits") or []}
        kept = {
            "no network": host["NetworkMode"] == "none",
            "read-only root": host["ReadonlyRootfs"] is True,
            "no capabilities": "ALL" in (host.get("CapDrop") or []) and not host.get("CapAdd"),
            "no new privileges": any("no-new-privileges" in option for option in host.get("SecurityOpt") or []),
            "not privileged": not host["Privileged"],
            "memory": host["Memory"] == self.memory and host["MemorySwap"] == self.memory,
            "processors": host["NanoCpus"] == int(self.processors * 1e9),
            "processes": host["PidsLimit"] == self.processes,
            "file size": sizes.get("fsize") == self.output,
            "scratch": f"size={self.scratch}" in (host.get("Tmpfs") or {}).get("/tmp", ""),
            "GPUs": requested == list(self.gpus),
        }
        return [name for name, holds in kept.items() if not holds]


class DockerRunner(Runner):
    """One container a step."""

    name = "docker"
    isolated = True

    def __init__(self, image: str | None = None, gpus: Sequence[str] = ()) -> None:
        self._named, self._gpus = image, list(gpus)
        self._free = list(gpus)
        self.image: Image | None = None
        self._engine = ""

    def require(self, specs: list[RunSpec]) -> None:
        client = connect()
        version = client.version()
        self._engine = (
            f"{version['Platform']['Name'] if version.get('Platform') else 'docker'} {version['Version']}".strip()
        )
        reap(client)
        spec = max(specs, key=lambda spec: spec.profile.limits.memory_gib)
        cuda = spec.profile.device == "cuda"
        if cuda and not self._gpus:
            raise EnvironmentLacks("the profile wants a GPU: name those to use, --gpus 0 or --gpus 0,1")
        self.image = images.find(client, ("cuda",) if cuda else ("cpu", "host"), self._named)
        if (folder := self.image.environment) and not Path(folder).is_dir():
            raise EnvironmentLacks(
                f"{self.image.tag} needs the environment {folder}, which is not there; run make setup"
            )
        self._probe(client, spec)

    def _probe(self, client: Any, spec: RunSpec) -> None:
        """Starts a container as a run's would be: the engine's promises, the libraries inside, the GPUs."""
        from docker.errors import APIError

        assert self.image
        libraries = [name for name in versions() if name != "python"]
        ask = f"import json\nfrom importlib import metadata as m\nprint(json.dumps({{n: m.version(n) for n in {libraries}}}))"
        with tempfile.TemporaryDirectory(prefix="cdbench-probe-") as name:
            box = _box(Path(name), spec)
            options = self._options("probe", spec, box, Path(name), tuple(self._gpus[:1]))
            container = client.containers.create(self.image.id, [self.image.python, "-c", ask], **options)
            try:
                _require_promises(container, self._promises(spec, tuple(self._gpus[:1])))
                container.start()
                code = container.wait(timeout=120)["StatusCode"]
                told = container.logs(stdout=True, stderr=False).decode()
                if code != 0:
                    raise EnvironmentLacks(f"{self.image.tag} cannot run Python: {container.logs().decode()[-300:]}")
            except APIError as error:
                raise EnvironmentLacks(_engine_words(error)) from None
            finally:
                container.remove(force=True, v=True)
        inside = json.loads(told)
        wrong = [
            f"{name} {inside.get(name)} inside, {own} outside"
            for name, own in versions().items()
            if name in inside and _public(inside[name]) != _public(own)
        ]
        if wrong:
            raise EnvironmentLacks(
                f"{self.image.tag} has other libraries ({'; '.join(wrong)}): cdbench build makes a new one"
            )

    def start(self, step: str, folder: Path, store: Path, spec: RunSpec) -> Handle:
        assert self.image, "require() comes first"
        gpus: tuple[str, ...] = ()
        if spec.profile.device == "cuda":
            gpus = (self._free.pop(0),)
        box = _box(folder, spec, step)
        store.mkdir(parents=True, exist_ok=True)
        options = self._options(step, spec, box, store, gpus)
        command = [self.image.python, "-m", "cdbench.execute", step, "/step", "/store", "/step/store"]
        promises = self._promises(spec, gpus)
        return DockerHandle(_Job(step, folder, box, store, self.image.id, command, options, promises), self._release)

    def _release(self, gpus: tuple[str, ...]) -> None:
        self._free += gpus

    def describe(self, spec: RunSpec) -> dict[str, Any] | None:
        assert self.image
        promises = asdict(self._promises(spec, ()))
        del promises["gpus"]
        return {
            "runner": self.name,
            "engine": self._engine,
            "image": self.image.tag,
            "image_id": self.image.id,
            "base": self.image.base,
            "lock": self.image.lock,
            "recipe": self.image.recipe,
            "network": "none",
            "user": _user(),
            "limits": {**promises, "minutes": spec.profile.timeout_minutes},
        }

    def _promises(self, spec: RunSpec, gpus: tuple[str, ...]) -> Promises:
        limits = spec.profile.limits
        sizes = [int(value * _GIB) for value in (limits.memory_gib, limits.output_gib, limits.scratch_gib)]
        return Promises(sizes[0], spec.profile.threads, limits.processes, sizes[1], sizes[2], gpus)

    def _options(self, step: str, spec: RunSpec, box: Path, store: Path, gpus: tuple[str, ...]) -> dict[str, Any]:
        from docker.types import DeviceRequest, LogConfig, Ulimit

        promises = self._promises(spec, gpus)
        assert self.image
        requested = [DeviceRequest(device_ids=list(gpus), capabilities=[["gpu"]])] if gpus else None
        deadline = int(time.time() + spec.profile.timeout_minutes * 60 + _SPARE_SECONDS)
        return {
            "labels": {OWNER: owner(), DEADLINE: str(deadline), STEP: step},
            "user": _user(),
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
            ],
            "mounts": self._mounts(step, spec, box, store),
            "environment": self._environment(spec, gpus),
            "device_requests": requested,
            "working_dir": "/step",
            "stdin_open": True,
            "log_config": LogConfig(type="json-file", config={"max-size": "1m"})
            if step == "probe"
            else LogConfig(type="none"),
        }

    def _mounts(self, step: str, spec: RunSpec, box: Path, store: Path) -> list[Any]:
        # mounts, not volumes: a missing source is an error instead of a new folder that belongs to root.
        mounts = [_mount("/step", box, write=True)]
        assert self.image
        if self.image.environment:
            mounts.append(_mount(self.image.environment, Path(self.image.environment)))
        if step == "probe":
            return mounts
        mounts.append(_mount("/opt/cdbench/cdbench", _PACKAGE))
        kinds = ["tasks"] if step == "evaluate" else ["tasks", "methods"]
        for i, root in enumerate(_plugin_roots()):
            mounts += [_mount(f"/opt/plugins/{i}/{kind}", root / kind) for kind in kinds if (root / kind).is_dir()]
        if step == "train":
            mounts += [_mount(f"/store/{kind}", store / kind) for kind in TRAINING_KINDS if (store / kind).is_dir()]
        else:
            mounts.append(_mount("/store", store))
        for name in _GIVEN.get(step, ()):
            if (box.parent / name).is_file():
                mounts.append(_mount(f"/step/{name}", box.parent / name))
        return mounts + _model_mounts(spec)

    def _environment(self, spec: RunSpec, gpus: tuple[str, ...]) -> dict[str, str]:
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
            "CDBENCH_PLUGINS": os.pathsep.join(f"/opt/plugins/{i}" for i in range(len(_plugin_roots()))),
            HELD_BY_STDIN: "1",
        }
        return values | ({GPUS: str(len(gpus))} if gpus else {})


@dataclass(frozen=True)
class _Job:
    """One container to be."""

    step: str
    folder: Path
    box: Path
    store: Path
    image: str
    command: list[str]
    options: dict[str, Any]
    promises: Promises


class DockerHandle(Handle):
    """A container under way, watched by a thread of its own."""

    def __init__(self, job: _Job, release: Any) -> None:
        self._job, self._release = job, release
        self.folder = job.box
        self._end: End | None = None
        self._stop = threading.Event()
        self._readable, self._writable = os.pipe()
        self._thread = threading.Thread(target=self._watch, name=f"cdbench-{job.step}")
        self._thread.start()

    @property
    def waitable(self) -> int:
        return self._readable

    def ended(self) -> End | None:
        return self._end

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        from docker.errors import DockerException
        from requests.exceptions import RequestException

        try:
            end = self._run()
        except (DockerException, RequestException) as error:
            end = End(1, "infra", f"the container engine failed: {_first_line(error)}")
        except CdbenchError as error:
            end = End(1, "infra" if isinstance(error, EnvironmentLacks) else "refused", str(error))
        except Exception as error:  # whatever it is must reach the record, not end in a thread
            end = End(1, "infra", f"the runner failed: {type(error).__name__}: {error}")
        self._release(self._job.promises.gpus)
        self._end = end
        os.close(self._writable)

    def _run(self) -> End:
        job = self._job
        client = connect()
        container = client.containers.create(job.image, job.command, **job.options)
        writer = None
        try:
            _require_promises(container, job.promises)
            # Before start: `logs` loses what was rotated away.
            stdin = container.attach_socket(params={"stdin": 1, "stream": 1})
            writer = _copy_logs(container, job)
            container.start()
            end = self._wait(client, container)
            stdin.close()
        finally:
            with contextlib.suppress(Exception):  # the engine may be gone; the next start removes it by its label
                container.remove(force=True, v=True)
            if writer:
                writer.join(_GRACE_SECONDS)
        return self._harvest(end)

    def _wait(self, client: Any, container: Any) -> End:
        """Until it ends, is stopped, or writes too much."""
        from requests.exceptions import ConnectionError, ReadTimeout

        began, gone = time.time(), None
        while True:
            try:
                container.wait(timeout=1)
                break
            except (ReadTimeout, ConnectionError) as error:
                if self._stop.is_set():
                    container.stop(timeout=_GRACE_SECONDS)
                    return End(130)
                if isinstance(error, ConnectionError) and "timed out" not in str(error).lower():
                    gone = gone or time.monotonic()
                    if time.monotonic() - gone > _ENGINE_SECONDS or not _answers(client):
                        return End(1, "infra", "the container engine went away in the middle of the step")
                if (size := _size(self._job.box)) > self._job.promises.output:
                    container.kill()
                    return End(1, "refused", f"left {size / _GIB:.2f} GiB of files; limits.output_gib allows less")
        container.reload()
        state = container.attrs["State"]
        code = int(state["ExitCode"])
        if state["OOMKilled"]:  # also when only a child was killed and the step went on
            allowed = self._job.promises.memory / _GIB
            return End(code, "oom", f"needed more than the {allowed:g} GiB of limits.memory_gib")
        if code == 137 and _killed_from_outside(client, container.id, began):
            return End(code, "infra", "the container was killed from outside")
        return End(code if code < 128 else 128 - code)

    def _harvest(self, end: End) -> End:
        """Takes what the step may leave. A refusal of the harvest outranks how the step ended."""
        job = self._job
        given = _GIVEN.get(job.step, ())
        try:
            for name in (*_LEAVES.get(job.step, ()), failure_file(job.step), progress_file(job.step)):
                if name not in given:
                    _take(job.box / name, job.folder / name, job.promises.output if name in _TENSORS else _SMALL)
            if job.step != "train" and end.code == 0 and (job.box / "store").is_dir():
                with explained(job.store, "the store"):
                    Store(job.store).adopt(job.box / "store")
        except NotPlain as error:
            return End(1, "refused", str(error))
        finally:
            shutil.rmtree(job.box, ignore_errors=True)
        return end


def _plugin_roots() -> list[Path]:
    """Where plug-ins lie, but for a wheel's own copies, which come with the package."""
    return [root for root in plugins.roots() if _PACKAGE not in root.parents]


def owner() -> str:
    """host:pid:start time of this process; a pid alone may be another process tomorrow."""
    return f"{socket.gethostname()}:{os.getpid()}:{_start_time(os.getpid())}"


def _start_time(pid: int) -> str | None:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[19]
    except OSError:
        return None


def _is_alive(label: str) -> bool:
    host, pid, start = label.rsplit(":", 2)
    return host != socket.gethostname() or _start_time(int(pid)) == start


def reap(client: Any) -> int:
    """Removes containers whose harness is gone or whose deadline has passed; how many."""
    from docker.errors import NotFound

    removed = 0
    for container in client.containers.list(all=True, filters={"label": OWNER}, ignore_removed=True):
        labels = container.labels
        if not _is_alive(labels[OWNER]) or time.time() > float(labels.get(DEADLINE, "inf")):
            with contextlib.suppress(NotFound):
                container.remove(force=True, v=True)
                removed += 1
    return removed


def _user() -> str:
    """Nobody in particular where the harness is root, else whoever runs it: then the files that a step leaves are theirs."""
    return f"{_USER}:{_USER}" if os.getuid() == 0 else f"{os.getuid()}:{os.getgid()}"


def _box(folder: Path, spec: RunSpec, step: str = "probe") -> Path:
    """A fresh folder for one step, with its spec in it and what it goes on from."""
    box = folder / f"box-{step}"
    with explained(box, "the run"):
        shutil.rmtree(box, ignore_errors=True)
        box.mkdir(parents=True)
        (box / "spec.json").write_text(spec.model_dump_json(indent=1))
        for name in ("checkpoint.pt", "history.jsonl") if step == "train" else ():
            if (folder / name).is_file():
                shutil.copyfile(folder / name, box / name)
        for name in (failure_file(step), progress_file(step)):
            (folder / name).unlink(missing_ok=True)  # of an earlier try
        if os.getuid() == 0:
            for path in (box, *box.iterdir()):
                os.chown(path, _USER, _USER)
    return box


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


def _require_promises(container: Any, promises: Promises) -> None:
    container.reload()
    if broken := promises.broken(container.attrs["HostConfig"]):
        raise EnvironmentLacks(f"the container engine did not accept: {', '.join(broken)}; nothing was started")


def _copy_logs(container: Any, job: _Job) -> threading.Thread:
    stream = container.attach(stdout=True, stderr=True, stream=True, demux=True)
    paths = [job.folder / log_file(job.step, name) for name in ("stdout", "stderr")]

    def copy() -> None:
        from requests.exceptions import RequestException

        with paths[0].open("wb") as out, paths[1].open("wb") as err, contextlib.suppress(RequestException, OSError):
            for parts in stream:
                for part, file in zip(parts, (out, err), strict=True):
                    if part:
                        file.write(part)
                        file.flush()

    thread = threading.Thread(target=copy, daemon=True)
    thread.start()
    return thread


def _size(folder: Path) -> int:
    """Bytes on disk below a folder that somebody is writing to."""
    total = 0
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            with contextlib.suppress(OSError):
                total += 4096 + entry.stat(follow_symlinks=False).st_blocks * 512
                if entry.is_dir(follow_symlinks=False):
                    total += _size(Path(entry.path))
    return total


def _answers(client: Any) -> bool:
    try:
        return bool(client.ping())
    except Exception:  # whatever it raises: it does not answer
        return False


def _killed_from_outside(client: Any, container: str, since: float) -> bool:
    """Whether the engine was told to kill it: a process that kills itself leaves the same exit code."""
    events = client.api.events(
        since=int(since), until=int(time.time()) + 1, filters={"container": container, "event": "kill"}, decode=True
    )
    return any(True for _ in events)


class NotPlain(CdbenchError):
    """A step left something else than a plain file of a sane size."""


def _take(source: Path, target: Path, limit: int) -> None:
    """Moves a file out of a folder that a method could write to."""
    try:
        found = source.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1:
        raise NotPlain(f"{source.name} is a {_kind(found.st_mode)}; only plain files are taken")
    if found.st_size > limit:
        raise NotPlain(f"{source.name} has {found.st_size / _GIB:.2f} GiB, more than the {limit / _GIB:.2f} allowed")
    if os.getuid() == 0:
        os.chown(source, 0, 0)
    source.chmod(0o644)
    with explained(target, "the run"):
        os.replace(source, target)


def _kind(mode: int) -> str:
    kinds = {stat.S_IFLNK: "symbolic link", stat.S_IFIFO: "pipe", stat.S_IFDIR: "folder", stat.S_IFSOCK: "socket"}
    return kinds.get(stat.S_IFMT(mode), "hard link" if stat.S_ISREG(mode) else "device")


def _public(version: str) -> str:
    """2.13.0+cpu and 2.13.0 are two builds of one version."""
    return version.partition("+")[0]


def _engine_words(error: Any) -> str:
    words = str(error.explanation or error)
    if "could not select device driver" in words or "nvidia" in words.lower():
        return (
            f"the container engine gives no GPU ({words}): install the NVIDIA container toolkit and restart the engine"
        )
    return f"the container engine cannot start a container: {words}"


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
