"""Writes that wait for replicas: accepted with one, refused without, never half-told."""

from __future__ import annotations

import pytest

from broker.confirm import NotReplicated
from broker.embedded import EmbeddedServer
from broker.events import CancelReason
from broker.queue import Queue
from broker.records import CancelOutcome, Records
from broker.settings import Settings
from broker.store import Store
from tests.broker.conftest import job
from tests.support.servers import free_port, start_replica, wait_in_sync


async def test_a_job_is_accepted_only_once_a_replica_has_it() -> None:
    with EmbeddedServer.start(port=free_port()) as primary:
        hasty, patient = (Store(primary.url, Settings(wait_replicas=1, wait_ms=ms)) for ms in (300, 60_000))
        records = Records(hasty, Queue(hasty))
        with pytest.raises(NotReplicated):
            await records.submit("acme", job(), key="once", fingerprint="f")
        with start_replica(primary) as replica:
            wait_in_sync(replica, primary)
            accepted = await Records(patient, Queue(patient)).submit("acme", job(), key="once", fingerprint="f")
        # Without the replica a cancel is stored all the same: it is done, and only its confirmation is missing.
        record = await records.get("acme", accepted.id)
        assert await records.cancel(record, CancelReason.USER) is CancelOutcome.CANCELLED
        assert (await records.newest("acme", limit=5)).records[0].id == accepted.id
        await hasty.aclose()
        await patient.aclose()


async def test_a_job_is_accepted_once_the_file_has_it() -> None:
    with EmbeddedServer.start() as server:
        store = Store(server.url, Settings(wait_aof=True, wait_ms=60_000))
        accepted = await Records(store, Queue(store)).submit("acme", job())
        server.kill()
        server.restart()
        assert (await Records(store, Queue(store)).get("acme", accepted.id)).id == accepted.id
        await store.aclose()
