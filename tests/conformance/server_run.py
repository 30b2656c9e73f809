"""Plays a server case: step by step against a URL, and what is not as expected."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any, Final
from uuid import uuid4

from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from tests.conformance.cases import Case, filled, mismatches
from tests.support.sse_client import TERMINAL, Answer, Ending, Frame, Stream, request

#: How long a generation may take to get to a status.
WAIT_SECONDS: Final = 30.0
POLL_SECONDS: Final = 0.02


def play(case: Case, url: str) -> list[str]:
    """What is not as the case expects; empty: green."""
    variables = {"run": uuid4().hex[:12]}  # makes names that no other run has
    for number, step in enumerate(case.body["steps"], start=1):
        problems = [f"step {number}: {problem}" for problem in _step(filled(step, variables), url, variables)]
        if problems:
            return problems
    return []


def _step(step: Mapping[str, Any], url: str, variables: dict[str, str]) -> Iterator[str]:
    match step:
        case {"submit": options}:
            yield from _submit(options, url, variables, step.get("as", "gen"))
        case {"wait": status}:
            yield from _wait(url, step.get("of") or variables["gen"], status)
        case {"read": asked}:
            yield from _read(asked, step.get("expect", {}), step.get("save", {}), url, variables)
        case {"websocket": asked}:
            yield from _websocket(asked, step.get("expect", {}), url, variables)
        case {"request": asked}:
            yield from _request(asked, step.get("expect", {}), step.get("save", {}), url, variables)


#: Of submits that say what a token is, and not where it breaks: with a length said, tokens that wait are not joined.
_ONE_BY_ONE: Final = {"max_chars": 100}


def _submit(options: Mapping[str, Any], url: str, variables: dict[str, str], name: str) -> Iterator[str]:
    options = dict(options)
    body = {
        "provider": "sim",
        "model": "sim-1",
        "messages": [{"role": "user", "content": "Say something."}],
        **({"delivery": _ONE_BY_ONE} if "chunk_chars" in options and "faults" not in options else {}),
        **options.pop("fields", {}),
        "provider_options": options,
    }
    answer = request(url, "POST", "/v1/generations", body=json.dumps(body).encode())
    if answer.status != 202:
        yield f"the submit was answered {answer.status} {answer.body[:300]!r}"
        return
    variables[name] = answer.json()["id"]


def _wait(url: str, generation: str, status: str) -> Iterator[str]:
    deadline = time.monotonic() + WAIT_SECONDS
    seen = ""
    while time.monotonic() < deadline:
        answer = request(url, "GET", f"/v1/generations/{generation}")
        seen = answer.json().get("status", str(answer.status))
        if seen == status:
            return
        time.sleep(POLL_SECONDS)
    yield f"the generation is {seen} and not {status}"


def _request(
    asked: Mapping[str, Any], expect: Mapping[str, Any], save: Mapping[str, str], url: str, variables: dict[str, str]
) -> Iterator[str]:
    answer = request(url, asked["method"], asked["path"], headers=asked.get("headers"), body=_body(asked))
    wanted = {name: expect[name] for name in ("status", "headers") if name in expect}
    yield from mismatches(wanted, {"status": answer.status, "headers": answer.headers}, "the answer")
    if (code := expect.get("problem")) is not None:
        yield from _problem(answer, code)
    if expect.get("empty") and answer.body:
        yield f"the answer has a body: {answer.body[:200]!r}"
    if "json" in expect:
        yield from mismatches(expect["json"], _json(answer), "the body")
    for name, field in save.items():
        value = _json(answer)
        for part in field.split("."):
            value = value[int(part) if part.isdigit() else part]
        variables[name] = str(value)


def _problem(answer: Answer, code: str) -> Iterator[str]:
    """RFC 9457, as section 11 has it."""
    if not answer.headers.get("content-type", "").startswith("application/problem+json"):
        yield f"the answer is {answer.headers.get('content-type')} and no problem document: {answer.body[:200]!r}"
        return
    wanted = {"type": f"urn:legato:problem:{code}", "code": code, "status": answer.status, "title": "*", "detail": "*"}
    yield from mismatches(wanted, _json(answer), "the problem")


def _body(asked: Mapping[str, Any]) -> bytes | None:
    if "json" in asked:
        return json.dumps(asked["json"]).encode()
    if "body" in asked:
        return str(asked["body"]).encode()
    if "body_bytes" in asked:
        return b'"' + b"x" * (asked["body_bytes"] - 2) + b'"'
    return b"" if asked["method"] == "POST" else None


def _json(answer: Answer) -> Any:
    try:
        return answer.json()
    except ValueError:
        return None


def _read(
    asked: Mapping[str, Any], expect: Mapping[str, Any], save: Mapping[str, str], url: str, variables: dict[str, str]
) -> Iterator[str]:
    path = asked.get("path") or f"/v1/generations/{asked.get('of', variables.get('gen'))}/events"
    headers = {"Accept": asked.get("accept", "text/event-stream"), **asked.get("headers", {})}
    if "cursor" in asked:
        headers["Last-Event-ID"] = asked["cursor"]
    if asked.get("query"):
        path += "?" + asked["query"]
    frames: list[Frame] = []
    body = json.dumps(asked["json"]).encode() if "json" in asked else None
    with Stream(
        url, path, method=asked.get("method", "GET"), headers=headers, body=body, version=asked.get("http", "1.1")
    ) as stream:
        for frame in stream.frames() if stream.status == 200 else ():
            frames.append(frame)
            if asked.get("until", "the end") in (frame.event, frame.id):
                stream.cut()
                break
    seen: dict[str, Any] = {"status": stream.status, "headers": stream.headers}
    if stream.ending is not Ending.CUT:
        seen["ending"] = stream.ending.value if stream.ending else None
    wanted = {name: expect[name] for name in ("status", "headers", "ending") if name in expect}
    yield from mismatches(wanted, seen, "the answer")
    yield from _frames(frames, expect)
    for name in save:
        positions = [frame.id for frame in frames if frame.id is not None]
        if positions:
            variables[name] = positions[-1]
        else:
            yield "no event had a position"


def _websocket(
    asked: Mapping[str, Any], expect: Mapping[str, Any], url: str, variables: Mapping[str, str]
) -> Iterator[str]:
    """Take messages, acknowledge each unless told not to, and say what the case says, to the close."""
    path = f"/v1/generations/{asked.get('of', variables.get('gen'))}/ws?{asked.get('query', '')}"
    frames: list[Frame] = []
    cancelled = False
    with connect(url.replace("http", "ws", 1) + path, open_timeout=WAIT_SECONDS, max_size=None) as socket:
        try:
            for message in asked.get("send", []):
                socket.send(message if isinstance(message, str) else json.dumps(message))
            while True:
                said = json.loads(socket.recv(timeout=WAIT_SECONDS))
                if said["event"] == "ping":
                    continue
                frames.append(Frame(said.get("id"), said["event"], said.get("data")))
                answers = [{"type": "ack", "position": said["id"]}] if said.get("id") and asked.get("ack", True) else []
                if said["event"] == asked.get("cancel_at") and not cancelled:
                    answers.append({"type": "cancel"})
                    cancelled = True
                with suppress(ConnectionClosed):  # what was sent before the close is still to be read
                    for answer in answers:
                        socket.send(json.dumps(answer))
        except ConnectionClosed as closed:
            code = closed.rcvd.code if closed.rcvd else None
    if "close" in expect:
        yield from mismatches(expect["close"], code, "the close")
    yield from _frames(frames, expect)


def _frames(frames: list[Frame], expect: Mapping[str, Any]) -> Iterator[str]:
    events = [frame for frame in frames if frame.event != "open"]
    if "open" in expect:
        first = {"event": frames[0].event, "id": frames[0].id, **frames[0].data} if frames else {}
        yield from mismatches({"event": "open", "id": None, **expect["open"]}, first, "the first event")
    if "events" in expect:
        names = [frame.event for frame in events]
        short = [name for place, name in enumerate(names) if name != "delta" or names[place - 1 : place] != ["delta"]]
        if short != expect["events"]:
            yield f"the events are {short} and not {expect['events']}"
    if "text" in expect:
        yield from mismatches(expect["text"], text_of(events), "the text")
    for item in expect.get("texts", ()):
        ours = [frame for frame in events if frame.data.get("generation") == item["of"]]
        yield from mismatches(item["text"], text_of(ours), f"the text of {item['of']}")
    if "positions" in expect:
        yield from mismatches(expect["positions"], [frame.id for frame in events if frame.id], "the positions")
    if expect.get("dense"):
        places = [
            int(frame.id.rpartition("/")[2].split("-")[0]) for frame in events if frame.id and frame.event != "snapshot"
        ]
        if places != sorted(set(places)):
            yield f"the positions go back, or come twice: {places}"
    if len(frames) > expect.get("frames_at_most", len(frames)):
        yield f"{len(frames)} frames came, and not {expect['frames_at_most']} at most"
    for name, place in (("first", 0), ("last", -1)):
        if name in expect:
            frame = events[place] if events else Frame(None, "nothing", {})
            there = {"event": frame.event, "id": frame.id, **frame.data}
            yield from mismatches(expect[name], there, f"the {name} event")


def text_of(frames: list[Frame]) -> str:
    """The plain text of a reader of these."""
    text = ""
    for frame in frames:
        if frame.event == "delta" and "kind" not in frame.data:
            text += frame.data["text"]
        elif frame.event == "reset":
            text = ""
        elif frame.event == "snapshot":
            text = frame.data["text"]
        elif frame.event in TERMINAL:
            break
    return text
