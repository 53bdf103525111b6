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
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cdbench import plugins
from cdbench.config import FolderModel, HubModel, Profile, RunSpec
from cdbench.containers import images
from cdbench.containers.engine import address, connect
from cdbench.containers.images import Image
from cdbench.errors import CdbenchError, EnvironmentLacks, first_line
from cdbench.files import explained
from cdbench.provenance import versions
from cdbench.record import GPUS, PREPARED, WAIT, failure_file, log_file, progress_file
from cdbench.requirements import hub_snapshot
from cdbench.runners import End, Handle, Runner, WatchedHandle
from cdbench.store import TRAINING_KINDS, Store

OWNER, DEADLINE, KIND = "cdbench.owner", "cdbench.deadline", "cdbench.kind"
"""Labels of a container: who made it, when anybody may remove it, what it is for."""
_PACKAGE = Path(plugins.__file__).resolve().parents[1]
_USER = 10001
_GRACE_SECONDS = 5
_SPARE_SECONDS = 120
_GIB = 1 << 30
_PRINTED_BYTES = 256 << 20
"""What a step may print."""
_LEAST_FREE = 512 << 20
_SMALL = 64 << 20
"""Bytes that a file other than tensors may have."""
_LEAVES: dict[str, tuple[str, ...]] = {
    "circuits": (PREPARED,),
    # The outcome last: where it is, the rest is.
    "train": ("history.jsonl", "student.safetensors", "masks.safetensors", "outcome.json"),
    "evaluate": ("metrics.json", "predictions.jsonl"),
}
_UNFINISHED = ("history.jsonl", "checkpoint.pt")
"""What is worth keeping of a step that did not come to its end."""
_TENSORS = ("student.safetensors", "masks.safetensors", "checkpoint.pt")
_GIVEN = {"train": ("checkpoint.pt", "history.jsonl"), "evaluate": ("student.safetensors", "masks.safetensors")}
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
            "no new privileges": any("no-new-privileges" in option for option in host.get("SecurityOpt") or []),
            "not privileged": not host["Privileged"],
            "memory": host["Memory"] == self.memory and host["MemorySwap"] == self.memory,
            "processors": host["NanoCpus"] == int(self.processors * 1e9),
            "processes": host["PidsLimit"] == self.processes,
            "file size": sizes.get("fsize") == self.output,
            "scratch": f"size={self.scratch}" in (host.get("Tmpfs") or {}).get("/tmp", ""),
            "user": attrs["Config"]["User"] == self.user,
            "read-only mounts": {m["Destination"] for m in attrs["Mounts"] if m["RW"]} <= {"/step", "/tmp"},
            "GPUs": requested == list(self.gpus),
        }
        return [name for name, holds in kept.items() if not holds]


