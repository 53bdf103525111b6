"""Steps as jobs of SLURM, through submitit. A job whose node fails, or that is preempted, is handed in again."""

import re
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cdbench.config import RunSpec
from cdbench.errors import EnvironmentLacks
from cdbench.runners import End
from cdbench.runners.remote import Inside, Order, RemoteRunner

_POLL_SECONDS = 1.0
_LATE_POLLS = 5
_UNDER_WAY = ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "SUSPENDED")
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

    def submit(self, order: Order, spec: RunSpec) -> tuple[Callable[[], End], Callable[[], None]]:
        import submitit

        limits = spec.profile.limits
        executor = submitit.AutoExecutor(folder=_logs(order.scratch), cluster="slurm")
        parameters: dict[str, Any] = {
            "name": f"cdbench-{order.step}",
            "timeout_min": spec.profile.timeout_minutes + _SPARE_MINUTES,
            "cpus_per_task": spec.profile.threads,
            "mem_gb": limits.memory_gib + 1,  # the harness beside the container
            "slurm_additional_parameters": {"no_requeue": True},
        }
        if spec.profile.device == "cuda":
            parameters["gpus_per_node"] = 1
        if self._partition:
            parameters["slurm_partition"] = self._partition
        executor.update_parameters(**parameters)
        try:
            job = executor.submit(_step, order)
        except submitit.core.utils.FailedJobError as error:
            raise EnvironmentLacks(f"SLURM does not take the job: {str(error).strip().splitlines()[0]}") from None
        return lambda: _wait(job, order.inside), lambda: job.cancel(check=False)


def _logs(scratch: Path) -> Path:
    """Beside the scratch folder, which is emptied: what a job printed before it could say anything."""
    return scratch.parent / "slurm"


def _wait(job: Any, inside: Inside) -> End:
    """Until the job has left a result, or SLURM says that it ended without.

    Asks scontrol, not sacct as submitit does: not every cluster keeps accounts.
    """
    import submitit

    gone = 0
    while not job.paths.result_pickle.exists():
        state = _state(job.job_id)
        gone = 0 if state in _UNDER_WAY else gone + 1
        if gone > _LATE_POLLS:  # a shared file system may show the result late
            job.cancel(check=False)  # before it is handed in again
            return _without_result(job.job_id, state, inside)
        time.sleep(_POLL_SECONDS)
    outcome, value = submitit.core.utils.pickle_load(job.paths.result_pickle)
    if outcome == "error":
        return End(1, "infra", f"job {job.job_id}: {str(value).strip().splitlines()[-1]}")
    assert isinstance(value, End)
    return value


def _state(job_id: str) -> str:
    """SLURM's word for a job's state: FORGOTTEN when it knows it no more, PENDING when it does not answer at all."""
    done = subprocess.run(["scontrol", "show", "job", job_id, "--oneliner"], capture_output=True, text=True)
    found = re.search(r"\bJobState=(\w+)", done.stdout)
    if found:
        return found[1]
    return "FORGOTTEN" if "nvalid job id" in done.stderr else "PENDING"


def _without_result(job_id: str, state: str, inside: Inside) -> End:
    if state == "TIMEOUT":
        return End(1, "timeout", f"job {job_id} ended by SLURM at its time limit")
    if state == "OUT_OF_MEMORY":
        # A container's memory is not counted as the job's: then it was our harness that had too little.
        return End(1, "infra" if inside == "docker" else "oom", f"job {job_id} ended by SLURM for want of memory")
    return End(1, "infra", f"job {job_id} ended without a result, in state {state}")
