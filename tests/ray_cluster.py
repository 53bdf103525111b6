"""A Ray cluster of two nodes on this machine, for the tests: prints its address, kills the second node when told to.

Run as a script; ends when its stdin does.
"""

import sys

from ray.cluster_utils import Cluster


def main() -> None:
    small = {"num_cpus": 1, "object_store_memory": 100 << 20, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=small)
    second = cluster.add_node(num_cpus=1, object_store_memory=100 << 20)
    print(cluster.address, flush=True)
    for line in sys.stdin:
        if line.strip() == "kill":
            cluster.remove_node(second, allow_graceful=False)
            print("killed", flush=True)
    cluster.shutdown()


if __name__ == "__main__":
    main()
