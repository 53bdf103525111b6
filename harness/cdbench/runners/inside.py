"""What a container runs: imports everything, waits for the name of its step, does it, and is gone.

    python -m cdbench.runners.inside FOLDER STORE OWN

The name comes as a line on stdin. From then on it lives no longer than stdin is open: whoever started this holds the other end,
and that closes however its process ends.
"""

import gc
import os
import signal
import sys
import threading


def told_by_stdin() -> str:
    """The name of the step."""
    step = b""
    while not step.endswith(b"\n"):
        if not (read := os.read(0, 1)):
            sys.exit(0)
        step += read
    threading.Thread(target=_end_with_it, daemon=True).start()
    return step.decode().strip()


def _end_with_it() -> None:
    while os.read(0, 1024):
        pass
    os.kill(os.getpid(), signal.SIGKILL)


def main(places: list[str]) -> None:
    """Does not return."""
    # torch and transformers make a million objects that stay: to look through them again and again is a sixth of the import.
    gc.disable()
    from cdbench import execute

    gc.freeze()
    gc.enable()
    code = execute.main([told_by_stdin(), *places])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # to take all that down in order is another second


if __name__ == "__main__":
    main(sys.argv[1:])
