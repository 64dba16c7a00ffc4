"""Ray cluster of two nodes on this machine: prints its address, and kills its second node at a line of stdin."""

from __future__ import annotations

from importlib import import_module
from typing import Any


def main() -> None:
    utilities: Any = import_module("ray.cluster_utils")
    head = {"num_cpus": 1, "include_dashboard": False}
    cluster = utilities.Cluster(initialize_head=True, head_node_args=head)
    second = cluster.add_node(num_cpus=1)
    print(cluster.address, flush=True)
    input()
    cluster.remove_node(second, allow_graceful=False)
    print("killed", flush=True)
    input()
    cluster.shutdown()


if __name__ == "__main__":
    main()
