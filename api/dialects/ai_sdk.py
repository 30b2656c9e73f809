"""The routes of the AI SDK: `useChat` and `WorkflowChatTransport`, unmodified, over the logs of ordinary generations.

    POST /ai-sdk/chat                   a message, and its answer as a UI message stream
    GET  /ai-sdk/chat/{chat}/stream     the running or last answer of a chat, whole; with `startIndex`, its rest
    POST /ai-sdk/chat/{chat}/stop       cancel it

A chat is the thread `ai-sdk:<chat id>`; nothing else is kept of it. Where a chat is named, the id of a generation may
be, too: `WorkflowChatTransport` reads on by the id that the POST answered in `x-workflow-run-id`.

Deliberate oddities:
- Errors are plain text: `useChat` shows the body of the answer to its user as it is.
- The body of a POST is JSON whatever its Content-Type says: `WorkflowChatTransport` sends it as text.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any, Final, get_args

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from api.auth import authenticate
from api.dialects.ai_sdk_messages import converted
from api.dialects.ai_sdk_stream import Chunk, ResetStyle, UiMessageStream, framed, joined, replayed
from api.dialects.encoder import CannotTakeBack
from api.dialects.viewer import DialectStream, last_reset
from api.problem import Problem
from api.services import Services
from api.submit import idempotency_key, parse, refusal, submit_job, validate
from api.viewer import start
from broker.errors import GenerationExpired, GenerationUnknown
from broker.events import CancelReason, Entry, Json
from broker.generation import Record, is_id
from broker.generation import Request as Job
from broker.options import Wrong
from broker.settings import Settings

PREFIX: Final = "/ai-sdk/"

#: Of threads that are chats; behind it stands the chat's id.
THREAD: Final = "ai-sdk:"
_MOST_CHAT_CHARS: Final = 128 - len(THREAD)

_TRIGGERS: Final = ("submit-message", "regenerate-message")

#: Fields of a POST that are the SDK's; the others are those of a submit, for the application to set.
_OWN: Final = frozenset({"id", "messages", "trigger", "messageId", "system"})
_NOT_HERE: Final = frozenset({"thread", "stream"})

_STREAM: Final = {"x-vercel-ai-ui-message-stream": "v1"}

_INDEX: Final = re.compile(r"-?[0-9]{1,15}")

_Handler = Callable[[Services, Request], Awaitable[Response]]


def routes(services: Services) -> list[BaseRoute]:
    """The three routes."""

    def route(path: str, handler: _Handler, methods: list[str]) -> Route:
        return Route(path, partial(handler, services), methods=methods, include_in_schema=False)

    return [
        route("/ai-sdk/chat", _post, ["POST"]),
        route("/ai-sdk/chat/{chat}/stream", _replay, ["GET"]),
        route("/ai-sdk/chat/{chat}/stop", _stop, ["POST"]),
    ]


class AiSdkError(Problem):
    """A problem as `useChat` shows it: the body of the answer, as it is. The code is in a header."""

    media_type = b"text/plain; charset=utf-8"

    def body(self) -> bytes:
        """What is wrong, and each field on a line of its own."""
        return "\n".join([self.detail, *(f"{item.field}: {item.message}" for item in self.fields)]).encode()


def shape(problem: Problem) -> AiSdkError:
    """The same problem, for a client of the AI SDK."""
    headers = problem.headers | {"X-Legato-Code": problem.code}
    return AiSdkError(problem.status, problem.code, problem.detail, fields=problem.fields, headers=headers)


# --- POST /ai-sdk/chat ---


async def _post(services: Services, request: Request) -> Response:
    tenant = authenticate(request.scope)
    body = parse(await request.body())
    if not isinstance(body, dict):
        raise Problem(422, "invalid_request", "the body must be an object, as useChat posts it")
    resets = _resets(request, services.settings)
    job = _job(body, services.settings)
    accepted = await submit_job(
        services, tenant, job, key=idempotency_key(request), body=body, route="POST /ai-sdk/chat"
    )
    begin = await start(services, tenant, accepted.id, None, snapshot=False, queued=True)
    # Only `WorkflowChatTransport` says no trigger, and it knows `reset-step`.
    resets = resets if "trigger" in body else "reset-step"
    stream = UiMessageStream(_message_id(accepted.id, job.dialect), resets=resets)
    encoder = _Encoder(stream, counting=True)
    return DialectStream(services, begin, encoder, headers=_headers(accepted.id))


def _job(body: Json, settings: Settings) -> Job:
    """The job that a POST asks for. Raises `Problem` that names everything that is wrong."""
    messages, wrong = converted(body.get("messages"))
    wrong += _wrong_fields(body)
    if wrong:
        raise refusal(wrong)
    system = body.get("system", settings.ai_sdk_defaults.get("system"))
    if system and not (messages and messages[0]["role"] == "system"):
        messages.insert(0, {"role": "system", "content": system})
    asked = {name: value for name, value in settings.ai_sdk_defaults.items() if name != "system"}
    asked |= {name: value for name, value in body.items() if name not in _OWN}
    asked["messages"] = messages
    if isinstance(chat := body.get("id"), str):
        asked["thread"] = THREAD + chat
    elif "thread_policy" not in body:
        asked.pop("thread_policy", None)  # of the defaults: without a chat there is nobody to wait for
    wanted = validate(asked, settings)
    last = body["messages"][-1]
    # The answer goes on with the assistant's message, where that is the last one: its tools have answered.
    goes_on = last["role"] == "assistant" and isinstance(last.get("id"), str)
    return replace(wanted.job(), dialect={"message_id": last["id"], "parts": last["parts"]} if goes_on else {})


def _wrong_fields(body: Json) -> Iterator[Wrong]:
    chat = body.get("id")
    if chat is not None and not (isinstance(chat, str) and 0 < len(chat) <= _MOST_CHAT_CHARS and chat.isprintable()):
        yield Wrong(("id",), f"it must be a string of 1 to {_MOST_CHAT_CHARS} printable characters")
    if body.get("trigger") not in (None, *_TRIGGERS):
        yield Wrong(("trigger",), f"it must be {' or '.join(_TRIGGERS)}")
    for name in ("messageId", "system"):
        if not isinstance(body.get(name), str | None):
            yield Wrong((name,), "it must be a string")
    if body.get("tool_mode") == "interactive":
        yield Wrong(
            ("tool_mode",), "useChat sends the results of its tools as a new request: return does that, or server"
        )
    for name in sorted(_NOT_HERE & body.keys()):
        yield Wrong((name,), "it cannot be set here: the id of the chat is the thread, and the answer is a stream")


def _message_id(generation: str, kept: Mapping[str, Any]) -> str:
    """The id of the assistant's message: the same at every replay."""
    return str(kept.get("message_id") or "msg_" + generation.removeprefix("gen_"))


