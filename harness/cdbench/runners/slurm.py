"""Steps as jobs of SLURM, through submitit. A job whose node fails, or that is preempted, is handed in again, for other nodes."""

import re
import shutil
import subprocess
from collections.abc import Callable, Collection
from pathlib import Path
from time import sleep
from typing import Any

from cdbench.config import RunSpec
from cdbench.errors import EnvironmentLacks, first_line
from cdbench.files import explained
from cdbench.runners import End
from cdbench.runners.remote import Inside, Order, RemoteRunner

_POLL_SECONDS = 1.0
_LATE_POLLS = 5
_UNDER_WAY = ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "SUSPENDED")
_SPARE_MINUTES = 2
_BUSY = ("timed out", "temporarily", "nable to contact", "ero Bytes")
"""Parts of what sbatch says while the controller is restarted or overworked."""
_AGAIN_SECONDS = (2.0, 10.0, 30.0)
_JOB = "job-"
"""Files of the scratch folder that name the jobs under way."""


def _step(order: Order) -> End:
    """What SLURM runs on a node; the GPUs that it gave stand in the environment."""
    import os

    given = os.environ.get("SLURM_STEP_GPUS") or os.environ.get("SLURM_JOB_GPUS") or ""
    return order.obey([gpu for gpu in given.split(",") if gpu])


class SlurmRunner(RemoteRunner):
    """One job a step; --jobs says how many are in the queue at a time."""

    name = "slurm"

    def __init__(self, inside: Inside, image: str | None = None) -> None:
        super().__init__(inside, image)
        self._failed_on: dict[tuple[str, str], set[str]] = {}
        """(spec, step) -> nodes on which it has ended through no fault of its own."""

    def connect(self) -> None:
        if not shutil.which("sbatch"):
            raise EnvironmentLacks("--runner slurm needs sbatch on PATH: run it on a machine that can hand in jobs")
        try:
            import submitit  # noqa: F401
        except ImportError:
            raise EnvironmentLacks("--runner slurm needs submitit: pip install 'cdbench[slurm]'") from None

    def disown(self, scratch: Path) -> None:
        for mark in scratch.glob(f"{_JOB}*"):
            # By name, too: another cluster may have given the number to somebody else's job.
            cancel = ["scancel", f"--name={mark.read_text()}", mark.name.removeprefix(_JOB)]
            subprocess.run(cancel, capture_output=True)  # it complains of a job that has ended

    def submit(self, order: Order, spec: RunSpec) -> tuple[Callable[[], End], Callable[[], None]]:
        nodes = self._failed_on.setdefault((order.spec, order.step), set())
        try:
            job = _handed_in(self._executor(order, spec, nodes), order)
        except EnvironmentLacks:
            if not nodes:
                raise
            # No other node is left: perhaps one of them is well again.
            job = _handed_in(self._executor(order, spec, ()), order)
        mark = order.scratch / f"{_JOB}{job.job_id}"
        try:
            with explained(mark, "the job's number"):
                mark.write_text(_name(order))
        except BaseException:
            job.cancel(check=False)
            raise

        def wait() -> End:
            end = _wait(job, order.inside)
            mark.unlink(missing_ok=True)
            if end.status == "infra" and (node := _word(_shown(job.job_id), "NodeList")):
                nodes.add(node)
            return end

        return wait, lambda: job.cancel(check=False)

    def _executor(self, order: Order, spec: RunSpec, without: Collection[str]) -> Any:
        """What hands in a job with the limits of its spec, for any node but some."""
        import submitit

        executor = submitit.AutoExecutor(folder=_logs(order.scratch), cluster="slurm")
        parameters: dict[str, Any] = {
            "name": _name(order),
            "timeout_min": spec.profile.timeout_minutes + _SPARE_MINUTES,
            "cpus_per_task": spec.profile.threads,
            "mem_gb": spec.profile.limits.memory_gib + 1,  # the harness beside the container
            "slurm_additional_parameters": {"no_requeue": True},
        }
        if spec.profile.device == "cuda":
            parameters["gpus_per_node"] = 1
        if without:
            parameters["slurm_exclude"] = ",".join(sorted(without))
        executor.update_parameters(**parameters)
        return executor


def _name(order: Order) -> str:
    return f"cdbench-{order.step}"


def _handed_in(executor: Any, order: Order) -> Any:
    """The job, once the controller takes it.

    Raises:
        EnvironmentLacks: it does not.
    """
    import submitit

    waits = list(_AGAIN_SECONDS)
    while True:
        try:
            return executor.submit(_step, order)
        except submitit.core.utils.FailedJobError as error:
            if not waits or not any(word in str(error) for word in _BUSY):
                raise EnvironmentLacks(f"SLURM does not take the job: {first_line(error)}") from None
        sleep(waits.pop(0))


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
        told = _shown(job.job_id)
        state = _state(told)
        if state == "PENDING":
            _let_in(job.job_id, told)
        gone = 0 if state in _UNDER_WAY else gone + 1
        if gone > _LATE_POLLS:  # a shared file system may show the result late
            job.cancel(check=False)  # before it is handed in again
            return _without_result(job.job_id, state, inside)
        sleep(_POLL_SECONDS)
    outcome, value = submitit.core.utils.pickle_load(job.paths.result_pickle)
    if outcome == "error":
        return End(1, "infra", f"job {job.job_id}: {str(value).strip().splitlines()[-1]}")
    assert isinstance(value, End)
    return value


def _state(told: str) -> str:
    """SLURM's word for a job's state: FORGOTTEN when it knows it no more, PENDING when it does not answer at all."""
    return _word(told, "JobState") or ("FORGOTTEN" if "nvalid job id" in told else "PENDING")


def _let_in(job_id: str, told: str) -> None:
    """Lets a job have the nodes that it was kept from, where all others are down or drained: it would wait for ever."""
    if _word(told, "ExcNodeList") and re.search(r"Reason=(ReqNodeNotAvail|Nodes_required)", told):
        subprocess.run(["scontrol", "update", f"JobId={job_id}", "ExcNodeList="], capture_output=True)


def _shown(job_id: str) -> str:
    """What SLURM says of a job, or why it says nothing."""
    done = subprocess.run(["scontrol", "show", "job", job_id, "--oneliner"], capture_output=True, text=True)
    return done.stdout + done.stderr


def _word(told: str, key: str) -> str | None:
    """What stands there under a key; None where nothing does."""
    found = re.search(rf"(?<!\S){key}=(\w[^\s(]*)", told)
    return found[1] if found else None


def _without_result(job_id: str, state: str, inside: Inside) -> End:
    if state == "TIMEOUT":
        return End(1, "timeout", f"job {job_id} ended by SLURM at its time limit")
    if state == "OUT_OF_MEMORY":
        # A container's memory is not counted as the job's: then it was our harness that had too little.
        return End(1, "infra" if inside == "docker" else "oom", f"job {job_id} ended by SLURM for want of memory")
    return End(1, "infra", f"job {job_id} ended without a result, in state {state}")
