"""A viewer leaves when it is time, at a frame boundary, also in the middle of a long log that has ended."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

import pytest

from api.frames import SSE
from api.services import Services
from api.viewer import Viewer, start
from broker.lease import Lease, Leases, new_owner
from broker.settings import Settings
from tests.dialects.logs import STARTED, completed, log, request, texts
from tests.support.sse_client import Reader, SseParser

WORDS = 9000


@pytest.fixture
async def services(redis_url: str, prefix: str) -> AsyncIterator[Services]:
    """Of one process, whose streams end at once when it stops."""
    settings = Settings(redis_url=redis_url, prefix=prefix, drain_seconds=0)
    async with Services.open(redis_url, settings) as opened:
        yield opened


@pytest.mark.timeout(60)
@pytest.mark.parametrize("cause", ["age", "stop"])
async def test_a_replay_is_left_behind_the_page_that_is_being_sent_and_read_on_elsewhere(
    services: Services, cause: str
) -> None:
    accepted = await services.records.submit("dev", request())
    lease = await Leases(services.store).claim(accepted.id, owner=new_owner())
    assert isinstance(lease, Lease)
    entries = log([STARTED, *texts(*[f"{number:04d}é" for number in range(WORDS)]), completed()])
    for at in range(0, len(entries), 500):
        prev = entries[at - 1].position if at else "0-0"
        await services.log.append(accepted.id, lease.epoch, lease.owner, prev, entries[at : at + 500])

    reader = Reader()
    viewer = await _read(services, accepted.id, reader, lambda viewer: _end(services, viewer, cause))
    assert not viewer.finished
    assert 0 < len(reader.text) < 5 * WORDS
    services.draining = False  # another process
    viewer = await _read(services, accepted.id, reader, lambda viewer: None)
    assert viewer.finished
    assert reader.text == "".join(f"{number:04d}é" for number in range(WORDS))


def _end(services: Services, viewer: Viewer, cause: str) -> None:
    if cause == "stop":
        services.drain()
    else:
        viewer.closes_at = 0.0


async def _read(services: Services, generation: str, reader: Reader, then: Callable[[Viewer], None]) -> Viewer:
    """Read from the reader's cursor on; `then` is called behind the first chunk."""
    begin = await start(services, "dev", generation, reader.cursor, snapshot=False)
    viewer, parser = Viewer(services, begin, SSE), SseParser()
    async for chunk in viewer.chunks():
        for frame in parser.feed(chunk):
            reader.take(frame)
        assert not parser.mid_frame
        then(viewer)
    return viewer
