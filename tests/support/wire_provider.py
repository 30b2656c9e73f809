"""A model provider for tests: an HTTP/1.1 server on raw sockets that plays a script.

Nothing but raw sockets, because every byte counts here: which chunk ends where, whether the body's end was said, and
whether a connection was closed or reset. A `Reply` is what one request gets; its actions run in order.

    async with WireProvider() as server:
        server.script(Reply.events(openai_stream("Hel", "lo"), piece_bytes=1))
        client = AsyncOpenAI(api_key="test", base_url=server.openai_url)

Where many clients ask at once, `WireProvider(answer)` chooses each reply by its request. With `async with` it runs on
the test's own loop, with a plain `with` in a thread, for tests that are not asynchronous.

`openai_stream`, `anthropic_stream` and `responses_stream` render answers to the bytes of each wire.
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import orjson


@dataclass(frozen=True, slots=True)
class Send:
    """Body bytes, in HTTP chunks of `piece_bytes` (0: one chunk)."""

    data: bytes
    piece_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Pause:
    """Say nothing until the event is set, or the client is gone."""

    until: asyncio.Event


@dataclass(frozen=True, slots=True)
class End:
    """The body ends as it should."""


@dataclass(frozen=True, slots=True)
class Cut:
    """The connection is closed with the body's end unsaid."""


@dataclass(frozen=True, slots=True)
class Rst:
    """The connection is reset."""


Action = Send | Pause | End | Cut | Rst


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What one request gets. `chunked=False` sends the bytes bare: the body ends where the connection does.

    `hold` keeps even the head back until it is set, or the client is gone.
    """

    actions: Sequence[Action] = (End(),)
    status: int = 200
    headers: dict[str, str] = field(default_factory=lambda: {"content-type": "text/event-stream"})
    chunked: bool = True
    hold: asyncio.Event | None = None

    @classmethod
    def events(cls, data: bytes, *, end: Action | None = None, piece_bytes: int = 0, chunked: bool = True) -> Reply:
        """An event stream of `data`, ended by `end` (cleanly where none is given)."""
        return cls(actions=(Send(data, piece_bytes), end or End()), chunked=chunked)

    @classmethod
    def error(cls, status: int, body: object, **headers: str) -> Reply:
        """An HTTP error with a JSON body. Underscores in header names stand for dashes."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return cls(
            actions=(Send(orjson.dumps(body)), End()),
            status=status,
            headers={"content-type": "application/json", **named},
        )


@dataclass(slots=True, kw_only=True)
class Received:
    """A request the server got."""

    method: str
    path: str
    headers: dict[str, str]
    body: Any
    connection: int  # number of the connection it came on, from 1
    gone: asyncio.Event = field(default_factory=asyncio.Event)  # the client closed the connection


