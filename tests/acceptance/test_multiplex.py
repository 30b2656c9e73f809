"""Many generations over one connection, with real processes."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlencode
from uuid import uuid4

import httpx
import pytest
from httpx_sse import connect_sse

from broker.embedded import EmbeddedServer
from tests.support.servers import free_port
from tests.support.sse_client import NDJSON, SSE, Ending, Frame, Reader, Stream, request
from tests.support.stack import Stack
from worker.providers.sim import sim_text


@pytest.fixture(scope="module")
def stack(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    directory = tmp_path_factory.mktemp("multiplex")
    with Stack.start(redis_url, directory, apis=2, environment={"LEGATO_PING_SECONDS": "1"}) as running:
        yield running


class Page:
    """A page that shows many answers over one connection: a least client for each."""

    def __init__(self, generations: list[str] = [], threads: list[str] = []) -> None:  # noqa: B006 - only read
        self.names = [("generation", name) for name in generations] + [("thread", name) for name in threads]
        self.cursor: str | None = None
        self.readers: dict[str, Reader] = {name: Reader() for name in generations}
        self.gone: dict[str, int] = {}
        self.order: list[str] = []  # whose frames came

    def open(self, url: str, *, accept: str = SSE, method: str = "GET", **options: object) -> Stream:
        headers = {"Accept": accept} | ({"Last-Event-ID": self.cursor} if self.cursor is not None else {})
        path = "/v1/events?" + urlencode(self.names)
        return Stream(url, path, headers=headers, method=method, **options)  # type: ignore[arg-type]

    def read(self, url: str, **options: object) -> Stream:
        """One body, from the cursor to its end."""
        with self.open(url, **options) as stream:
            for frame in stream.frames():
                self.take(frame)
        return stream

    def take(self, frame: Frame) -> None:
        name = frame.data["generation"]
        self.order.append(name)
        if frame.id is not None:
            self.cursor = frame.id
            places = dict(place.split("/") for place in frame.id.split(","))
            frame = replace(frame, id=places[name[-8:]])
        if frame.event == "gone":
            assert name not in self.gone, "told twice"
            self.gone[name] = frame.data["status"]
            return
        self.readers.setdefault(name, Reader()).take(frame)

    def follow(self, urls: list[str], *, cuts: Iterator[int | None] | None = None, accept: str = SSE) -> int:
        """Read until 204; how many connections it took."""
        deadline, turn = time.monotonic() + 100, 0
        while True:
            assert time.monotonic() < deadline, self.readers
            turn += 1
            try:
                cut_at = next(cuts, None) if cuts is not None else None
                stream = self.read(urls[turn % len(urls)], cut_at=cut_at, accept=accept)
            except ConnectionError:
                continue
            if stream.status == 204:
                return turn
            assert stream.ending is Ending.CUT or stream.status == 200, stream.status

    @property
    def texts(self) -> dict[str, str]:
        """Of those that completed."""
        return {
            name: reader.text
            for name, reader in self.readers.items()
            if reader.ended and reader.ended.event == "completed"
        }


@pytest.mark.parametrize(("accept", "seed"), [(SSE, 1), (SSE, 2), (NDJSON, 3)])
def test_many_texts_are_whole_through_random_cuts(stack: Stack, accept: str, seed: int) -> None:
    """24 at once, ended ones and slow ones, over connections that break at any byte: every text identical, no event of
    any generation doubled or missed (the readers fail on an id that they have seen)."""
    rng = random.Random(seed)
    options = {
        stack.submit(job): job
        for job in (
            {"tokens": rng.randint(5, 150), "seed": n, "tokens_per_second": rng.choice([0, 30, 60, 200])}
            for n in range(24)
        )
    }
    page = Page(list(options))
    cuts = iter([rng.randint(400, 20_000) for _ in range(60)])
    connections = page.follow(stack.urls, cuts=cuts, accept=accept)
    assert connections > 5
    assert page.texts == {name: sim_text(int(job["tokens"]), int(job["seed"])) for name, job in options.items()}
    assert page.gone == {}


def test_httpx_sse_reads_all_of_them_by_the_cursor_alone(stack: Stack) -> None:
    """A library that knows nothing of this: it comes back with the last id, however the body ended, until 204."""
    names = [stack.submit({"tokens": 60, "seed": n, "tokens_per_second": 60}) for n in range(8)]
    texts, ended, last, connections = dict.fromkeys(names, ""), set(), "", 0
    with httpx.Client(base_url=stack.urls[0], timeout=60) as client:
        while True:
            query = [("generation", name) for name in names]
            headers = {"Last-Event-ID": last} if last else {}
            with connect_sse(client, "GET", "/v1/events", params=query, headers=headers) as source:
                if source.response.status_code == 204:
                    break
                connections += 1
                for number, event in enumerate(source.iter_sse()):
                    data = event.json()
                    last = event.id or last
                    if event.event == "delta":
                        texts[data["generation"]] += data["text"]
                    if event.event == "completed":
                        assert data["generation"] not in ended
                        ended.add(data["generation"])
                    if connections < 6 and number == 15:
                        break
    assert texts == {name: sim_text(60, n) for n, name in enumerate(names)}
    assert ended == set(names)
    assert connections > 1


def test_one_connection_carries_all_to_their_ends_and_ends_cleanly(stack: Stack) -> None:
    names = [stack.submit({"tokens": 20, "seed": n, "tokens_per_second": 40 + 20 * n}) for n in range(6)]
    page = Page(names)
    stream = page.read(stack.urls[0])
    assert (stream.status, stream.ending) == (200, Ending.CLEAN)
    assert page.texts == {name: sim_text(20, n) for n, name in enumerate(names)}
    assert [reader.opens[0]["verdict"] for reader in page.readers.values()] == ["start"] * 6
    after = page.read(stack.urls[1])
    assert (after.status, after.headers["content-type"]) == (204, "text/event-stream")
    assert page.cursor is not None
    assert len(page.cursor) < 6 * 20


def test_what_is_gone_is_said_once_and_the_others_go_on(stack: Stack) -> None:
    erased, whole = stack.submit({"tokens": 3}), stack.submit({"tokens": 30, "seed": 5, "tokens_per_second": 60})
    stack.wait_status(erased, "completed")
    stack.delete(f"/v1/generations/{erased}")
    unknown = "gen_" + "0" * 31 + "7"
    page = Page([erased, unknown, whole])
    stream = page.read(stack.urls[0])
    assert stream.ending is Ending.CLEAN
    assert page.gone == {erased: 410, unknown: 404}
    assert page.texts == {whole: sim_text(30, 5)}
    assert page.read(stack.urls[1]).status == 204
    alone = Page([erased])
    assert alone.read(stack.urls[0]).ending is Ending.CLEAN
    assert alone.gone == {erased: 410}
    assert alone.read(stack.urls[0]).status == 204


def test_one_that_is_erased_while_it_is_read_ends_alone(stack: Stack) -> None:
    erased = stack.submit({"tokens": 2000, "tokens_per_second": 30})
    whole = stack.submit({"tokens": 60, "seed": 5, "tokens_per_second": 30})
    page = Page([erased, whole])
    deleted = False
    with page.open(stack.urls[0]) as stream:
        for frame in stream.frames():
            page.take(frame)
            if not deleted and page.readers[erased].text and page.readers[whole].text:
                stack.delete(f"/v1/generations/{erased}")
                deleted = True
    assert stream.ending is Ending.CLEAN
    end = page.readers[erased].ended
    assert end is not None
    assert (end.event, end.data["reason"], end.id) == ("cancelled", "deleted", None)
    assert page.texts == {whole: sim_text(60, 5)}


def test_the_list_may_change_from_one_connection_to_the_next(stack: Stack) -> None:
    names = [stack.submit({"tokens": 12, "seed": n}) for n in range(4)]
    for name in names:
        stack.wait_status(name, "completed")
    page = Page(names[:3])
    page.read(stack.urls[0])
    page.names = [("generation", name) for name in names[1:]]
    stream = page.read(stack.urls[1])
    assert stream.ending is Ending.CLEAN
    assert page.texts == {name: sim_text(12, n) for n, name in enumerate(names)}
    assert page.cursor is not None
    assert names[0][-8:] not in page.cursor
    assert page.read(stack.urls[1]).status == 204


def test_a_position_that_the_log_does_not_hold_rewinds_that_one_alone(stack: Stack) -> None:
    names = [stack.submit({"tokens": 12, "seed": n}) for n in range(2)]
    for name in names:
        stack.wait_status(name, "completed")
    page = Page(names)
    page.cursor = f"{names[0][-8:]}/5-77,{names[1][-8:]}/1-1"
    page.read(stack.urls[0])
    assert [page.readers[name].opens[0]["verdict"] for name in names] == ["rewound", "resumed"]
    assert page.texts == {name: sim_text(12, n) for n, name in enumerate(names)}


def test_threads_give_their_generations_one_after_another(stack: Stack) -> None:
    threads = [f"m {uuid4().hex[:6]}" for _ in range(3)]
    expected = {}
    for n, thread in enumerate(threads):
        for k in range(n):
            options = {"tokens": 15, "seed": 10 * n + k, "tokens_per_second": 100}
            expected[stack.submit(options, thread=thread)] = sim_text(15, 10 * n + k)
    plain = stack.submit({"tokens": 40, "seed": 99, "tokens_per_second": 60})
    expected[plain] = sim_text(40, 99)
    page = Page([plain], threads)
    firsts = [name for name, text in expected.items() if text in (sim_text(15, 10), sim_text(15, 20))]
    for name in firsts:
        stack.wait_entries(name, 1)
    # Without a place in a thread its running generation is shown, or its last one: this page has seen the first begin.
    page.cursor = ",".join(f"{name[-8:]}/1-1" for name in firsts)
    rng = random.Random(3)
    page.follow(stack.urls, cuts=iter([rng.randint(300, 4000) for _ in range(10)]))
    assert page.texts == expected
    more = stack.submit({"tokens": 9, "seed": 7}, thread=threads[2])
    page.follow(stack.urls)
    assert page.texts == expected | {more: sim_text(9, 7)}


def test_a_thread_whose_next_one_has_said_nothing_yet_keeps_its_place(redis_url: str, tmp_path: Path) -> None:
    """One place in the worker: the second of the thread waits while another's frames move the cursor on. Dropped, the
    place would let the reader come back to the newest of the thread, past the second."""
    with Stack.start(redis_url, tmp_path, environment={"LEGATO_WORKER_CONCURRENCY": "1"}) as stack:
        first = stack.submit({"tokens": 5, "seed": 1}, thread="t")
        stack.wait_status(first, "completed")
        page = Page([], ["t"])
        page.read(stack.urls[0])
        other = stack.submit({"tokens": 9_000, "tokens_per_second": 50})
        stack.wait_entries(other, 3)
        second, third = (stack.submit({"tokens": 5, "seed": n}, thread="t") for n in (3, 4))
        page.names.insert(0, ("generation", other))
        with page.open(stack.urls[0]) as stream:
            for frame in stream.frames():
                page.take(frame)
                if page.readers.get(other) and len(page.readers[other].ids) > 3:
                    break
        assert page.cursor is not None
        assert first[-8:] in page.cursor
        assert stack.post(f"/v1/generations/{other}/cancel").status == 202
        for name in (second, third):
            stack.wait_status(name, "completed", seconds=60)
        page.follow(stack.urls)
        assert page.texts == {
            first: sim_text(5, 1),
            second: sim_text(5, 3),
            third: sim_text(5, 4),
        }


def test_a_long_replay_lets_a_short_one_pass(stack: Stack) -> None:
    long, short = stack.submit({"tokens": 60_000, "seed": 1}), stack.submit({"tokens": 30, "seed": 2})
    for name in (long, short):
        stack.wait_status(name, "completed", seconds=90)
    page = Page([long, short])
    page.read(stack.urls[0])
    assert page.texts == {long: sim_text(60_000, 1), short: sim_text(30, 2)}
    last_of_short = len(page.order) - page.order[::-1].index(short)
    assert page.order[last_of_short:].count(long) > page.order[:last_of_short].count(long)


def test_a_reader_that_takes_nothing_costs_no_memory(stack: Stack) -> None:
    text = "x" * 900_000
    names = [stack.submit({"text": text, "chunk_chars": 9_000}) for _ in range(20)]
    for name in names:
        stack.wait_status(name, "completed", seconds=60)
    api, page = stack.apis[0], Page(names)
    before = api.resident_bytes()
    with page.open(api.url, receive_bytes=4096) as stream:
        deadline = time.monotonic() + 1.5
        most = 0
        while time.monotonic() < deadline:
            most = max(most, api.resident_bytes() - before)
            time.sleep(0.05)
        for frame in stream.frames():
            page.take(frame)
    assert most < 15_000_000, "of 18 MB that there are to send"
    assert page.texts == dict.fromkeys(names, text)


def test_silence_is_one_ping_for_all(stack: Stack) -> None:
    names = [stack.submit({"tokens": 2, "first_token_ms": 6000}) for _ in range(10)]
    page = Page(names)
    stream = page.read(stack.urls[0])
    assert stream.ending is Ending.CLEAN
    assert 1 <= stream.parser.pings <= 12
    assert stream.parser.blank_blocks == 0


def test_a_drain_cuts_and_another_process_goes_on(redis_url: str, tmp_path: Path) -> None:
    with Stack.start(redis_url, tmp_path, apis=2) as stack:
        names = [stack.submit({"tokens": 300, "seed": n, "tokens_per_second": 40}) for n in range(8)]
        page = Page(names)
        leaving, staying = stack.apis
        told = False
        with page.open(leaving.url) as stream:
            for frame in stream.frames():
                page.take(frame)
                if not told and all(reader.text for reader in page.readers.values()):
                    leaving.terminate()
                    told = True
        assert stream.ending is Ending.INCOMPLETE
        assert not page.texts
        leaving.wait()
        page.follow([staying.url])
        assert page.texts == {name: sim_text(300, n) for n, name in enumerate(names)}


def test_a_restart_of_the_store_is_waited_out(tmp_path: Path) -> None:
    with (
        EmbeddedServer.start(tmp_path / "store", port=free_port()) as server,
        Stack.start(server.url, tmp_path) as stack,
    ):
        names = [stack.submit({"tokens": 80, "seed": n, "tokens_per_second": 40}) for n in range(5)]
        page = Page(names)
        restarted = False
        with page.open(stack.urls[0]) as stream:
            for frame in stream.frames():
                page.take(frame)
                if not restarted and all(len(reader.ids) > 3 for reader in page.readers.values()):
                    server.kill()
                    server.restart()
                    restarted = True
        page.follow(stack.urls)
        assert page.texts == {name: sim_text(80, n) for n, name in enumerate(names)}


def test_bad_requests_are_named(stack: Stack) -> None:
    mine = stack.submit({"tokens": 1})

    def ask(query: str, accept: str = SSE, **headers: str) -> tuple[int, str, list[str]]:
        answer = request(stack.urls[0], "GET", f"/v1/events{query}", headers={"Accept": accept, **headers})
        body = json.loads(answer.body)
        return answer.status, body["code"], [item["field"] for item in body.get("errors", [])]

    assert ask("") == (400, "invalid_query", ["generation"])
    assert ask("?generation=gen_x") == (400, "invalid_query", ["generation"])
    assert ask("?thread=") == (400, "invalid_query", ["thread"])
    assert ask("?thread=" + "x" * 129) == (400, "invalid_query", ["thread"])
    many = "&".join(f"generation=gen_{n:032x}" for n in range(51))
    assert ask("?" + many) == (400, "invalid_query", ["generation"])
    alike = f"?generation=gen_{'0' * 31}1&generation=gen_{'0' * 23}100000001"
    assert ask(alike)[:2] == (400, "invalid_query")
    for cursor in ("1-1", mine + "/1-1", "zzzzzzzz/1-1", f"{mine[-8:]}/1-1,"):
        assert ask(f"?generation={mine}", **{"Last-Event-ID": cursor})[:2] == (400, "invalid_position")
    assert ask(f"?generation={mine}", accept="application/json")[:2] == (406, "not_acceptable")
    assert ask(f"?generation={mine}&from=there")[:2] == (400, "invalid_query")


def test_head_reads_nothing(stack: Stack) -> None:
    page = Page([stack.submit({"tokens": 2, "first_token_ms": 30_000})])
    with page.open(stack.urls[0], method="HEAD") as stream:
        assert (stream.status, stream.rest()) == (200, b"")
    stack.delete(f"/v1/generations/{page.names[0][1]}")
