"""Steps in containers: without network, on a read-only root, as nobody in particular, within limits.

What a container is given is in `containers.options`. When a step has ended, the files that it may leave are taken from its folder
(`containers.harvest`); nothing else is. New artefacts are adopted into the store from steps that run no method.
"""

import json
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from cdbench.config import RunSpec
from cdbench.containers import AGAIN, images
from cdbench.containers.engine import address, connect
from cdbench.containers.harvest import RESUMED, Kept, NotPlain, harvest, keep
from cdbench.containers.images import Image
from cdbench.containers.options import GIB, View, options_of, promises_of, require_promises, user
from cdbench.containers.waiting import PRINTED_BYTES, Box, WaitingContainer, clear, held_by_deleted, reap
from cdbench.errors import CdbenchError, EnvironmentLacks, first_line
from cdbench.files import explained, one_line
from cdbench.provenance import versions
from cdbench.record import WANTED, Status, failure_file, log_file, progress_file
from cdbench.runners import End, Handle, Runner, WatchedHandle
from cdbench.store import OPEN_KINDS, OWN_KINDS, Store

_GRACE_SECONDS = 5
_LEAST_FREE = 512 << 20
_MOST_FILES = 20_000
"""Files and folders that a step may leave: empty ones take no space, and yet a file system's last place for files."""
_KEEP_SECONDS = 30.0
_KEEP_SHARE = 20
"""Copies of checkpoints take at most one second in so many."""
_GIVEN = {
    "signals": (WANTED,),
    "train": RESUMED,
    "evaluate": ("student.safetensors", "masks.safetensors"),
}
"""What a step is given besides its spec."""


