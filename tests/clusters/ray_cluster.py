"""A Ray cluster of a head and two nodes on this machine, in a process of its own. Protocol: a line out, `ADDRESS`; a line in, a node's number, kills that
node as a power cut would, and a line out says so; the end of the input ends the cluster.

Everything listens on the loopback interface (Ray's own switch, see `launch/ray.py`), in the folder that the first argument names.
"""

from __future__ import annotations

import sys

from ray.cluster_utils import Cluster

SMALL = {"object_store_memory": 80 * 1024 * 1024, "include_dashboard": False}


def main(folder: str) -> None:
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "temp_dir": folder, **SMALL})
    nodes = [cluster.add_node(num_cpus=2, temp_dir=folder, **SMALL) for _ in range(2)]
    print(cluster.address, flush=True)
    for line in sys.stdin:
        cluster.remove_node(nodes[int(line)], allow_graceful=False)
        print(f"killed {line.strip()}", flush=True)
    cluster.shutdown()


if __name__ == "__main__":
    main(sys.argv[1])