class DockerRunner(Runner):
    """One container a step.

    A container takes seconds to import torch and the harness, so one of each kind is started ahead and waits: the next step of
    that kind begins at once. It belongs to nobody before, and to one step afterwards.
    """

    name = "docker"
    isolated = True

    @property
    def capacity(self) -> int | None:
        return len(self._gpus) or None

    def __init__(self, image: str | None = None, gpus: Sequence[str] = ()) -> None:
        self._named, self._gpus = image, list(gpus)
        self._free = list(gpus)
        self._ahead: dict[str, _Container] = {}
        self._scratch = Path()
        self.image: Image | None = None
        self._engine = ""

    def require(self, specs: list[RunSpec], scratch: Path) -> None:
        from docker.errors import DockerException
        from requests.exceptions import RequestException

        self.close()
        try:
            with closing(connect()) as client:
                reap(client)
                if not self.image:  # the runs folder is ours alone: what lies there was left by a harness that died
                    _remove(scratch)
                self._scratch = scratch
                self._require(client, specs)
        except (DockerException, RequestException, json.JSONDecodeError) as error:
            raise EnvironmentLacks(f"the container engine at {address()} fails: {first_line(error)}") from None

    def _require(self, client: Any, specs: list[RunSpec]) -> None:
        version = client.version()
        self._engine = f"{(version.get('Platform') or {}).get('Name', '')} {version['Version']}".strip()
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
        """Starts a container as a step's would be: the engine's promises, the libraries inside, the GPUs."""
        from docker.errors import APIError

        assert self.image
        libraries = [name for name in versions() if name != "python"]
        ask = f"import json\nfrom importlib import metadata as m\nprint(json.dumps({{n: m.version(n) for n in {libraries}}}))"
        gpus = tuple(self._gpus[:1])
        box = _Box(self._scratch)
        options = self._options("probe", spec, box.path, None, gpus)
        container = None
        try:
            container = client.containers.create(self.image.id, [self.image.python, "-c", ask], **options)
            _require_promises(container, self._promises(spec, gpus))
            container.start()
            code = container.wait(timeout=120)["StatusCode"]
            told = container.logs(stdout=True, stderr=False).decode()
            if code != 0:
                raise EnvironmentLacks(f"{self.image.tag} cannot run Python: {container.logs().decode()[-300:]}")
        except APIError as error:
            raise EnvironmentLacks(_engine_words(error)) from None
        finally:
            if container:
                container.remove(force=True, v=True)
            box.remove()
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
        gpus = (self._free.pop(0),) if spec.profile.device == "cuda" else ()
        kind = _kind_of(step)
        container = self._ahead.pop(kind, None)
        if container is None or not container.fits(spec):
            if container:
                container.remove()
            container = self._open(kind, spec, store, gpus)
        return DockerHandle(step, folder, store, container, lambda: self._free.extend(gpus))

    def expect(self, steps: Collection[str], store: Path, spec: RunSpec) -> None:
        if spec.profile.device == "cuda":
            return  # one that waits would hold a GPU
        for kind in {_kind_of(step) for step in steps} - set(self._ahead):
            self._ahead[kind] = self._open(kind, spec, store, ())

    def _open(self, kind: str, spec: RunSpec, store: Path, gpus: tuple[str, ...]) -> "_Container":
        assert self.image, "require() comes first"
        box = _Box(self._scratch)
        with explained(store, "the store"):
            for name in TRAINING_KINDS:
                (store / name).mkdir(parents=True, exist_ok=True)
        command = [self.image.python, "-m", "cdbench.execute", WAIT, "/step", "/store", "/step/store"]
        options = self._options(kind, spec, box.path, store, gpus)
        return _Container(self.image.id, command, options, self._promises(spec, gpus), spec, box)

    def close(self) -> None:
        for container in self._ahead.values():
            container.remove()
        self._ahead.clear()

    def describe(self, spec: RunSpec) -> dict[str, Any] | None:
        assert self.image
        promises = asdict(self._promises(spec, ()))
        del promises["gpus"], promises["user"]
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
        memory, output, scratch = (
            int(value * _GIB) for value in (limits.memory_gib, limits.output_gib, limits.scratch_gib)
        )
        return Promises(memory, spec.profile.threads, limits.processes, output, scratch, _user(), gpus)

    def _options(
        self, kind: str, spec: RunSpec, box: Path, store: Path | None, gpus: tuple[str, ...]
    ) -> dict[str, Any]:
        from docker.types import DeviceRequest, LogConfig, Ulimit

        promises = self._promises(spec, gpus)
        requested = [DeviceRequest(device_ids=list(gpus), capabilities=[["gpu"]])] if gpus else None
        # It may wait for two steps of that length before it begins its own.
        deadline = int(time.time() + 3 * spec.profile.timeout_minutes * 60 + _SPARE_SECONDS)
        # What a step prints is read as it comes: `logs` loses what was rotated away.
        log = LogConfig(type="json-file" if store is None else "none")
        return {
            "labels": {OWNER: owner(), DEADLINE: str(deadline), KIND: kind},
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
                Ulimit(name="nofile", soft=4096, hard=4096),
            ],
            "mounts": self._mounts(kind, spec, box, store),
            "environment": self._environment(kind, spec, gpus),
            "device_requests": requested,
            "working_dir": "/step",
            "stdin_open": True,
            "log_config": log,
        }

    def _mounts(self, kind: str, spec: RunSpec, box: Path, store: Path | None) -> list[Any]:
        # mounts, not volumes: a missing source is an error instead of a new folder that belongs to root.
        mounts = [_mount("/step", box, write=True)]
        assert self.image
        if self.image.environment:
            mounts.append(_mount(self.image.environment, Path(self.image.environment)))
        if store is None:
            return mounts
        mounts.append(_mount("/opt/cdbench/cdbench", _PACKAGE))
        mounts += [_mount(target, source) for target, source in _plugin_folders(kind).items()]
        if kind == "train":
            mounts += [_mount(f"/store/{name}", store / name) for name in TRAINING_KINDS]
        else:
            mounts.append(_mount("/store", store))
        return mounts + _model_mounts(spec)

    def _environment(self, kind: str, spec: RunSpec, gpus: tuple[str, ...]) -> dict[str, str]:
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
            "CDBENCH_PLUGINS": os.pathsep.join(dict.fromkeys(str(Path(name).parent) for name in _plugin_folders(kind))),
        }
        return values | ({GPUS: str(len(gpus))} if gpus else {})


