"""What a container runs: imports everything, waits for the name of its step, does it, and is gone.

    python -m cdbench.runners.inside FOLDER STORE OWN [again]

The name comes as a line on stdin. It lives no longer than stdin is open, from its first moment on: whoever started this holds the
other end, and that closes however its process ends.

With `again` (for steps that run no method) it does one after another, as long as they end well. Each has a process of its own,
forked from this one, which has read no file of any run and imported no plug-in.
"""

import contextlib
import gc
import os
import select
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from glob import glob
from typing import NoReturn

from cdbench.containers import AGAIN, ENDED


def told_by_stdin() -> str:
    """The name of the step."""
    step = b""
    while not step.endswith(b"\n"):
        if not (read := os.read(0, 1)):
            sys.exit(0)
        step += read
    return step.decode().strip()


@contextlib.contextmanager
def _held_by_stdin() -> Iterator[None]:
    """Ends this process as soon as stdin is closed while the block is at work; reads nothing of it, leaves no thread behind."""
    done, held = os.pipe()

    def watch() -> None:
        watched = select.poll()
        watched.register(0, 0)  # that it was hung up is told all the same
        watched.register(done, 0)
        if any(place == 0 for place, _ in watched.poll()):
            os._exit(1)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        os.close(held)
        watcher.join()
        os.close(done)


def _end_with_it() -> None:
    while os.read(0, 1024):
        pass
    os.kill(os.getpid(), signal.SIGKILL)


def _do(step: str, places: list[str]) -> NoReturn:
    from cdbench import execute

    code = execute.main([step, *places])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # to take all that down in order is another second


def _one_after_another(places: list[str]) -> NoReturn:
    while True:
        step, own = told_by_stdin(), tempfile.mkdtemp()
        ended, held = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(ended)
            os.environ["TMPDIR"] = os.environ["HOME"] = tempfile.tempdir = own
            _do(step, places)
        os.close(held)
        if 0 in select.select([0, ended], [], [])[0]:  # whoever started this has gone
            os._exit(1)  # the container ends with this process, and with it the other
        os.close(ended)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if code != 0:
            os._exit(code if code > 0 else 128 - code)
        with contextlib.suppress(ProcessLookupError):
            os.kill(-1, signal.SIGKILL)  # whatever it left running: nothing of it meets the next one
        for left in (own, *glob("/dev/shm/*")):
            shutil.rmtree(left) if os.path.isdir(left) and not os.path.islink(left) else os.unlink(left)
        for stream in (1, 2):
            os.write(stream, ENDED)


def main(places: list[str], *, again: bool) -> NoReturn:
    """Does not return."""
    # torch and transformers make a million objects that stay: to look through them again and again is a sixth of the import.
    gc.disable()
    with _held_by_stdin():
        import cdbench.execute  # noqa: F401  (what takes seconds is there before the step is named)

    gc.freeze()
    gc.enable()
    if again:
        _one_after_another(places)
    step = told_by_stdin()
    threading.Thread(target=_end_with_it, daemon=True).start()
    _do(step, places)


if __name__ == "__main__":
    main(sys.argv[1:4], again=sys.argv[4:] == [AGAIN])
