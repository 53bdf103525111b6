"""Steps as processes on this machine.

They are forked from a server that has imported torch, transformers and the harness but no plug-in (4 s saved a step), so
each step is a process of its own that starts from the same clean state. A step dies with the harness, however that ends.
"""

import multiprocessing
import os
import shutil
import signal
import sys
import threading
from collections.abc import Collection
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from cdbench.config import RunSpec
from cdbench.errors import EnvironmentLacks
from cdbench.record import Stream, log_file
from cdbench.requirements import nvidia_driver
from cdbench.runners import End, Handle, Runner

_GRACE_SECONDS = 5


class LocalHandle(Handle):
    """A forked process."""

    def __init__(self, process: ForkServerProcess, folder: Path) -> None:
        self._process, self.folder = process, folder

    @property
    def waitable(self) -> int:
        return self._process.sentinel

    def ended(self) -> End | None:
        code = self._process.exitcode
        return None if code is None else End(code)

    def stop(self) -> None:
        self._process.terminate()
        self._process.join(_GRACE_SECONDS)
        if self._process.exitcode is None:
            self._process.kill()
            self._process.join()


class LocalRunner(Runner):
    """One process a step; one thread each unless the profile says otherwise."""

    name = "local"
    isolated = False

    def __init__(self) -> None:
        # Thread pools are sized when a library is loaded, so the server must see these before it imports.
        for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
            os.environ.setdefault(variable, "1")
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["cdbench.execute"])

    def look_again(self, spec: RunSpec, scratch: Path) -> None:
        if shutil.which("nvidia-smi") and not nvidia_driver():
            raise EnvironmentLacks("nvidia-smi finds no GPU any more")

    def start(self, step: str, folder: Path, store: Path, spec: RunSpec, shared: Collection[str] = ()) -> Handle:
        process = self._context.Process(target=_child, args=(step, str(folder), str(store)), daemon=False)
        process.start()
        return LocalHandle(process, folder)


def _die_with_the_harness() -> None:
    """The parent of a forked process is the server, which outlives a killed harness; the harness's own end is told by
    a pipe that closes."""
    harness = multiprocessing.parent_process()
    assert harness is not None
    wait([harness.sentinel])
    os.kill(os.getpid(), signal.SIGKILL)


def _child(step: str, folder: str, store: str) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the harness, which decides
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_die_with_the_harness, daemon=True).start()
    streams: tuple[tuple[int, Stream], ...] = ((1, "stdout"), (2, "stderr"))
    for number, stream in streams:
        log = os.open(Path(folder) / log_file(step, stream), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(log, number)
        os.close(log)
    from cdbench.execute import main

    sys.exit(main([step, folder, store]))
