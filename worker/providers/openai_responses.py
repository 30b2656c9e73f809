"""Responses, by OpenAI and by the servers that speak the same wire.

The SDK does the request (keys, base URL, HTTP errors) from `OPENAI_API_KEY` and `OPENAI_BASE_URL`; the stream is read
raw, for the SDK's own parsing costs ~50 µs a token and takes a stream that just ends for a whole answer. Events are
told by the `type` inside their data, so a gateway that drops the `event:` lines is understood too.

The end of an answer is `response.completed` or `response.incomplete`; `response.failed` and `error` are errors, and
whatever ends without one of these is `upstream_incomplete`, `[DONE]` or not.

Requests come in the chat completions shape and are translated (`create_arguments`). What is not obvious there:
- `store` is false unless `provider_options` says otherwise: the log is ours to keep, and nobody asked for a second one.
- `stop` does not exist here; a request that has it is refused, for an answer that runs on is not what it asked for.
- A tool is sent with `strict: false` where it says nothing, as chat completions take it; left out here it means true.
- `provider_options.background` makes the answer outlive the connection, and `store` true. Then the stream has marks:
  who comes back with one reads on from that event (`GET /responses/{id}`), and `abandon` cancels what nobody reads.
- Reasoning items are given back before what they led to. With `store` false the server knows only those that carry
  their encrypted content; others are left out. It is asked for where the request says that the model reasons, for
  models that do not refuse to be asked.
- The `name` of a message has no place here. Content parts and tools of types this module does not know go as they are.

Deliberate oddities:
- Tools that run at the provider, and `custom` tools, are not calls for anybody here: not shown.
- An answer that is incomplete for a reason we do not know is `length`: the text is not all there could be. One that
  somebody cancelled at the provider is `upstream_incomplete`.
- The last events repeat the whole answer. It is not read again, but it must fit `_MOST_BYTES`.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from typing import Any, Final

import openai
from openai.resources.responses import AsyncResponses

from broker.events import Delta, DeltaKind, FinishReason, Json, Part, Usage, UsageReport
from broker.generation import Request
from worker.providers import classify, wire
from worker.providers.base import Call, Finish, ProviderEvent, ResumeImpossible
from worker.providers.sdk import SdkProvider, posted

_INCOMPLETE_REASONS: Final = {
    "max_output_tokens": FinishReason.LENGTH,
    "content_filter": FinishReason.CONTENT_FILTER,
}

_TEXT: Final = "response.output_text.delta"
_DELTAS: Final = {
    _TEXT: DeltaKind.TEXT,
    "response.refusal.delta": DeltaKind.REFUSAL,
    "response.reasoning_text.delta": DeltaKind.REASONING,
    "response.reasoning_summary_text.delta": DeltaKind.REASONING,
}

#: Codes of this wire alone that say that the request is wrong.
_INVALID_CODES: Final = (
    *("data_residency_mismatch", "invalid_image", "invalid_image_format", "invalid_base64_image", "invalid_image_url"),
    *("invalid_image_mode", "image_too_large", "image_too_small", "image_parse_error", "image_file_too_large"),
    *("unsupported_image_media_type", "empty_image_file", "image_file_not_found"),
)

#: Codes of this wire alone, and the error type that means the same everywhere.
_TYPE_OF_CODE: Final = {
    "image_content_policy_violation": "content_policy_violation",
    **dict.fromkeys(_INVALID_CODES, "invalid_request_error"),
}

#: Asked for so that reasoning can be given back though the server keeps nothing.
_ENCRYPTED: Final = "reasoning.encrypted_content"

#: What a server answers that does not know a response, or not any more, or cannot stream it from there.
_CANNOT_RESUME: Final = frozenset({400, 404, 405, 410, 422})

#: As long may telling the provider to stop take.
ABANDON_SECONDS: Final = 5.0

#: With more calls there are no marks: their tokens would grow too long.
_MOST_MARKED_CALLS: Final = 256

#: The longest line of this wire: its last ones hold everything that was said, escaped.
_MOST_BYTES: Final = 32 * 1024 * 1024


class OpenAIResponsesProvider(SdkProvider[openai.AsyncOpenAI]):
    """See `SdkProvider`. No model can go on from a text; with `background`, the provider itself goes on."""

    def __init__(self, *, client: openai.AsyncOpenAI | None = None, name: str = "openai_responses") -> None:
        super().__init__(name=name, client=client)

    def stream(self, call: Call) -> AsyncGenerator[ProviderEvent, None]:
        """See `Provider.stream`."""
        resume = call.resume if _is_mark(call.resume) else None
        mapper = EventMapper(self.name, resume=resume)

        def connect() -> AbstractAsyncContextManager[wire.Response]:
            if resume is not None:
                return self._reopened(resume, call.request.provider_options)
            if call.resume is not None:
                raise ResumeImpossible(f"{self.name} has set no such mark")
            return posted(self._connected(), "/responses", create_arguments(call.request))

        return wire.relay(
            connect,
            mapper,
            provider=self.name,
            meter=call.meter,
            mark=mapper.mark if _given(call.request.provider_options).get("background") else None,
            most_bytes=_MOST_BYTES,
        )

    async def abandon(self, token: Json) -> None:
        """Cancels the response. See `Provider.abandon`."""
        with suppress(Exception):
            await self._connected().responses.cancel(str(token["response_id"]), timeout=ABANDON_SECONDS)

    def _build(self) -> openai.AsyncOpenAI:
        try:
            return openai.AsyncOpenAI(max_retries=0)
        except openai.OpenAIError:
            raise classify.no_credentials(self.name) from None

    @asynccontextmanager
    async def _reopened(self, token: Json, options: Json) -> AsyncIterator[wire.Response]:
        """The stream behind a mark."""
        same = {name: options[name] for name in _TAKEN_TO_RESUME if name in options}
        retrieve = self._connected().responses.with_streaming_response.retrieve
        try:
            async with retrieve(
                token["response_id"], stream=True, starting_after=token["sequence_number"], **same
            ) as response:
                yield response
        except openai.APIStatusError as exc:
            if exc.status_code not in _CANNOT_RESUME:
                raise
            raise ResumeImpossible(f"{self.name} does not know this answer any more") from None


def _is_mark(token: Json | None) -> bool:
    match token:
        case {"response_id": str(response_id), "sequence_number": int(), "calls": list(calls)}:
            return bool(response_id) and all(isinstance(index, int) for index in calls)
        case _:
            return False


# --- request ---

_TAKES: Final = frozenset(inspect.signature(AsyncResponses.create).parameters)

#: Options of a request that its resumption needs, too.
_TAKEN_TO_RESUME: Final = ("include", "extra_headers", "extra_query", "timeout")


def create_arguments(request: Request) -> Json:
    """The keyword arguments of the SDK's `create`."""
    if request.stop:
        raise classify.invalid_request("stop: the Responses API has no stop sequences")
    given = _given(request.provider_options)
    if "input" in given:
        raise classify.invalid_request("provider_options.input: cannot be set here")
    background = bool(given.get("background"))
    store = given.get("store", background)
    if background and not store:
        raise classify.invalid_request("provider_options.store: must be true where background is")
    fields = {
        "max_output_tokens": request.max_output_tokens,
        "temperature": request.temperature,
        "top_p": request.top_p,
        "tools": None if request.tools is None else [_tool(tool) for tool in request.tools],
        "tool_choice": _tool_choice(request.tool_choice),
        "include": [_ENCRYPTED] if given.get("reasoning") and not store else None,
    }
    arguments: Json = {
        "model": request.model,
        "input": [item for message in request.messages for item in _items(message, stored=bool(store))],
        "stream": True,
        "store": store,
    }
    arguments |= {name: value for name, value in fields.items() if value is not None}
    return wire.with_options(arguments, request.provider_options, takes=_TAKES)


