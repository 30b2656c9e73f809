"""Servers in the shapes production has them: a cluster, a primary with a replica, one that is not ours.

All of them are embedded servers, so they end with the test process whatever happens to it.
"""

from __future__ import annotations

import os
import random
import socket
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Self

import redis

from broker.embedded import EmbeddedServer
from broker.errors import StoreUnusable

#: Below the ranges Linux (32768) and macOS (49152) take ports of outgoing connections from: nothing grabs one of
#: these between the moment it is found free and the moment a server binds it.
PORTS = range(20_000, 32_000)
#: A process looks among every so many of them: those that run beside one another rarely find the same one free.
SHARES = 16
#: How many hash slots every cluster has.
SLOTS = 16_384
#: A node that is silent for this long is taken for dead, and then the whole cluster is down. None is ever killed, but
#: one may stand still for seconds where the machine is busy.
NODE_TIMEOUT_MS = 30_000
#: How long a cluster or a replica may take to get ready.
READY_SECONDS = 60.0
#: Time between two looks.
POLL_SECONDS = 0.01


def free_port() -> int:
    """A loopback port nobody listens on."""
    for port in random.sample(PORTS[os.getpid() % SHARES :: SHARES], 200):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise OSError("no free port among 200")


def command(server: EmbeddedServer, *words: str | int) -> Any:
    """Send one command over the server's socket and return the bare reply; errors of the server raise."""
    with redis.Redis.from_url(server.url, decode_responses=True, protocol=2, socket_timeout=READY_SECONDS) as client:
        client.response_callbacks.clear()
        return client.execute_command(*words)


def info(server: EmbeddedServer, section: str) -> Mapping[str, str]:
    """INFO, or with the section `cluster` CLUSTER INFO, as the server writes it."""
    words = ("CLUSTER", "INFO") if section == "cluster" else ("INFO", section)
    lines = str(command(server, *words)).splitlines()
    return dict(line.split(":", 1) for line in lines if ":" in line)


def wait_until(condition: Callable[[], bool], what: str, *, seconds: float = READY_SECONDS) -> None:
    """Look again and again; raises TimeoutError that says what did not happen."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"after {seconds:g} s still not: {what}")
        time.sleep(POLL_SECONDS)


@dataclass(frozen=True, slots=True)
class ExternalServer:
    """A server somebody else started."""

    url: str

    @classmethod
    def checked(cls, url: str) -> Self:
        """Raises redis.ConnectionError when it does not answer."""
        with redis.Redis.from_url(url, socket_timeout=READY_SECONDS) as client:
            client.ping()
        return cls(url)


class Cluster:
    """Three masters with a third of the slots each. `url` is one of them: connect to it as to a cluster."""

    def __init__(self, nodes: list[EmbeddedServer]) -> None:
        self.nodes = nodes

    @classmethod
    def start(cls, masters: int = 3) -> Self:
        """Takes a good two seconds: a node that starts as a master waits that long before it serves its slots."""
        with ThreadPoolExecutor(masters) as pool:
            starting = [pool.submit(_start_node) for _ in range(masters)]
        cluster = cls([each.result() for each in starting if each.exception() is None])
        try:
            for each in starting:
                each.result()
            cluster._join()
            wait_until(cluster.is_ready, "every node of the cluster sees all the others and all slots served")
        except BaseException:
            cluster.stop()
            raise
        return cluster

    @property
    def url(self) -> str:
        """The first node's address. It looks like that of a single server; the client has to be a cluster client."""
        return f"redis://127.0.0.1:{self.nodes[0].port}"

    @property
    def urls(self) -> list[str]:
        return [f"redis://127.0.0.1:{node.port}" for node in self.nodes]

    def stop(self) -> None:
        with ThreadPoolExecutor(max(1, len(self.nodes))) as pool:
            list(pool.map(EmbeddedServer.stop, self.nodes))

    def is_ready(self) -> bool:
        """Whether every node knows all nodes and finds all slots served."""
        return all(
            state["cluster_state"] == "ok"
            and int(state["cluster_slots_ok"]) == SLOTS
            and int(state["cluster_known_nodes"]) == len(self.nodes)
            for state in (info(node, "cluster") for node in self.nodes)
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *failure: object) -> None:
        self.stop()

    def _join(self) -> None:
        count = len(self.nodes)
        for index, node in enumerate(self.nodes):
            command(node, "CLUSTER", "SET-CONFIG-EPOCH", index + 1)
            command(node, "CLUSTER", "ADDSLOTSRANGE", SLOTS * index // count, SLOTS * (index + 1) // count - 1)
        for one in self.nodes:
            for other in self.nodes:
                if one is not other:
                    bus = command(other, "CONFIG", "GET", "cluster-port")[1]
                    command(one, "CLUSTER", "MEET", "127.0.0.1", other.port, bus)


def _start_node() -> EmbeddedServer:
    try:
        return EmbeddedServer.start(port=free_port(), extra=_node_options())
    except StoreUnusable:  # another process may have found the same port free
        return EmbeddedServer.start(port=free_port(), extra=_node_options())


def _node_options() -> dict[str, str]:
    return {
        "cluster-enabled": "yes",
        "cluster-port": str(free_port()),
        "cluster-node-timeout": str(NODE_TIMEOUT_MS),
        "cluster-announce-ip": "127.0.0.1",
        "enable-debug-command": "local",
        "shutdown-timeout": "0",
    }


def start_replica(primary: EmbeddedServer, *, extra: Mapping[str, str] | None = None) -> EmbeddedServer:
    """Start a replica of a primary that has a port, and wait until it is in sync. The caller stops it."""
    if not primary.port:
        raise ValueError("a replica follows a TCP port: start the primary with one")
    command(primary, "CONFIG", "SET", "repl-diskless-sync-delay", 0, "shutdown-timeout", 0)
    replica = EmbeddedServer.start(port=free_port(), extra={"replicaof": f"127.0.0.1 {primary.port}", **(extra or {})})
    try:
        wait_in_sync(replica, primary)
    except BaseException:
        replica.stop()
        raise
    return replica


def wait_in_sync(replica: EmbeddedServer, primary: EmbeddedServer, *, seconds: float = READY_SECONDS) -> None:
    """Wait until the replica has everything the primary had when this was called."""
    wanted = int(info(primary, "replication")["master_repl_offset"])

    def has_it() -> bool:
        seen = info(replica, "replication")
        return seen.get("master_link_status") == "up" and int(seen["slave_repl_offset"]) >= wanted

    wait_until(has_it, "the replica is in sync", seconds=seconds)
