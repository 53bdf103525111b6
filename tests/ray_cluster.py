"""A Ray cluster of two nodes on this machine, for the tests: prints its address; when told to, kills the second node as soon as
it works at something.

Run as a script; ends when its stdin does.
"""

import sys
import time
from typing import Any

import psutil
from ray.cluster_utils import Cluster


def main() -> None:
    small = {"num_cpus": 1, "object_store_memory": 100 << 20, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=small)
    second = cluster.add_node(num_cpus=1, object_store_memory=100 << 20)
    print(cluster.address, flush=True)
    for line in sys.stdin:
        if line.strip() == "kill":
            while not works(second):
                time.sleep(0.05)
            cluster.remove_node(second, allow_graceful=False)
            print("killed", flush=True)
    cluster.shutdown()


def works(node: Any) -> bool:
    """Whether one of a node's workers has a task: Ray writes that into the process's title."""
    raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
    titles = []
    for process in raylet.children(recursive=True):
        try:
            titles.append(" ".join(process.cmdline()))
        except psutil.Error:  # it has ended in the meantime
            continue
    return any(title.startswith("ray::_step") for title in titles)


if __name__ == "__main__":
    main()