class WireProvider:
    """The server. Replies are played in the order they were given; a request too many gets a 500. With `answer` there
    is no script: it says what a request gets. `port` 0 is any."""

    def __init__(self, answer: Callable[[Received], Reply] | None = None, *, port: int = 0) -> None:
        self.requests: list[Received] = []
        self.replied = 0  # replies that were played to their end
        self.open = 0  # requests whose reply is being played
        self.most_open = 0  # at once, so far
        self._answer = answer or self._next_of_script
        self._replies: deque[Reply] = deque()
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self._accepted = 0
        self._port = port
        self._loop: asyncio.AbstractEventLoop | None = None  # of its own
        self._thread: threading.Thread | None = None

    def script(self, *replies: Reply) -> None:
        """What the next requests get, one each."""
        self._replies.extend(replies)

    @property
    def url(self) -> str:
        """As `ANTHROPIC_BASE_URL` takes it."""
        return f"http://127.0.0.1:{self._port}"

    @property
    def openai_url(self) -> str:
        """As `OPENAI_BASE_URL` takes it."""
        return f"{self.url}/v1"

    async def __aenter__(self) -> WireProvider:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self._port)
        self._port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)
        await self._server.wait_closed()

    def __enter__(self) -> WireProvider:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="wire provider", daemon=True)
        self._thread.start()
        return asyncio.run_coroutine_threadsafe(self.__aenter__(), self._loop).result()

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._loop is not None
        assert self._thread is not None
        asyncio.run_coroutine_threadsafe(self.__aexit__(kind, exc, traceback), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def let_go(self, event: asyncio.Event) -> None:
        """Set what a reply waits for, from outside of the server's thread."""
        assert self._loop is not None
        self._loop.call_soon_threadsafe(event.set)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._accepted += 1
        task = asyncio.create_task(self._serve(reader, writer, self._accepted))
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
        try:
            early = b""  # read while a reply was played, to learn when the client goes
            while (request := await self._request(reader, early, number)) is not None:
                watcher = asyncio.create_task(_watch(reader, request.gone))
                self.open += 1
                self.most_open = max(self.most_open, self.open)
                try:
                    try:
                        keep = await self._reply(writer, request)
                    finally:
                        self.open -= 1
                    self.replied += 1
                    early = await watcher if keep else b""
                finally:
                    watcher.cancel()
                if not keep:
                    break
        except ConnectionError:
            pass
        finally:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()

    async def _request(self, reader: asyncio.StreamReader, early: bytes, number: int) -> Received | None:
        try:
            head = early + await reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError:
            return None
        first, *lines = head.decode("latin-1").split("\r\n")
        method, path, _ = first.split(" ")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines if line)}
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        request = Received(
            method=method, path=path, headers=headers, body=orjson.loads(body) if body else None, connection=number
        )
        self.requests.append(request)
        return request

    def _next_of_script(self, request: Received) -> Reply:
        exhausted = Reply.error(500, {"error": {"message": "the script has no reply left"}})
        return self._replies.popleft() if self._replies else exhausted

    async def _reply(self, writer: asyncio.StreamWriter, request: Received) -> bool:
        """Plays the request's reply; says whether the connection may be used again."""
        reply = self._answer(request)
        if reply.hold is not None:
            await _first(reply.hold, request.gone)
        bodyless = reply.status == 204
        chunked = reply.chunked and not bodyless
        headers = dict(reply.headers) | ({"transfer-encoding": "chunked"} if chunked else {})
        if not (chunked or bodyless):
            headers["connection"] = "close"
        lines = [f"HTTP/1.1 {reply.status} Scripted", *(f"{name}: {value}" for name, value in headers.items())]
        writer.write("\r\n".join([*lines, "", ""]).encode("latin-1"))
        for action in reply.actions:
            match action:
                case Send(data, piece_bytes):
                    await _send(writer, data, piece_bytes or len(data) or 1, chunked=chunked)
                case Pause(until):
                    await _first(until, request.gone)
                case End():
                    if chunked:
                        writer.write(b"0\r\n\r\n")
                    await writer.drain()
                    return chunked or bodyless
                case Cut():
                    await writer.drain()
                    return False
                case Rst():
                    await writer.drain()
                    linger = struct.pack("ii", 1, 0)  # on, with no time: close() sends RST
                    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                    writer.transport.abort()
                    return False
        return False


async def _send(writer: asyncio.StreamWriter, data: bytes, piece_bytes: int, *, chunked: bool) -> None:
    batch = 4096  # pieces a write: one write a piece would make single bytes of a long text very slow
    for start in range(0, len(data), piece_bytes * batch):
        block = data[start : start + piece_bytes * batch]
        pieces = (block[at : at + piece_bytes] for at in range(0, len(block), piece_bytes))
        writer.write(b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece for piece in pieces))
        await writer.drain()


async def _watch(reader: asyncio.StreamReader, gone: asyncio.Event) -> bytes:
    """Waits for the client's next byte, or for its going."""
    try:
        early = await reader.read(1)
    except ConnectionError:
        early = b""
    if not early:
        gone.set()
    return early


async def _first(*events: asyncio.Event) -> None:
    tasks = [asyncio.create_task(event.wait()) for event in events]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()


class ByModel:
    """What requests get, by the model they name: its replies in turn, the last one again and again."""

    def __init__(self) -> None:
        self._replies: dict[str, deque[Reply]] = {}

    def script(self, model: str, *replies: Reply) -> None:
        self._replies[model] = deque(replies)

    def __call__(self, request: Received) -> Reply:
        replies = self._replies[request.body["model"]]
        return replies.popleft() if len(replies) > 1 else replies[0]


# --- answers as bytes of each wire ---


def sse(data: object, *, event: str | None = None) -> bytes:
    """One frame. `data` is text that is sent as it is, or anything that JSON can say."""
    text = data if isinstance(data, str) else json.dumps(data, ensure_ascii=False)
    return (f"event: {event}\n" if event else "").encode() + f"data: {text}\n\n".encode()