class DockerRunner(Runner):
    """One container a training, which belongs to nobody before and is gone afterwards; all other steps take turns in theirs.

    A container takes seconds to import torch and the harness, so one of each kind is started ahead and waits: the next step of
    that kind begins at once. A step that runs no method and ended well leaves its container to the next one of its kind, which
    is a process of its own there (`runners.inside`) with an empty folder.
    """

    name = "docker"
    isolated = True

    @property
    def capacity(self) -> int | None:
        return len(self._gpus) or None

    def __init__(self, image: str | None = None, gpus: Sequence[str] = ()) -> None:
        self._named, self._gpus = image, list(gpus)
        self._free = list(gpus)
        self._ahead: dict[str, list[WaitingContainer]] = {}
        self._busy: set[WaitingContainer] = set()
        self._lock = threading.Lock()
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
                if not self.image:  # the runs folder is ours alone: what is there was left by a harness that died
                    clear(client, scratch)
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
        self.image = images.find(client, images.flavours(cuda), self._named)
        if (folder := self.image.environment) and not Path(folder).is_dir():
            raise EnvironmentLacks(
                f"{self.image.tag} needs the environment {folder}, which is not there; run make setup"
            )
        self._probe(client, spec)

    def _probe(self, client: Any, spec: RunSpec) -> None:
        """Starts containers as steps' would be: the engine's promises, the libraries inside, each GPU by itself."""
        assert self.image
        libraries = [name for name in versions() if name != "python"]
        each: list[tuple[str, ...]] = [(gpu,) for gpu in self._gpus]
        for gpus in each or [()]:
            visible, inside = self._asked_inside(client, spec, gpus, libraries)
            if visible < len(gpus):  # an engine may take the order and give none; a card may have fallen off the bus
                raise EnvironmentLacks(
                    f"GPU {gpus[0]} was asked for, and {visible} GPUs are visible in its container: see nvidia-smi, and name "
                    "those that work with --gpus"
                )
            wrong = [
                f"{name} {inside.get(name)} inside, {own} outside"
                for name, own in versions().items()
                if name in inside and images.public(inside[name]) != images.public(own)
            ]
            if wrong:
                raise EnvironmentLacks(
                    f"{self.image.tag} has other libraries ({'; '.join(wrong)}): cdbench build makes a new one"
                )

    def _asked_inside(
        self, client: Any, spec: RunSpec, gpus: tuple[str, ...], libraries: Sequence[str]
    ) -> tuple[int, dict[str, str]]:
        """How many GPUs a container sees, and which versions of libraries it has."""
        from docker.errors import APIError

        assert self.image
        ask = "import json\nfrom importlib import metadata as m\n"
        ask += "import torch\ngpus = torch.cuda.device_count()\n" if gpus else "gpus = 0\n"  # torch takes seconds
        ask += f"print(json.dumps([gpus, {{n: m.version(n) for n in {libraries}}}]))"
        box = Box(self._scratch)
        options = options_of(self.image, "probe", spec, box.path, None, gpus)
        container = None
        try:
            container = client.containers.create(self.image.id, [self.image.python, "-c", ask], **options)
            require_promises(container, promises_of(spec, gpus))
            container.start()
            code = container.wait(timeout=120)["StatusCode"]
            told = container.logs(stdout=True, stderr=False).decode().splitlines()
            if code != 0 or not told:
                raise EnvironmentLacks(f"{self.image.tag} cannot run Python: {container.logs().decode()[-300:]}")
        except APIError as error:
            raise EnvironmentLacks(_engine_words(error)) from None
        finally:
            if container:
                container.remove(force=True, v=True)
            box.remove()
        visible, inside = json.loads(told[-1])
        return visible, inside

    def start(self, step: str, folder: Path, store: Path, spec: RunSpec, shared: Collection[str] = ()) -> Handle:
        gpus = (self._free.pop(0),) if spec.profile.device == "cuda" else ()
        kind, container = _kind_of(step), None
        view = View(store, _seen_by(kind, shared))
        while container is None and self._ahead.get(kind):
            container = self._ahead[kind].pop()
            if not container.fits(spec, view.own):
                container.remove()
                container = None
        container = container or self._open(kind, spec, view, gpus)
        self._busy.add(container)
        return DockerHandle(step, folder, store, container, lambda: self._let_go(container, gpus))

    def _let_go(self, container: WaitingContainer, gpus: tuple[str, ...]) -> None:
        """Keeps a container that can do another step, removes any other. Called by the step's own thread.

        Of those that prepare one is kept, for signals that are asked for when all else is there.
        """
        try:
            clean = container.free and container.box.empty()  # or the next would be judged by what this one left
            with self._lock:
                waiting = self._ahead.setdefault(container.kind, [])
                kept = clean and (container.kind == "evaluate" or not waiting)
                self._busy.discard(container)  # before it is to be had: whoever takes it counts it among the busy ones
                if kept:
                    waiting.append(container)
            if not kept:
                container.remove()
        finally:
            self._free.extend(gpus)

    def expect(self, step: str, store: Path, spec: RunSpec, shared: Collection[str] = ()) -> None:
        if spec.profile.device == "cuda":
            return  # one that waits would hold a GPU
        kind = _kind_of(step)
        soon_free = any(container.again and container.kind == kind for container in list(self._busy))
        if not self._ahead.get(kind) and not soon_free:
            view = View(store, _seen_by(kind, shared))
            self._ahead.setdefault(kind, []).append(self._open(kind, spec, view, ()))

    def _open(self, kind: str, spec: RunSpec, view: View, gpus: tuple[str, ...]) -> WaitingContainer:
        assert self.image, "require() comes first"
        box = Box(self._scratch)
        with explained(view.store, "the store"):
            for name in OPEN_KINDS:
                (view.store / name).mkdir(parents=True, exist_ok=True)
        command = [self.image.python, "-m", "cdbench.runners.inside", "/step", "/store", "/step/store"]
        if kind != "train" and not gpus:  # one that waits would hold a GPU
            command.append(AGAIN)
        options = options_of(self.image, kind, spec, box.path, view, gpus) | {"command": command}
        return WaitingContainer(self.image.id, options, promises_of(spec, gpus), spec, box, view.own)

    def close(self) -> None:
        with self._lock:  # a step's own thread may be putting its container there
            waiting = [container for of_kind in self._ahead.values() for container in of_kind]
            self._ahead.clear()
        for container in waiting:
            container.remove()

    def describe(self, spec: RunSpec) -> dict[str, Any] | None:
        assert self.image
        promises = asdict(promises_of(spec, ()))
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
            "user": user(),
            "limits": {**promises, "minutes": spec.profile.timeout_minutes},
        }