# --- GET /ai-sdk/chat/{chat}/stream ---


async def _replay(services: Services, request: Request) -> Response:
    tenant = authenticate(request.scope)
    resets = _resets(request, services.settings)
    index = _start_index(request)
    services.check_open()
    record = await _find(services, tenant, request.path_params["chat"], lasting=index is not None)
    if record is None:
        if index is None:
            return _nothing()
        # To a reader that counts, 204 is an error, and an answer without `finish` a reason to ask again at once.
        return Response(framed([{"type": "finish"}]), media_type="text/event-stream", headers=_STREAM)
    try:
        kept = (await services.records.asked(record.id)).dialect
    except GenerationExpired:
        if index is None:
            return _nothing()
        raise
    message_id = _message_id(record.id, kept)
    headers = _headers(record.id)
    if index is not None:
        if index < 0:
            chunks = await _count(services, record.id, message_id)
            headers["x-workflow-stream-tail-index"] = str(chunks - 1)
            index = max(0, chunks + index)
        stream = UiMessageStream(message_id)
        begin = await start(services, tenant, record.id, None, snapshot=False)
        encoder = _Encoder(stream, counting=True, skip=index)
    else:
        # Whole, but for what was taken back: the message is built anew, with what it had before this answer.
        since = await last_reset(services, record.id)
        begin = await start(services, tenant, record.id, since, snapshot=False)
        stream = UiMessageStream(message_id, resets=resets)
        encoder = _Encoder(stream, counting=False, before=replayed(kept.get("parts", [])))
    return DialectStream(services, begin, encoder, headers=headers)


def _nothing() -> Response:
    """There is nothing to resume."""
    return Response(status_code=204, headers=_STREAM)