def openai_chunk(delta: dict[str, Any] | None = None, *, finish_reason: str | None = None, **fields: Any) -> bytes:
    """One chat completion chunk."""
    choice = {"index": 0, "delta": delta or {}, "logprobs": None, "finish_reason": finish_reason}
    chunk = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}
    return sse(chunk | fields)


def openai_stream(
    *texts: str,
    reasoning: Sequence[str] = (),
    tool_calls: Sequence[Sequence[dict[str, Any]]] = (),
    usage: dict[str, Any] | None = None,
    finish_reason: str | None = "stop",
    done: bool = True,
) -> bytes:
    """A whole answer. `tool_calls` holds one list of fragments a chunk."""
    frames = [openai_chunk({"role": "assistant", "content": ""})]
    frames += [openai_chunk({"reasoning_content": text}) for text in reasoning]
    frames += [openai_chunk({"content": text}) for text in texts]
    frames += [openai_chunk({"tool_calls": list(fragments)}) for fragments in tool_calls]
    if finish_reason is not None:
        frames.append(openai_chunk(finish_reason=finish_reason))
    if usage is not None:
        frames.append(openai_chunk(choices=[], usage=usage))
    if done:
        frames.append(sse("[DONE]"))
    return b"".join(frames)


def anthropic_event(kind: str, *, named: bool = True, **fields: Any) -> bytes:
    """One event. `named=False` leaves the `event:` line out."""
    return sse({"type": kind, **fields}, event=kind if named else None)


def anthropic_block(index: int, block: dict[str, Any], *deltas: dict[str, Any], named: bool = True) -> bytes:
    """One content block: its start, its deltas, its end."""
    events = [anthropic_event("content_block_start", named=named, index=index, content_block=block)]
    events += [anthropic_event("content_block_delta", named=named, index=index, delta=delta) for delta in deltas]
    return b"".join([*events, anthropic_event("content_block_stop", named=named, index=index)])


def anthropic_stream(
    *texts: str,
    thinking: Sequence[str] = (),
    tools: Sequence[tuple[str, str, Sequence[str]]] = (),
    input_usage: dict[str, Any] | None = None,
    output_tokens: int = 7,
    stop_reason: str | None = "end_turn",
    stop: bool = True,
    named: bool = True,
) -> bytes:
    """A whole answer. `tools` holds id, name and JSON fragments of each call."""
    usage = input_usage or {"input_tokens": 11, "output_tokens": 1}
    message = {"id": "msg_1", "type": "message", "role": "assistant", "model": "m", "content": [], "usage": usage}
    blocks: list[tuple[dict[str, Any], list[dict[str, Any]]]] = []
    if thinking:
        deltas = [{"type": "thinking_delta", "thinking": text} for text in thinking]
        signature = {"type": "signature_delta", "signature": "c2ln"}
        blocks.append(({"type": "thinking", "thinking": "", "signature": ""}, [*deltas, signature]))
    if texts:
        blocks.append(({"type": "text", "text": ""}, [{"type": "text_delta", "text": text} for text in texts]))
    for call_id, name, fragments in tools:
        deltas = [{"type": "input_json_delta", "partial_json": fragment} for fragment in fragments]
        blocks.append(({"type": "tool_use", "id": call_id, "name": name, "input": {}}, deltas))
    frames = [anthropic_event("message_start", named=named, message=message), anthropic_event("ping", named=named)]
    frames += [anthropic_block(at, block, *deltas, named=named) for at, (block, deltas) in enumerate(blocks)]
    if stop_reason is not None:
        delta = {"stop_reason": stop_reason, "stop_sequence": None}
        frames.append(
            anthropic_event("message_delta", named=named, delta=delta, usage={"output_tokens": output_tokens})
        )
    if stop:
        frames.append(anthropic_event("message_stop", named=named))
    return b"".join(frames)


def responses_event(kind: str, *, named: bool = True, **fields: Any) -> bytes:
    """One event."""
    return sse({"type": kind, "sequence_number": 0, **fields}, event=kind if named else None)