class _Box:
    """A fresh folder that a container can write to; removed by `remove`."""

    def __init__(self, scratch: Path) -> None:
        with explained(scratch, "the runs folder"):
            scratch.mkdir(parents=True, exist_ok=True)
            self.path = Path(tempfile.mkdtemp(dir=scratch))
        self.give(self.path)

    def give(self, path: Path) -> None:
        """Lets the container's user have a file or folder."""
        if os.getuid() == 0:
            os.chown(path, _USER, _USER)

    def remove(self) -> None:
        """Removes it, whatever is in it."""
        _remove(self.path)


class _Container:
    """A container that waits for its step, made by a thread of its own (half a second)."""

    def __init__(
        self, image: str, command: list[str], options: dict[str, Any], promises: Promises, spec: RunSpec, box: _Box
    ) -> None:
        self.promises, self.box = promises, box
        self.printed = 0
        self._profile = spec.profile
        self._made: Any = None
        self._client: Any = None
        self._attached: Any = None
        self._error: Exception | None = None
        self._gone = False
        self.began = time.time()
        self._thread = threading.Thread(
            target=self._make, args=(image, command, options), name="cdbench-container", daemon=True
        )
        self._thread.start()

    def fits(self, spec: RunSpec) -> bool:
        """Whether it was made for such a spec, and still waits."""
        if _container_of(spec.profile) != _container_of(self._profile):
            return False
        with contextlib.suppress(Exception):  # whatever is wrong with it: it is of no use
            container = self.get()
            container.reload()
            return bool(container.status == "running")
        return False

    def _make(self, image: str, command: list[str], options: dict[str, Any]) -> None:
        try:
            self._client = connect()
            self._made = self._client.containers.create(image, command, **options)
            _require_promises(self._made, self.promises)
            self._attached = self._made.attach_socket(params={"stdin": 1, "stdout": 1, "stderr": 1, "stream": 1})
            self._made.start()
        except Exception as error:  # it is told where the container is wanted
            self._error = error

    def get(self) -> Any:
        """The engine's container.

        Raises:
            Exception: what kept it from being made.
        """
        self._thread.join()
        if self._error:
            raise self._error
        return self._made

    def begin(self, step: str, logs: Sequence[Path]) -> threading.Thread:
        """Names its step to it; returns the thread that writes down what it prints."""
        from docker.utils.socket import STDOUT, frames_iter

        self.get()
        self.began = time.time()

        def copy() -> None:
            with logs[0].open("wb") as out, logs[1].open("wb") as err, contextlib.suppress(OSError, ValueError):
                for stream, data in frames_iter(self._attached, tty=False):
                    self.printed += len(data)
                    if self.printed <= _PRINTED_BYTES:  # read on, or the step would wait for somebody to read
                        file = out if stream == STDOUT else err
                        file.write(data)
                        file.flush()

        thread = threading.Thread(target=copy, name="cdbench-logs", daemon=True)
        thread.start()
        getattr(self._attached, "_sock", self._attached).sendall(f"{step}\n".encode())
        return thread

    def end(self) -> bool:
        """Ends and removes it; whether it is certainly gone."""
        from docker.errors import NotFound

        if self._gone or not self._made:
            return True
        try:
            self._made.remove(force=True, v=True)
        except NotFound:
            self._gone = True
        except Exception:  # the engine may be away; the next start removes it by its label
            return False
        self._gone = True
        return True

    def remove(self) -> None:
        """Ends and removes it; its folder too."""
        self._thread.join()
        self.end()
        for open_one in (getattr(self._attached, "_sock", None), self._attached, self._client):
            with contextlib.suppress(OSError):
                if open_one:
                    open_one.close()
        self.box.remove()