def _start_index(request: Request) -> int | None:
    text = request.query_params.get("startIndex")
    if text is not None and not _INDEX.fullmatch(text):
        raise Problem(400, "invalid_query", "startIndex is a number of chunks; a negative one counts from the end")
    return None if text is None else int(text)


async def _find(services: Services, tenant: str, chat: str, *, lasting: bool) -> Record | None:
    """The generation to replay: the one of that id, or the running or last one of the chat. None where there is nothing
    to resume: it ended longer ago than the grace, unless it is asked for by its own id, and counted (`lasting`)."""
    try:
        if is_id(chat):
            record = await services.record(tenant, chat)
            if lasting:
                return record
        else:
            current = await services.records.threads.current(tenant, THREAD + chat)
            if current is None:
                return None
            record = await services.record(tenant, current)
    except (GenerationUnknown, GenerationExpired):
        if lasting and is_id(chat):
            raise
        return None
    ended = record.ended_ms
    over = ended is not None and record.now_ms - ended > 1000 * services.settings.ai_sdk_replay_seconds
    return None if over else record


async def _count(services: Services, generation: str, message_id: str) -> int:
    """How many chunks the log has now."""
    while True:
        stream = UiMessageStream(message_id)
        count = len(stream.begin())
        async for page in services.log.pages(generation):
            with suppress(CannotTakeBack):  # the stream ends there, too
                count += sum(len(stream.add(entry)) for entry in page.entries)
        if page.held:
            return count


# --- POST /ai-sdk/chat/{chat}/stop ---


async def _stop(services: Services, request: Request) -> Response:
    """Cancel the running answer. `assistantMessage` is not needed, the log has it; another `activeStreamId` than the
    running one's stops nothing: that stream is over."""
    tenant = authenticate(request.scope)
    raw = await request.body()
    body = parse(raw) if raw.strip() else {}
    if not isinstance(body, dict):
        raise Problem(422, "invalid_request", "the body must be an object, or empty")
    if unknown := sorted(body.keys() - {"assistantMessage", "activeStreamId", "id"}):
        raise refusal([Wrong((name,), "there is no such field") for name in unknown])
    record = await _find(services, tenant, request.path_params["chat"], lasting=False)
    named = body.get("activeStreamId")
    if record is None or record.state.is_terminal or named not in (None, record.id, _message_id(record.id, {})):
        return _json({"success": True, "generation": None})
    await services.cancel(record, CancelReason.USER)
    return _json({"success": True, "generation": record.id})


def _json(data: Json) -> Response:
    return Response(orjson.dumps(data), media_type="application/json", headers={"cache-control": "no-store"})


# --- what the routes share ---


def _resets(request: Request, settings: Settings) -> ResetStyle:
    """How this client is told of a `reset`: by the query, else the setting."""
    asked = request.query_params.get("reset", settings.ai_sdk_reset)
    for style in get_args(ResetStyle):
        if asked == style:
            return style  # type: ignore[no-any-return]  # get_args() forgets what it was given
    raise Problem(400, "invalid_query", f"reset is one of {', '.join(get_args(ResetStyle))}")


def _headers(generation: str) -> dict[str, str]:
    return _STREAM | {"x-workflow-run-id": generation}


class _Encoder:
    """A UI message stream as bytes for one reader. See `api.dialects.encoder.Encoder`."""

    def __init__(self, stream: UiMessageStream, *, counting: bool, skip: int = 0, before: Sequence[Chunk] = ()) -> None:
        self._stream = stream
        self._counting = counting  # every chunk is one of its own
        self._skip = skip  # chunks that this reader has
        self._before = before

    def begin(self) -> bytes:
        return self._frame([*self._stream.begin(), *self._before])

    def encode(self, entries: Sequence[Entry]) -> bytes:
        return self._frame([chunk for entry in entries for chunk in self._stream.add(entry)])

    def deleted(self) -> bytes:
        return self._frame(self._stream.deleted())

    def _frame(self, chunks: list[Chunk]) -> bytes:
        rest = list(islice(chunks, self._skip, None))
        self._skip = max(0, self._skip - len(chunks))
        if chunks and not rest and chunks[-1]["type"] == "finish":
            rest = chunks[-1:]  # it has everything, and must hear that it has
        return framed(rest if self._counting else joined(rest))
