"""A Ray cluster of several nodes on this machine, and what its processes hold in memory."""

from __future__ import annotations

import os
import socket
import sys
import time
from pathlib import Path
from typing import Any

# Ray reads some of them when it is imported: import this module first.
_SETTINGS = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_SERVE_PROXY_PREFER_LOCAL_NODE_ROUTING": "0",  # or the head's proxy would ask its own replica only
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS": "0",
    "HF_HUB_OFFLINE": "1",
}
os.environ.update(_SETTINGS)
_NODE = {"num_cpus": 1, "node_ip_address": "127.0.0.1", "object_store_memory": 400 << 20}
HEAD = "head"  # a resource that only the head node has: what needs some of it runs there


class LocalCluster:
    """A head node, and others that can be added and killed; Serve's HTTP proxy is on the head."""

    def __enter__(self) -> LocalCluster:
        # Workers import what the tests import, and from where they do.
        os.environ["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
        import ray
        from ray import serve
        from ray.cluster_utils import Cluster

        head = {**_NODE, "include_dashboard": False, "resources": {HEAD: 100}}
        self._cluster = Cluster(initialize_head=True, head_node_args=head)
        self._nodes: list[Any] = []
        ray.init(address=self._cluster.address, _node_ip_address="127.0.0.1", log_to_driver=False)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        self.address = f"http://127.0.0.1:{port}"
        return self

    def __exit__(self, *exception: object) -> None:
        import ray
        from ray import serve

        serve.shutdown()
        ray.shutdown()
        self._cluster.shutdown()

    def add_node(self, num_cpus: int = 1) -> None:
        """num_cpus are what Ray schedules by; the machine has what it has."""
        self._nodes.append(self._cluster.add_node(**{**_NODE, "num_cpus": num_cpus}))
        self._cluster.wait_for_nodes()

    def kill_node(self) -> None:
        """Its processes get SIGKILL."""
        self._cluster.remove_node(self._nodes.pop(), allow_graceful=False)

    def wait_for_replicas(self, app: str, count: int, timeout_s: float = 120) -> float:
        """Seconds until so many run. AssertionError: they did not in time."""
        from ray import serve

        start = time.monotonic()
        while time.monotonic() < start + timeout_s:
            (deployment,) = serve.status().applications[app].deployments.values()
            states = {
                str(getattr(state, "value", state)): n for state, n in deployment.replica_states.items()
            }
            if states == {"RUNNING": count}:
                return time.monotonic() - start
            time.sleep(0.2)
        raise AssertionError(f"replicas: expected {count} running, got {states}")


def replicas(app: str) -> list[int]:
    """Process ids of the replicas of an application."""
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdecimal():
            try:
                command = (process / "cmdline").read_bytes()
            except OSError:
                continue
            if command.startswith(f"ray::ServeReplica:{app}:".encode()):
                found.append(int(process.name))
    return found


def mapped_bytes(pid: int, name: str = "plasma") -> int:
    """Bytes in memory of the process's mappings of files of this name."""
    total, counts = 0, False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if "-" in line.split()[0] and not line.split()[0].endswith(":"):
            counts = name in line
        elif counts and line.startswith("Rss:"):
            total += int(line.split()[1]) * 1024
    return total


def pss_bytes(pid: int) -> int:
    """Proportional set size: pages that n processes share count 1 / n in each."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in rollup if line.startswith("Pss:"))
