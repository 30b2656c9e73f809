"""A log that is sealed is the same log to every reader, whatever it speaks, wherever it was left."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from api.dialects.viewer import DialectViewer
from api.dialects.waiting import Silent
from api.frames import SSE
from api.services import Services
from api.viewer import Viewer, start
from broker.events import (
    Completed,
    Delta,
    DeltaKind,
    Entry,
    Event,
    FinishReason,
    Started,
    ToolCallDone,
    Usage,
    UsageReport,
    encode,
)
from broker.generation import Request
from broker.lease import Lease, Leases, new_owner
from broker.log import Appended, Log
from broker.settings import Settings
from broker.store import Store
from tests.support.sse_client import Reader, SseParser, events_path, read, request
from tests.support.stack import ONE_BY_ONE, Stack

WORDS = [f"wörd{number} " for number in range(70)]
WHOLE: list[Event] = [
    Started(attempt=1, provider="sim", model="sim-1"),
    *(Delta(text=word, kind=DeltaKind.REASONING) for word in WORDS[:30]),
    *(Delta(text=word) for word in WORDS[30:50]),
    ToolCallDone(index=0, id="call_1", name="look", arguments='{"where":"東京"}'),
    *(Delta(text=word) for word in WORDS[50:]),
    UsageReport(usage=Usage(input_tokens=3, output_tokens=70)),
    Completed(finish_reason=FinishReason.STOP, usage=Usage(input_tokens=3, output_tokens=70), characters=300),
]


async def ended(store: Store, generation: str, events: list[Event]) -> list[Entry]:
    """Write a whole log, as its worker would; nobody has sealed it."""
    lease = await Leases(store).claim(generation, owner=new_owner())
    assert isinstance(lease, Lease)
    entries = [Entry(f"{seq}-{lease.epoch}", *encode(event)) for seq, event in enumerate(events, 1)]
    prev = "0-0"
    for at in range(0, len(entries), 500):
        batch = entries[at : at + 500]
        assert isinstance(await Log(store).append(generation, lease.epoch, lease.owner, prev, batch), Appended)
        prev = batch[-1].position
    return entries


# --- over HTTP ---


@pytest.fixture(scope="module")
def stack(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """An API, and no worker that would seal by itself."""
    with Stack.start(redis_url, tmp_path_factory.mktemp("sealed"), workers=0) as running:
        yield running


@pytest.fixture
async def store(stack: Stack) -> AsyncIterator[Store]:
    store = Store(stack.url, Settings(prefix=stack.prefix, lease_seconds=2))
    yield store
    await store.aclose()


def polled(stack: Stack, generation: str, limit: int) -> list[Any]:
    """Every answer of a long-poll to its end."""
    answers, cursor = [], None
    while not answers or answers[-1]["events"]:
        headers = {"Accept": "application/json"} | ({"Last-Event-ID": cursor} if cursor else {})
        said = request(stack.urls[0], "GET", events_path(generation, f"limit={limit}"), headers=headers).json()
        answers.append(said)
        cursor = said["position"]
    return answers


def data_of(body: bytes) -> list[Any]:
    """The JSON of every event of a dialect's stream."""
    lines = [line[6:] for line in body.decode().splitlines() if line.startswith("data: ")]
    return [json.loads(line) for line in lines if line != "[DONE]"]


def everything(stack: Stack, generation: str, positions: list[str]) -> dict[str, Any]:
    """What every door says of a generation, from everywhere; in the native dialect, where deltas may come merged
    otherwise, the text and the end."""
    found: dict[str, Any] = {
        "status": stack.get(f"/v1/generations/{generation}").json(),
        "response": stack.get(f"/openai/v1/responses/{generation}").json(),
    }
    for limit in (1, 7, 64):
        found[f"polled {limit}"] = polled(stack, generation, limit)
    whole = stack.get(f"/openai/v1/responses/{generation}?stream=true")
    found["responses"] = data_of(whole.body)
    for number in range(0, len(found["responses"]) - 1, 3):
        path = f"/openai/v1/responses/{generation}?stream=true&starting_after={number}"
        found[f"responses after {number}"] = data_of(stack.get(path).body)
    for index in (*range(0, 80, 5), -4):
        answer = stack.get(f"/ai-sdk/chat/{generation}/stream?startIndex={index}")
        assert answer.status == 200
        found[f"chunks from {index}"] = data_of(answer.body), answer.headers.get("x-workflow-stream-tail-index")
    for cursor in ("0-0", *positions[:-1]):
        reader, stream = read(stack.urls[0], generation, cursor)
        assert set(reader.ids) <= set(positions)
        found[f"native from {cursor}"] = (reader.text, reader.ended, reader.cursor, reader.opens[0], stream.ending)
    reader, _ = read(stack.urls[0], generation, "40-99")
    found["rewound"] = reader.opens[0]["verdict"], reader.text, reader.ended
    reader, _ = read(stack.urls[0], generation, query="from=snapshot")
    found["snapshot"] = reader.text, reader.ended
    return found