class DockerHandle(WatchedHandle):
    """A step in its container."""

    def __init__(
        self, step: str, folder: Path, store: Path, container: WaitingContainer, release: Callable[[], None]
    ) -> None:
        super().__init__(container.box.path, f"cdbench-{step}")
        self._step, self._target, self._store = step, folder, store
        self._container, self._release = container, release
        self._box = container.box
        # What runs nobody's code but ours is not refused and does not fail for a method's fault.
        self._ours = step != "train"
        self._stop = threading.Event()
        self._free_at_first = shutil.disk_usage(self._box.path).free
        self._keep_at, self._kept = time.monotonic() + _KEEP_SECONDS, Kept()
        self._thread.start()

    @property
    def logs(self) -> Path:
        return self._target

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
            return End(1, "infra" if self._ours or isinstance(error, EnvironmentLacks) else "refused", str(error))
        except Exception as error:  # whatever it is must reach the record, not end in a thread
            return End(1, "infra", f"the runner failed: {type(error).__name__}: {error}")

    def _run(self) -> End:
        try:
            self._furnish()
            self._container.begin(
                self._step,
                [self._target / log_file(self._step, "stdout"), self._target / log_file(self._step, "stderr")],
            )
            begun = time.monotonic()
            end = self._wait(self._container.get())
            seconds = time.monotonic() - begun
            self._container.finish_logs(_GRACE_SECONDS)
            # Taken only when nobody is left who could still write.
            if self._container.free or self._container.end():
                return replace(self._without_a_word(self._harvest(end)), seconds=seconds)
            return (
                end
                if end.status
                else End(1, "infra", "the container could not be removed, and nothing was taken of it")
            )
        finally:
            self._release()

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
        """Until its step ends, is stopped, or writes too much."""
        client = container.client
        while not self._container.ended(1):
            if self._stop.is_set():
                container.stop(timeout=_GRACE_SECONDS)
                return End(130)
            if not _answers(client):
                return End(1, "infra", "the container engine went away in the middle of the step")
            if self._container.unheard():
                container.kill()
                return End(1, "infra", "what the step printed could not be written down, and its end not be heard")
            if excess := self._excess():
                container.kill()
                return excess
            self._keep()
        return End(0) if self._container.free else self._end_of(container)

    def _end_of(self, container: Any) -> End:
        """How a container has ended, by the engine's word."""
        container.reload()
        state = container.attrs["State"]
        code = int(state["ExitCode"])
        if state["OOMKilled"]:  # also when only a child was killed and the step went on
            allowed = self._container.promises.memory / GIB
            return End(code, "oom", f"needed more than the {allowed:g} GiB of limits.memory_gib")
        if code in (137, 143) and _killed_from_outside(container.client, container.id, self._container.asked_for):
            return End(code, "infra", "the container was killed from outside")
        if code == 137:
            status: Status = "infra" if self._ours else "failed"
            return End(-9, status, "killed by signal 9, sent neither through the engine nor for want of memory")
        if code != 0 and (full := self._is_full()):
            return full
        return End(code if code < 128 else 128 - code)

    def _without_a_word(self, end: End) -> End:
        """Of a step that is ours alone and ended badly without saying why: whatever it was, no method is to blame."""
        silent = self._ours and not end.status and end.code != 0 and not self._stop.is_set()
        if not silent or (self._target / failure_file(self._step)).is_file():
            return end
        what = f"was killed by signal {-end.code}" if end.code < 0 else f"ended with exit code {end.code}"
        return End(end.code, "infra", f"{what} without a word; see {log_file(self._step, 'stderr')}")

    def _keep(self) -> None:
        """Now and then copies a training's checkpoint out of its folder, which is lost with this process or this machine.

        Meanwhile nobody looks at the limits.
        """
        begun = time.monotonic()
        if self._step == "train" and begun >= self._keep_at:
            keep(self._box.path, self._target, self._container.promises.output, self._kept)
            took = time.monotonic() - begun
            self._keep_at = time.monotonic() + max(_KEEP_SECONDS, _KEEP_SHARE * took)

    def _excess(self) -> End | None:
        """What it takes too much of, that the engine does not watch."""
        if told := self._too_much():
            return End(1, "infra" if self._ours else "refused", told)
        return self._is_full()

    def _too_much(self) -> str:
        size, hidden = _used(self._box.path, "--block-size=1")
        if hidden:  # where the harness is not root, what cannot be listed cannot be counted
            return f"hides what it writes: {hidden}"
        # A single file ends at the limit, with an error that names it; this is for many.
        if size > 1.1 * self._container.promises.output:
            return f"left {size / GIB:.2f} GiB of files; limits.output_gib allows less"
        if _used(self._box.path, "--inodes")[0] > _MOST_FILES:
            return f"left more than {_MOST_FILES} files"
        if self._container.printed > PRINTED_BYTES:
            return f"printed more than {PRINTED_BYTES >> 20} MiB"
        if held := self._held_by_deleted():
            return f"holds {held / GIB:.2f} GiB of deleted files; limits.output_gib allows less"
        return ""

    def _held_by_deleted(self) -> int:
        """Bytes in open files that no listing shows, if they are too many.

        Looked for only where the disk has lost that much since: it asks the engine, and goes through all open files.
        """
        limit = self._container.promises.output
        if self._free_at_first - shutil.disk_usage(self._box.path).free <= limit:
            return 0
        held = held_by_deleted(self._container.get(), self._box.path)
        return held if held > 1.1 * limit else 0

    def _is_full(self) -> End | None:
        if shutil.disk_usage(self._box.path).free < _LEAST_FREE:
            return End(1, "infra", f"less than {_LEAST_FREE >> 20} MiB are free at {self._box.path.parent}")
        return None

    def _harvest(self, end: End) -> End:
        """Takes what the step may leave. A refusal of the harvest outranks how the step ended."""
        box = self._box.path
        try:
            limit = self._container.promises.output
            harvest(self._step, box, self._target, ended_well=end == End(0), limit=limit)
        except NotPlain as error:
            (self._target / "outcome.json").unlink(missing_ok=True)
            return End(1, "infra" if self._ours else "refused", str(error))
        if self._step != "train" and end.code == 0 and (box / "store").is_dir():
            with explained(self._store, "the store"):
                Store(self._store).adopt(box / "store")
        return end