def _given(options: Json) -> Json:
    """The options, whether they stand among them or in their `extra_body`."""
    extra = options.get("extra_body")
    return options | (extra if isinstance(extra, dict) else {})


def _items(message: Json, *, stored: bool) -> list[Json]:
    """A message as input items: reasoning, calls and their results are items of their own here."""
    role = message.get("role")
    if role == "tool":
        output = _content(message.get("content"), text_type="input_text")
        return [{"type": "function_call_output", "call_id": message.get("tool_call_id"), "output": output}]
    reasoning, content = wire.split_reasoning(message.get("content"))
    calls = message.get("tool_calls") or []
    items = [part for part in reasoning if part["type"] == "reasoning" and (stored or part.get("encrypted_content"))]
    if content or not calls:
        text_type = "output_text" if role == "assistant" else "input_text"
        said = _content(content, text_type=text_type) or "" if reasoning else _content(content, text_type=text_type)
        items.append({"type": "message", "role": role, "content": said})
    for call in calls:
        function = call.get("function") or {}
        arguments = function.get("arguments") or "{}"
        name = function.get("name")
        items.append({"type": "function_call", "call_id": call.get("id"), "name": name, "arguments": arguments})
    return items


def _content(content: Any, *, text_type: str) -> Any:
    return [_part(part, text_type=text_type) for part in content] if isinstance(content, list) else content