async def test_every_door_says_the_same_before_and_after(stack: Stack, store: Store) -> None:
    generation = await asyncio.to_thread(stack.submit, {"text": "unused"})
    entries = await ended(store, generation, WHOLE)
    positions = [entry.position for entry in entries]
    before = await asyncio.to_thread(everything, stack, generation, positions)
    assert before["rewound"][0] == "rewound"
    assert "".join(WORDS[30:]) in before["native from 0-0"][0]
    assert len(before["responses"]) > len(WORDS)
    assert await Log(store).seal(generation, entries)
    after = await asyncio.to_thread(everything, stack, generation, positions)
    for door, said in before.items():
        assert after[door] == said, door


# --- readers who are in the middle ---


@pytest.fixture
async def services(redis_url: str, prefix: str) -> AsyncIterator[Services]:
    """Of one process."""
    settings = Settings(redis_url=redis_url, prefix=prefix)
    async with Services.open(redis_url, settings) as opened:
        yield opened


async def submitted(services: Services) -> str:
    asked = Request(provider="sim", model="sim-1", messages=[{"role": "user", "content": "Hello"}])
    return (await services.records.submit("dev", asked)).id


def long_log(count: int) -> list[Event]:
    text = [Delta(text=f"{number:04d}é") for number in range(count)]
    return [WHOLE[0], *text, Completed(finish_reason=FinishReason.STOP, usage=None, characters=count)]


@pytest.mark.timeout(60)
@pytest.mark.parametrize("chunks_before", [1, 2, 3])
async def test_a_slow_reader_whose_log_is_sealed_meanwhile_gets_the_rest(
    services: Services, chunks_before: int
) -> None:
    """It has had some pages of single entries; the rest comes out of the middle of a joined one."""
    generation = await submitted(services)
    entries = await ended(services.store, generation, long_log(9000))
    viewer = Viewer(services, await start(services, "dev", generation, None, snapshot=False), SSE)
    parser, reader, seen = SseParser(), Reader(), 0
    async for chunk in viewer.chunks():
        for frame in parser.feed(chunk):
            reader.take(frame)
        seen += 1
        if seen == chunks_before:
            assert reader.ended is None
            assert await services.log.seal(generation, entries)
    assert viewer.finished
    assert seen > chunks_before
    assert reader.text == "".join(f"{number:04d}é" for number in range(9000))
    assert reader.cursor == entries[-1].position


class Counting(Silent):
    """Knows what it was given."""

    def __init__(self) -> None:
        self.seen: list[Entry] = []

    def encode(self, entries: Any) -> bytes:
        self.seen += entries
        return b"x"


@pytest.mark.timeout(60)
async def test_an_encoder_is_given_every_event_once_though_the_log_is_sealed_meanwhile(services: Services) -> None:
    generation = await submitted(services)
    entries = await ended(services.store, generation, long_log(5000))
    encoder = Counting()
    viewer = DialectViewer(services, await start(services, "dev", generation, None, snapshot=False), encoder)
    chunks = 0
    async for _ in viewer.chunks():
        chunks += 1
        if chunks == 2:
            assert await services.log.seal(generation, entries)
    assert encoder.seen == entries
    begin = await start(services, "dev", generation, entries[1234].position, snapshot=False)
    again = Counting()
    async for _ in DialectViewer(services, begin, again).chunks():
        pass
    assert again.seen == entries[1235:]


# --- by the worker ---


def test_a_worker_seals_what_has_ended_and_leaves_what_is_short(redis_url: str, tmp_path_factory: Any) -> None:
    """After its first look at the log; a reader of the sealed one gets the same text."""
    with Stack.start(redis_url, tmp_path_factory.mktemp("sealing")) as stack:
        short = stack.submit({"tokens": 5, "seed": 2}, delivery=ONE_BY_ONE)
        long = stack.submit({"tokens": 300, "seed": 1}, delivery=ONE_BY_ONE)
        reader, _ = read(stack.urls[0], long)
        whole = stack.log(long)
        stack.wait_sealed(long)
        assert stack.log(long) == whole
        again, _ = read(stack.urls[0], long)
        assert (again.text, again.ended, again.cursor) == (reader.text, reader.ended, reader.cursor)
        assert len(stack.log(short)) == stack.entries(short)
