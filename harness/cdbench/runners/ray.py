"""Steps as tasks of an existing Ray cluster. A task whose node is lost goes to another; GPU ids come from Ray."""

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cdbench.config import RunSpec
from cdbench.errors import EnvironmentLacks
from cdbench.runners import End
from cdbench.runners.remote import Order, RemoteRunner

_KNOCK_SECONDS = 5
_ADVICE = "start one (ray start --head; ray start --address=HEAD:6379 on the other machines), or set RAY_ADDRESS"


def _knock(address: str) -> None:
    """Ray waits minutes for a cluster that is not there.

    Raises:
        OSError: nobody listens.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if port.isdigit():
        socket.create_connection((host, int(port)), timeout=_KNOCK_SECONDS).close()


def _step(order: Order) -> End:
    """What Ray runs on a node."""
    import ray

    return order.obey([str(gpu) for gpu in ray.get_gpu_ids()])


class RayRunner(RemoteRunner):
    """One task a step; as many at a time as --jobs says and the cluster has processors for."""

    name = "ray"

    def connect(self) -> None:
        try:
            import ray
        except ImportError:
            raise EnvironmentLacks("--runner ray needs Ray: pip install 'cdbench[ray]'") from None
        if ray.is_initialized():
            return
        address = os.environ.get("RAY_ADDRESS", "auto")
        try:
            _knock(address)
            ray.init(address=address, log_to_driver=False, logging_level="ERROR")
        except (OSError, ValueError, RuntimeError) as error:
            raise EnvironmentLacks(
                f"no Ray cluster is found at {address} ({str(error).splitlines()[0]}): {_ADVICE}"
            ) from None

    def require(self, specs: list[RunSpec], scratch: Path) -> None:
        super().require(specs, scratch)
        import ray

        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        for spec in specs:
            wanted = {"CPU": spec.profile.threads, "GPU": int(spec.profile.device == "cuda")}
            if not any(all(node.get(what, 0) >= n for what, n in wanted.items()) for node in nodes):
                told = " and ".join(f"{n} {what}{'s' if n > 1 else ''}" for what, n in wanted.items() if n)
                raise EnvironmentLacks(
                    f"none of the Ray cluster's {len(nodes)} nodes has {told}, which profile '{spec.profile.name}' "
                    "asks for a step: Ray would wait for such a node for ever; add one, or --set threads=N"
                )

    def submit(self, order: Order, spec: RunSpec) -> tuple[Callable[[], End], Callable[[], None]]:
        import ray

        # Tried again by the schedule, not by Ray: so that a record counts what was no fault of the method.
        options: dict[str, Any] = {"num_cpus": spec.profile.threads, "max_retries": 0, "scheduling_strategy": "SPREAD"}
        if spec.profile.device == "cuda":
            options["num_gpus"] = 1
        task = ray.remote(_step).options(**options).remote(order)
        return lambda: ray.get(task), lambda: ray.cancel(task)
