"""The servers tests run on: a cluster that is one, a replica that follows, and the shared fixtures."""

from __future__ import annotations

import itertools

import pytest
import redis
import redis.asyncio

from broker.embedded import EmbeddedServer
from tests.support.servers import (
    SLOTS,
    Cluster,
    ExternalServer,
    command,
    free_port,
    info,
    start_replica,
    wait_in_sync,
    wait_until,
)


def test_every_slot_of_the_cluster_is_served_by_one_of_three_masters(cluster: Cluster) -> None:
    """All nodes agree about it when the fixture is ready."""
    for node in cluster.nodes:
        state = info(node, "cluster")
        assert (state["cluster_state"], state["cluster_size"]) == ("ok", "3")
        ranges = sorted((first, last) for first, last, *_ in command(node, "CLUSTER", "SLOTS"))
        assert ranges[0][0] == 0
        assert ranges[-1][1] == SLOTS - 1
        assert all(before[1] + 1 == after[0] for before, after in itertools.pairwise(ranges))


async def test_a_cluster_client_reads_what_it_wrote_on_every_node(cluster: Cluster, prefix: str) -> None:
    """`url` is enough to find all nodes."""
    async with redis.asyncio.RedisCluster.from_url(cluster.url, decode_responses=True) as client:
        names = [f"{prefix}:{{{number}}}" for number in range(60)]
        for name in names:
            await client.set(name, name)
        assert [await client.get(name) for name in names] == names
    for node in cluster.nodes:
        assert command(node, "DBSIZE") > 0


def test_a_replica_is_in_sync_when_it_is_handed_out() -> None:
    """What the primary had is there, and what it gets next follows."""
    with EmbeddedServer.start(port=free_port()) as primary:
        command(primary, "SET", "before", "1")
        with start_replica(primary) as replica:
            assert command(replica, "GET", "before") == "1"
            command(primary, "SET", "after", "1")
            wait_in_sync(replica, primary)
            assert command(replica, "GET", "after") == "1"
            with pytest.raises(redis.ReadOnlyError):
                command(replica, "SET", "k", "v")


def test_free_ports_are_free_and_outside_the_range_of_outgoing_connections() -> None:
    """Nobody takes such a port by chance between finding and binding it."""
    ports = {free_port() for _ in range(20)}
    assert len(ports) > 1
    assert max(ports) < 32_768


def test_waiting_says_what_did_not_happen() -> None:
    """A test that waits in vain fails with a sentence."""
    with pytest.raises(TimeoutError, match="the moon is blue"):
        wait_until(lambda: False, "the moon is blue", seconds=0.05)


def test_an_external_server_that_does_not_answer_fails_the_suite() -> None:
    """It is never skipped."""
    with pytest.raises(redis.ConnectionError):
        ExternalServer.checked(f"redis://127.0.0.1:{free_port()}")


async def test_the_shared_server_answers(redis_url: str, prefix: str) -> None:
    """The fixtures most tests build on."""
    async with redis.asyncio.Redis.from_url(redis_url) as client:
        await client.set(prefix, "1")
        assert await client.get(prefix) == b"1"
