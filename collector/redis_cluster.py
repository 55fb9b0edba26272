"""A Redis cluster on loopback: three nodes that hold a third of the slots each, without replicas."""

from __future__ import annotations

import contextlib
import re
import socket
import time
from collections.abc import Generator
from dataclasses import dataclass

from collector import databases, process
from collector.databases import Redis

__all__ = ["RedisCluster", "redis_cluster"]

_SLOTS = 16384
_DEADLINE_S = 30.0


@dataclass(frozen=True, slots=True)
class RedisCluster:
    """A cluster; any node tells a client of the others."""

    nodes: tuple[Redis, ...]

    @property
    def url(self) -> str:
        """The address of the first node."""
        return self.nodes[0].url


@contextlib.contextmanager
def redis_cluster(*, count: int = 3) -> Generator[RedisCluster]:
    """Start so many nodes and wait until they agree that they are a cluster; leaving the context stops them.

    Raises:
        process.StartError: when they do not agree in time.
    """
    with contextlib.ExitStack() as stack:
        nodes = tuple(stack.enter_context(databases.redis(cluster=True)) for _ in range(count))
        for number, node in enumerate(nodes):
            first, last = number * _SLOTS // count, (number + 1) * _SLOTS // count - 1
            _say(node, f"CLUSTER ADDSLOTSRANGE {first} {last}")
            if number:
                bus = re.search(r"@(\d+)", _say(nodes[0], "CLUSTER NODES"))
                assert bus is not None, "a node of a cluster names its bus"
                _say(node, f"CLUSTER MEET 127.0.0.1 {nodes[0].port} {bus[1]}")
        deadline = time.monotonic() + _DEADLINE_S
        while not all(_agrees(node, count) for node in nodes):
            if time.monotonic() > deadline:
                raise process.StartError(f"the Redis nodes did not become a cluster within {_DEADLINE_S:g} s")
            time.sleep(0.05)
        yield RedisCluster(nodes)


def _agrees(node: Redis, count: int) -> bool:
    said = _say(node, "CLUSTER INFO")
    slots = _say(node, "CLUSTER SLOTS").count("127.0.0.1")
    return "cluster_state:ok" in said and f"cluster_known_nodes:{count}" in said and slots == count


def _say(node: Redis, command: str) -> str:
    with socket.create_connection(("127.0.0.1", node.port), timeout=5) as sock:
        sock.sendall(f"{command}\r\nQUIT\r\n".encode())
        parts: list[bytes] = []
        while part := sock.recv(65536):
            parts.append(part)
    return b"".join(parts).decode()