class DockerHandle(WatchedHandle):
    """A step in its container."""

    def __init__(
        self, step: str, folder: Path, store: Path, container: _Container, release: Callable[[], None]
    ) -> None:
        super().__init__(container.box.path, f"cdbench-{step}")
        self._step, self._target, self._store = step, folder, store
        self._container, self._release = container, release
        self._box = container.box
        self._stop = threading.Event()
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()

    def wait(self) -> End:
        from docker.errors import DockerException
        from requests.exceptions import RequestException

        try:
            return self._run()
        except (DockerException, RequestException) as error:
            return End(1, "infra", f"the container engine failed: {first_line(error)}")
        except CdbenchError as error:
            return End(1, "infra" if isinstance(error, EnvironmentLacks) else "refused", str(error))
        except Exception as error:  # whatever it is must reach the record, not end in a thread
            return End(1, "infra", f"the runner failed: {type(error).__name__}: {error}")
        finally:
            self._release()

    def _run(self) -> End:
        try:
            self._furnish()
            writer = self._container.begin(
                self._step,
                [self._target / log_file(self._step, "stdout"), self._target / log_file(self._step, "stderr")],
            )
            end = self._wait(self._container.get())
            writer.join(_GRACE_SECONDS)  # it has all when the container has ended
            # Taken only when nobody is left who could still write.
            return self._harvest(end) if self._container.end() else end
        finally:
            self._container.remove()

    def _furnish(self) -> None:
        """Puts into its folder what the step goes on from."""
        for name in (failure_file(self._step), progress_file(self._step)):
            (self._target / name).unlink(missing_ok=True)  # of an earlier try
        for name in ("spec.json", *_GIVEN.get(self._step, ())):
            if (self._target / name).is_file():
                with explained(self._box.path, "the run"):
                    shutil.copyfile(self._target / name, self._box.path / name)
                self._box.give(self._box.path / name)

    def _wait(self, container: Any) -> End:
        """Until it ends, is stopped, or writes too much."""
        from requests.exceptions import ConnectionError, ReadTimeout

        client = container.client
        while True:
            try:
                container.wait(timeout=1)
                break
            except (ReadTimeout, ConnectionError):
                if self._stop.is_set():
                    container.stop(timeout=_GRACE_SECONDS)
                    return End(130)
                if not _answers(client):
                    return End(1, "infra", "the container engine went away in the middle of the step")
                if excess := self._excess():
                    container.kill()
                    return excess
        container.reload()
        state = container.attrs["State"]
        code = int(state["ExitCode"])
        if state["OOMKilled"]:  # also when only a child was killed and the step went on
            allowed = self._container.promises.memory / _GIB
            return End(code, "oom", f"needed more than the {allowed:g} GiB of limits.memory_gib")
        if code == 137 and _killed_from_outside(client, container.id, self._container.began):
            return End(code, "infra", "the container was killed from outside")
        if code == 137:
            return End(-9, "failed", "killed by signal 9, sent neither from outside nor for want of memory")
        return End(code if code < 128 else 128 - code)

    def _excess(self) -> End | None:
        """What it takes too much of, that the engine does not watch."""
        # A single file ends at the limit, with an error that names it; this is for many.
        if (size := _size(self._box.path)) > 1.1 * self._container.promises.output:
            return End(1, "refused", f"left {size / _GIB:.2f} GiB of files; limits.output_gib allows less")
        if self._container.printed > _PRINTED_BYTES:
            return End(1, "refused", f"printed more than {_PRINTED_BYTES >> 20} MiB")
        if shutil.disk_usage(self._box.path).free < _LEAST_FREE:
            return End(1, "infra", f"less than {_LEAST_FREE >> 20} MiB are free at {self._box.path.parent}")
        return None

    def _harvest(self, end: End) -> End:
        """Takes what the step may leave. A refusal of the harvest outranks how the step ended."""
        box = self._box.path
        try:
            left = _LEAVES.get(self._step, ()) if end == End(0) else _UNFINISHED
            for name in (*left, failure_file(self._step), progress_file(self._step)):
                limit = self._container.promises.output if name in _TENSORS else _SMALL
                _take(box / name, self._target / name, limit)
        except NotPlain as error:
            (self._target / "outcome.json").unlink(missing_ok=True)
            return End(1, "refused", str(error))
        if self._step != "train" and end.code == 0 and (box / "store").is_dir():
            with explained(self._store, "the store"):
                Store(self._store).adopt(box / "store")
        return end


