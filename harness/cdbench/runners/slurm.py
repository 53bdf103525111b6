"""Steps as jobs of SLURM, through submitit. A job whose node fails, or that is preempted, is handed in again."""

import shutil
import time
from pathlib import Path
from typing import Any

from cdbench.config import RunSpec
from cdbench.errors import EnvironmentLacks
from cdbench.runners import End, Handle
from cdbench.runners.remote import Inside, Order, RemoteHandle, RemoteRunner

_POLL_SECONDS = 1.0
_SPARE_MINUTES = 2


def _step(order: Order) -> End:
    """What SLURM runs on a node; the GPUs that it gave stand in the environment."""
    import os

    given = os.environ.get("SLURM_STEP_GPUS") or os.environ.get("SLURM_JOB_GPUS") or ""
    return order.obey([gpu for gpu in given.split(",") if gpu])


class SlurmRunner(RemoteRunner):
    """One job a step; --jobs says how many are in the queue at a time."""

    name = "slurm"

    def __init__(self, inside: Inside, image: str | None = None, partition: str | None = None) -> None:
        super().__init__(inside, image)
        self._partition = partition

    def connect(self) -> None:
        if not shutil.which("sbatch"):
            raise EnvironmentLacks("--runner slurm needs sbatch on PATH: run it on a machine that can hand in jobs")
        try:
            import submitit  # noqa: F401
        except ImportError:
            raise EnvironmentLacks("--runner slurm needs submitit: pip install 'cdbench[slurm]'") from None

    def submit(self, order: Order, spec: RunSpec) -> Handle:
        import submitit

        limits = spec.profile.limits
        executor = submitit.AutoExecutor(folder=_logs(order.scratch), cluster="slurm")
        parameters: dict[str, Any] = {
            "name": f"cdbench-{order.step}",
            "timeout_min": spec.profile.timeout_minutes + _SPARE_MINUTES,
            "cpus_per_task": spec.profile.threads,
            "mem_gb": limits.memory_gib + 1,  # the harness beside the container
            "slurm_additional_parameters": {"requeue": False},
        }
        if spec.profile.device == "cuda":
            parameters["gpus_per_node"] = 1
        if self._partition:
            parameters["slurm_partition"] = self._partition
        executor.update_parameters(**parameters)
        job = executor.submit(_step, order)
        return RemoteHandle(order.folder, lambda: _wait(job), lambda: job.cancel(check=False))


def _logs(scratch: Path) -> Path:
    """Beside the scratch folder, which is emptied: what a job printed before it could say anything."""
    return scratch.parent / "slurm"


def _wait(job: Any) -> End:
    while not job.done():
        time.sleep(_POLL_SECONDS)
    state = str(job.state)
    if state.startswith("TIMEOUT"):
        return End(1, "timeout", "ended by SLURM at its time limit")
    if state.startswith("OUT_OF_ME"):
        return End(1, "oom", "ended by SLURM for want of memory")
    error = job.exception()
    if error is not None:
        return End(1, "infra", f"job {job.job_id} ended in state {state}: {str(error).strip().splitlines()[0]}")
    end = job.result()
    assert isinstance(end, End)
    return end