def _part(part: Any, *, text_type: str) -> Any:
    match part:
        case {"type": "text", "text": text}:
            return {"type": text_type, "text": text}
        case {"type": "image_url", "image_url": image}:
            url = image.get("url") if isinstance(image, dict) else image
            if not isinstance(url, str):
                raise classify.invalid_request("messages: an image_url part has no url")
            detail = image.get("detail") if isinstance(image, dict) else None
            return {"type": "input_image", "image_url": url, "detail": detail or "auto"}
        case {"type": "file", "file": dict(file)}:
            return {"type": "input_file", **file}
        case _:
            return part


def _tool(tool: Json) -> Json:
    """A function tool in this wire's shape; any other (the wire's own) as it is."""
    function = tool.get("function")
    if tool.get("type") != "function" or not isinstance(function, dict):
        return tool
    schema = function.get("parameters") or {"type": "object", "properties": {}}
    kept = {name: function[name] for name in ("name", "description") if function.get(name) is not None}
    return {"type": "function", **kept, "parameters": schema, "strict": bool(function.get("strict"))}


def _tool_choice(choice: str | Json | None) -> str | Json | None:
    match choice:
        case {"type": "function", "function": {"name": name}}:
            return {"type": "function", "name": name}
        case _:
            return choice


# --- stream ---

#: Of a reasoning item, besides its id and its summary: what can be given back.
_REASONING_FIELDS: Final = ("content", "encrypted_content")