def _kind_of(step: str) -> str:
    """Steps that see the same can run in each other's containers."""
    return step if step in _GIVEN else "prepare"


def _plugin_folders(kind: str) -> dict[str, Path]:
    """Folder in the container -> folder of plug-ins here, but for a wheel's own, which come with the package.

    The evaluator imports none; it has the tasks because the address of a split is a hash of their files.
    """
    wanted = ("tasks",) if kind == "evaluate" else ("tasks", "methods")
    roots = [root for root in plugins.roots() if _PACKAGE not in root.parents]
    found = {f"/opt/plugins/{i}/{each}": root / each for i, root in enumerate(roots) for each in wanted}
    return {target: folder for target, folder in found.items() if folder.is_dir()}


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
    from docker.errors import APIError

    removed = 0
    for container in client.containers.list(all=True, filters={"label": OWNER}, ignore_removed=True):
        labels = container.labels
        if not _is_alive(labels[OWNER]) or time.time() > float(labels.get(DEADLINE, "inf")):
            with contextlib.suppress(APIError):  # somebody else removes it too
                container.remove(force=True, v=True)
                removed += 1
    return removed


def _user() -> str:
    """Nobody in particular where the harness is root, else whoever runs it: then the files that a step leaves are theirs."""
    return f"{_USER}:{_USER}" if os.getuid() == 0 else f"{os.getuid()}:{os.getgid()}"


def _container_of(profile: Profile) -> dict[str, Any]:
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


def _require_promises(container: Any, promises: Promises) -> None:
    container.reload()
    if broken := promises.broken(container.attrs):
        raise EnvironmentLacks(f"the container engine did not accept: {', '.join(broken)}; nothing was started")


def _size(folder: Path) -> int:
    """Bytes on disk below a folder that somebody is writing to; du goes to any depth and follows no link."""
    told = subprocess.run(["du", "-sx", "--block-size=1", "--", folder], capture_output=True, text=True).stdout
    return int(told.split()[0]) if told else 0


def _remove(folder: Path) -> None:
    """Removes a folder that may be nested to any depth, or closed against us; rm copes with both, shutil does not."""
    if folder.exists():
        subprocess.run(["chmod", "-R", "u+rwX", "--", folder], capture_output=True)
        subprocess.run(["rm", "-rf", "--", folder], capture_output=True)


def _answers(client: Any) -> bool:
    try:
        return bool(client.ping())
    except Exception:  # whatever it raises: it does not answer
        return False


def _killed_from_outside(client: Any, container: str, since: float) -> bool:
    """Whether the engine was told to kill it: a process that kills itself leaves the same exit code."""
    filters = {"container": container, "event": "kill"}
    with closing(
        client.api.events(since=int(since), until=int(time.time()) + 1, filters=filters, decode=True)
    ) as events:
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
    handle = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        if os.getuid() == 0:
            os.fchown(handle, 0, 0)
        os.fchmod(handle, 0o644)
    finally:
        os.close(handle)
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