def _kind_of(step: str) -> str:
    """Steps that see the same can run in each other's containers."""
    return step if step in ("train", "evaluate") else "prepare"


def _seen_by(kind: str, shared: Collection[str]) -> frozenset[str]:
    """The artefacts that a method sees of kinds of which it does not see all; none for steps that run no method."""
    if kind != "train":
        return frozenset()
    own = frozenset(name for name in shared if name.partition("/")[0] in OWN_KINDS)
    if not own:
        raise ValueError(
            "a training in a container needs the names of the artefacts that were made for its profile and task"
        )
    return own


def _used(folder: Path, of: str) -> tuple[int, str]:
    """Bytes on disk, or files, below a folder that somebody is writing to, and du's complaint where it may not look.

    du goes to any depth and follows no link. What is gone before it comes there is no complaint.
    """
    plain = os.environ | {"LC_ALL": "C"}
    done = subprocess.run(["du", "-sx", of, "--", folder], capture_output=True, env=plain)
    words = done.stderr.decode(errors="replace").splitlines()
    hidden = next((one_line(line) for line in words if line.endswith("Permission denied")), "")
    return int(done.stdout.split()[0]) if done.stdout else 0, hidden


def _answers(client: Any) -> bool:
    try:
        return bool(client.ping())
    except Exception:  # whatever it raises: it does not answer
        return False


def _killed_from_outside(client: Any, container: str, since: float) -> bool:
    """Whether the engine was told to kill or to stop it: a process that kills itself leaves the same exit code."""
    filters = {"container": container, "event": "kill"}
    with closing(
        client.api.events(since=int(since), until=int(time.time()) + 1, filters=filters, decode=True)
    ) as events:
        return any(True for _ in events)


def _engine_words(error: Any) -> str:
    words = str(error.explanation or error)
    if "could not select device driver" in words or "nvidia" in words.lower():
        return (
            f"the container engine gives no GPU ({words}): install the NVIDIA container toolkit and restart the engine"
        )
    return f"the container engine cannot start a container: {words}"