class EventMapper:
    """Response stream events to events; see `wire.Mapper`. `resume` is the token of a mark: what stands before it is
    passed over, should the server repeat it."""

    def __init__(self, provider: str, *, resume: Json | None = None) -> None:
        before = resume or {}
        known: list[int] = list(before.get("calls") or ())
        self.finished = False
        self._provider = provider
        self._frames = wire.Frames()
        self._calls = wire.ToolCalls(self._frames, count=len(known))
        self._known_calls = set(known)  # by the index of their output item, whether under way or done
        self._with_fragments: set[int] = set()
        self._response_id = before.get("response_id")
        self._after: int | None = before.get("sequence_number")  # until an event behind it has come
        self._marked: object = self._after
        self._last: Json = {}  # the event read last

    def feed(self, name: bytes | None, data: bytes) -> Sequence[ProviderEvent]:
        if not data:
            return ()
        if data.startswith(b"[DONE]"):
            return self.end()
        event = self._frames.loads(data)
        if self._after is not None:
            if _number(event) <= self._after:
                return ()
            self._after = None
        self._last = event
        kind = event.get("type")
        if kind == _TEXT and not self._frames.mends and type(text := event["delta"]) is str:  # most of them
            return (Delta(text),) if text else ()
        if text_kind := _DELTAS.get(kind):
            return self._text(text_kind, event["delta"])
        match kind:
            case "response.function_call_arguments.delta":
                return self._fragment(event["output_index"], event["delta"])
            case "response.output_item.added":
                return self._opened(event["output_index"], event["item"])
            case "response.function_call_arguments.done":
                return self._done(event["output_index"], event["arguments"])
            case "response.output_item.done":
                return self._item_done(event["output_index"], event["item"])
            case "response.output_text.annotation.added":
                return (wire.part("citation", event["annotation"]),) if event.get("annotation") else ()
            case "response.created":
                self._response_id = event["response"]["id"]
                return ()
            case "response.completed":
                return self._finish(event["response"], FinishReason.STOP)
            case "response.incomplete":
                return self._incomplete(event["response"])
            case "response.failed":
                raise self._error(event["response"].get("error"))
            case _ if kind == "error" or name == b"error" or event.get("error"):
                raise self._error(event.get("error") or event)
            case _:  # what says nothing new (`in_progress`, `….done`), the provider's own tools, later versions
                return ()

    def mark(self) -> Json | None:
        """The token of a mark behind the last event; `None` where a call or a character is half-way, or none is due."""
        number = self._last.get("sequence_number")
        if number == self._marked or not isinstance(number, int) or not isinstance(self._response_id, str):
            return None
        if not (self._calls.all_done and self._frames.whole) or self._calls.count > _MOST_MARKED_CALLS:
            return None
        self._marked = number
        return {"response_id": self._response_id, "sequence_number": number, "calls": sorted(self._known_calls)}

    def end(self) -> Sequence[ProviderEvent]:
        raise classify.incomplete(self._provider)

    def _text(self, kind: DeltaKind, text: str) -> Sequence[ProviderEvent]:
        if not isinstance(text, str):
            raise TypeError(kind)
        text = self._frames.text(kind, text)
        return (Delta(text=text, kind=kind),) if text else ()

    def _opened(self, index: int, item: Mapping[str, Any]) -> Sequence[ProviderEvent]:
        if item["type"] != "function_call" or index in self._known_calls:
            return ()
        self._known_calls.add(index)
        return self._calls.add(index, id=item["call_id"], name=item["name"], whole=item.get("arguments") or "")

    def _fragment(self, index: int, fragment: str) -> Sequence[ProviderEvent]:
        if index not in self._calls:
            raise KeyError(index)
        if fragment:
            self._with_fragments.add(index)
        return self._calls.add(index, arguments=fragment)

    def _done(self, index: int, arguments: str) -> Sequence[ProviderEvent]:
        """The call is whole; `arguments` count where no fragment came before."""
        if index not in self._calls:
            return ()
        first = () if index in self._with_fragments else self._calls.add(index, arguments=arguments)
        return (*first, *self._calls.done(index))

    def _item_done(self, index: int, item: Mapping[str, Any]) -> Sequence[ProviderEvent]:
        if item["type"] == "function_call":
            return (*self._opened(index, item), *self._done(index, item["arguments"]))
        if item["type"] == "reasoning":
            kept = {name: item[name] for name in _REASONING_FIELDS if item.get(name)}
            data = {"type": "reasoning", "id": item["id"], "summary": item.get("summary") or [], **kept}
            return (*self._frames.deltas(), Part(type="reasoning", data=data))
        return self._frames.deltas() if item["type"] == "message" else ()

    def _incomplete(self, response: Mapping[str, Any]) -> Sequence[ProviderEvent]:
        if response.get("status") == "cancelled":
            raise classify.incomplete(self._provider)
        reason: Any = (response.get("incomplete_details") or {}).get("reason")
        return self._finish(response, _INCOMPLETE_REASONS.get(reason, FinishReason.LENGTH))

    def _finish(self, response: Mapping[str, Any], reason: FinishReason) -> Sequence[ProviderEvent]:
        usage = _usage(response["usage"]) if response.get("usage") else None
        self.finished = True
        events = [*self._frames.deltas(), *self._calls.done_all()]
        if usage is not None:
            events.append(UsageReport(usage=usage))
        if reason is FinishReason.STOP and self._calls.count:
            reason = FinishReason.TOOL_CALLS
        events.append(Finish(finish_reason=reason, usage=usage))
        return events

    def _error(self, error: Any) -> Exception:
        if isinstance(error, dict) and (kind := _TYPE_OF_CODE.get(str(error.get("code")))):
            error = error | {"type": kind}
        return classify.error_object(error or {}, provider=self._provider)


def _number(event: Mapping[str, Any]) -> float:
    """The event's place in the response; one without counts as new."""
    number = event.get("sequence_number")
    return number if isinstance(number, int) else math.inf


def _usage(usage: Mapping[str, Any]) -> Usage:
    return Usage(
        input_tokens=wire.count(usage.get("input_tokens")),
        output_tokens=wire.count(usage.get("output_tokens")),
        cached_tokens=wire.known_count((usage.get("input_tokens_details") or {}).get("cached_tokens")),
        reasoning_tokens=wire.known_count((usage.get("output_tokens_details") or {}).get("reasoning_tokens")),
    )