def responses_frames(stream: bytes) -> list[bytes]:
    """The frames of a rendered stream, with `sequence_number`s that count them, as the provider's do."""
    frames = []
    for number, frame in enumerate(stream.removesuffix(b"\n\n").split(b"\n\n")):
        head, mark, data = frame.partition(b"data: ")
        event = orjson.loads(data) | {"sequence_number": number}
        frames.append(head + mark + json.dumps(event, ensure_ascii=False).encode() + b"\n\n")
    return frames


def responses_item(index: int, item: dict[str, Any], *events: tuple[str, dict[str, Any]], named: bool = True) -> bytes:
    """One output item: its start, the events inside it (kind and fields), its end."""
    where = {"output_index": index, "item_id": item["id"]}
    started = {name: [] if name in {"content", "summary"} else value for name, value in item.items()}
    if "arguments" in item:
        started["arguments"] = ""
    frames = [responses_event("response.output_item.added", named=named, output_index=index, item=started)]
    frames += [responses_event(f"response.{kind}", named=named, **where, **fields) for kind, fields in events]
    return b"".join([*frames, responses_event("response.output_item.done", named=named, output_index=index, item=item)])


def responses_call(
    index: int, call_id: str, name: str, *fragments: str, named: bool = True
) -> tuple[dict[str, Any], bytes]:
    """A function call, as an item and as its events."""
    arguments = "".join(fragments)
    item = {"id": f"fc_{index}", "type": "function_call", "call_id": call_id, "name": name, "arguments": arguments}
    events: list[tuple[str, dict[str, Any]]] = []
    events += [("function_call_arguments.delta", {"delta": fragment}) for fragment in fragments]
    events.append(("function_call_arguments.done", {"arguments": arguments}))
    return item, responses_item(index, item, *events, named=named)


def responses_stream(
    *texts: str,
    reasoning: Sequence[str] = (),
    summary: Sequence[str] = (),
    refusal: Sequence[str] = (),
    tools: Sequence[tuple[str, str, Sequence[str]]] = (),
    usage: dict[str, Any] | None = None,
    status: str | None = "completed",
    details: dict[str, Any] | None = None,
    error: dict[str, Any] | None = None,
    named: bool = True,
    echo: bool = True,
) -> bytes:
    """A whole answer. `tools` holds id, name and JSON fragments of each call.

    `status` is that of the terminal event (`None`: there is none); `echo=False` leaves out what repeats the answer.
    """
    response: dict[str, Any] = {"id": "resp_1", "object": "response", "status": "in_progress", "model": "m"}
    response |= {"output": [], "error": None, "incomplete_details": None, "usage": None}
    output: list[dict[str, Any]] = []
    frames = [
        responses_event(f"response.{kind}", named=named, response=response) for kind in ("created", "in_progress")
    ]
    if reasoning or summary:
        thought: list[tuple[str, dict[str, Any]]] = []
        thought += [("reasoning_text.delta", {"content_index": 0, "delta": text}) for text in reasoning]
        thought += [("reasoning_summary_text.delta", {"summary_index": 0, "delta": text}) for text in summary]
        output.append({"id": "rs_1", "type": "reasoning", "summary": []})
        frames.append(responses_item(0, output[-1], *thought, named=named))
    if texts or refusal:
        said: list[tuple[str, dict[str, Any]]] = []
        parts: list[dict[str, Any]] = []
        for kind, pieces in (("output_text", texts), ("refusal", refusal)):
            if not pieces:
                continue
            where = {"content_index": len(parts)}
            field_name = "text" if kind == "output_text" else "refusal"
            part = {"type": kind, field_name: "".join(pieces) if echo else ""}
            said.append(("content_part.added", where | {"part": {"type": kind, field_name: ""}}))
            said += [(f"{kind}.delta", where | {"delta": piece}) for piece in pieces]
            if echo:
                said.append((f"{kind}.done", where | {field_name: part[field_name]}))
                said.append(("content_part.done", where | {"part": part}))
            parts.append(part)
        output.append({"id": "msg_1", "type": "message", "role": "assistant", "status": "completed", "content": parts})
        frames.append(responses_item(len(output) - 1, output[-1], *said, named=named))
    for call_id, name, fragments in tools:
        item, rendered = responses_call(len(output), call_id, name, *fragments, named=named)
        output.append(item)
        frames.append(rendered)
    if status is not None:
        end = {"status": status, "output": output if echo else [], "usage": usage}
        end |= {"incomplete_details": details, "error": error}
        frames.append(responses_event(f"response.{status}", named=named, response=response | end))
    return b"".join(frames)
