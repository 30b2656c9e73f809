"""Plays a client case: the scripted server on one side, the adapter on the other, and what is not as expected."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from tests.conformance.adapter import Adapter
from tests.conformance.cases import Case, mismatches
from tests.conformance.fake import Asked, Fake
from tests.conformance.script import Entry, entries

GENERATION: Final = "gen_0000000000000000000000000000000a"
#: Quick enough to be run often, and long enough for a slow machine.
OPTIONS: Final = {"first_delay_ms": 5, "max_delay_ms": 20, "give_up_ms": 20_000, "silence_ms": 10_000}
#: What a timer may be early by.
TIMER_SECONDS: Final = 0.005
#: Events whose lines the runner looks past: a client may give them or not.
UNSEEN: Final = frozenset({"open", "error"})


class NotSupported(Exception):
    """The client has no means for this command."""


def play(case: Case, adapter: Adapter) -> list[str]:
    """What is not as the case expects; empty: green. Raises `NotSupported`, `AdapterBroken`."""
    return [problem for body in variants(case.body) for problem in _play(body, case, adapter)]


def variants(body: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """A case with a `sweep` is played once for each value of one field of its first connection."""
    sweep = body.get("sweep")
    if sweep is None:
        yield body
        return
    first, *rest = body["connections"]
    for value in range(*sweep["range"]):
        yield {**body, "connections": [{**first, sweep["field"]: value}, *rest]}


def command_of(body: Mapping[str, Any], url: str) -> dict[str, Any]:
    """The command that the adapter gets."""
    op: dict[str, Any] = {"op": "stream", **body["operation"]}
    op.pop("stop_at", None)
    named = {} if op["op"] in ("submit", "list", "stream_thread") else {"generation": GENERATION}
    return {**named, **op, "url": url, "options": {**OPTIONS, **body.get("options", {})}}


def _play(body: Mapping[str, Any], case: Case, adapter: Adapter) -> Iterator[str]:
    connections = body.get("connections", [])
    logs = [_log(connection.get("log", body.get("log")), case.logs) for connection in connections]
    operation = body["operation"]
    if operation.get("op", "stream") not in adapter.ops:
        raise NotSupported(operation.get("op", "stream"))
    with Fake(connections, logs, start_after_ms=body.get("start_after_ms", 0)) as fake:
        lines = list(adapter.run(command_of(body, fake.url), stop_at=operation.get("stop_at")))
        url = fake.url
    *events, outcome = lines
    if outcome["outcome"] == "unsupported":
        raise NotSupported(operation.get("op", "stream"))
    expect = body["expect"]
    where = f" ({connections[0]})" if "sweep" in body else ""
    problems = [
        *fake.faults,
        *mismatches({"outcome": expect["outcome"]}, outcome, "the answer"),
        *_fields(expect, outcome),
        *_events(expect, events),
        *_requests(expect, connections, fake.asked, url),
    ]
    yield from (problem + where for problem in problems)


def _fields(expect: Mapping[str, Any], outcome: Mapping[str, Any]) -> Iterator[str]:
    named = ("text", "position", "error", "generation", "replayed", "state", "generations", "next_cursor", "status")
    wanted = {name: expect[name] for name in named if name in expect}
    yield from mismatches(wanted, outcome, "the outcome")
    if expect["outcome"] == "error" and not str(outcome.get("message", "")).strip():
        yield "the error has no message"


def _events(expect: Mapping[str, Any], lines: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    seen = [line for line in lines if line.get("event") not in UNSEEN and not _clears(line)]
    if "events" in expect:
        wanted = list(expect["events"])
        there = [f"{line['event']} {line['position'] or '-'}" for line in seen]
        if there != wanted:
            yield f"the events are {there} and not {wanted}"
    if "data" in expect:
        for place, data in expect["data"].items():
            found = [line["data"] for line in seen if line["position"] == place]
            yield from mismatches([data], found, f"the events at {place}")


def _clears(line: Mapping[str, Any]) -> bool:
    """A snapshot of nothing, by which a client may say that all begins anew."""
    place = str(line.get("position"))
    return line.get("event") == "snapshot" and place.endswith("0-0") and not line.get("data", {}).get("text")


def _requests(
    expect: Mapping[str, Any], connections: Sequence[Mapping[str, Any]], asked: Sequence[Asked], url: str
) -> Iterator[str]:
    count = expect.get("request_count", len(connections))
    if len(asked) != count:
        yield f"{len(asked)} requests came and not {count}: {[(each.method, each.path, each.cursor) for each in asked]}"
        return
    for number, (wanted, request) in enumerate(zip(expect.get("requests", []), asked, strict=False)):
        name = f"request {number + 1}"
        seen: dict[str, Any] = {"method": request.method, "path": request.path, "query": dict(request.query)}
        seen["headers"] = dict(request.headers)
        if "json" in wanted:
            seen["json"] = json.loads(request.body or b"null")
        if request.cursor is not None:
            seen["cursor"] = request.cursor
        plain = {key: value for key, value in wanted.items() if key not in ("least_ms", "left")}
        if "cursor" in plain and plain["cursor"] is None:
            plain["cursor"] = "-"
        yield from mismatches(plain, seen, name)
        if "least_ms" in wanted:
            waited = request.at - asked[number - 1].answered_at
            if waited < wanted["least_ms"] / 1000 - TIMER_SECONDS:
                yield f"{name} came {waited * 1000:.0f} ms after the last one, and not {wanted['least_ms']} ms"
        if wanted.get("left") and not request.left:
            yield f"{name}: the client did not leave the silent connection"
    if expect.get("one_key"):
        keys = {request.headers.get("idempotency-key") for request in asked}
        if len(keys) != 1 or not keys - {None, ""}:
            yield f"the Idempotency-Keys are {keys}, and not one"
    if "least_ms" in expect and asked:
        took = asked[-1].at - asked[0].at
        if took < expect["least_ms"] / 1000:
            yield f"{len(asked)} requests within {took * 1000:.0f} ms, and not {expect['least_ms']} ms"
    for request in asked:
        if request.method == "GET" and request.path.endswith("/events"):
            yield from mismatches("~.*text/event-stream.*", request.headers.get("accept"), "Accept of a stream")


def _log(log: Any, named: Mapping[str, Any]) -> list[Entry]:
    return entries(named[log] if isinstance(log, str) else log or [])
