"""Chat completions, by OpenAI and by every server that speaks the same wire.

The SDK does the request (keys, base URL, HTTP errors) from `OPENAI_API_KEY` and `OPENAI_BASE_URL`; the stream is read
raw, for the SDK's own parsing costs ~50 µs a token and takes a stream that just ends for a whole answer.

The end of an answer: a `finish_reason` was seen, and then `[DONE]` came or the body ended cleanly (some servers leave
`[DONE]` out). Reading goes on after the `finish_reason`, for usage comes in a chunk of its own behind it. `[DONE]`
without a `finish_reason`, or a connection that breaks after one, is `upstream_incomplete`.

Deliberate oddities:
- `max_output_tokens` is `max_completion_tokens` for OpenAI itself, whose newer models refuse the old name, and
  `max_tokens` for everybody else, many of whom ignore the new one without a word. `provider_options` may give either.
- `stop` with tool calls is `tool_calls`: that is what OpenAI sends when `tool_choice` forced the call.
- Reasoning is not part of the official wire; `reasoning_content` and `reasoning` are what others call it.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Final

import openai
import orjson

from broker.events import Delta, DeltaKind, FinishReason, Json, Usage, UsageReport
from broker.generation import Request
from worker.providers import classify, wire
from worker.providers.base import Call, Finish, ProviderEvent

_FINISH_REASONS: Final = {
    "stop": FinishReason.STOP,
    "length": FinishReason.LENGTH,
    "max_tokens": FinishReason.LENGTH,
    "tool_calls": FinishReason.TOOL_CALLS,
    "function_call": FinishReason.TOOL_CALLS,
    "tool_use": FinishReason.TOOL_CALLS,
    "content_filter": FinishReason.CONTENT_FILTER,
    "refusal": FinishReason.CONTENT_FILTER,
    "safety": FinishReason.CONTENT_FILTER,
}


class OpenAIProvider:
    """`name` is as requests say it. A client given by the caller stays the caller's to close."""

    def __init__(self, *, client: openai.AsyncOpenAI | None = None, name: str = "openai") -> None:
        self.name = name
        self._client = None if client is None else client.with_options(max_retries=0)
        self._owned: openai.AsyncOpenAI | None = None

    def can_continue(self, request: Request) -> bool:
        """Never: whether a model goes on from a partial answer cannot be known from its name."""
        return False

    def stream(self, call: Call) -> AsyncGenerator[ProviderEvent, None]:
        """See `Provider.stream`. The worker owns retries; the SDK makes none."""

        def connect() -> AbstractAsyncContextManager[wire.Response]:
            client = self._connected()
            create = client.chat.completions.with_streaming_response.create
            return create(**create_arguments(call.request, host=client.base_url.host))

        return wire.relay(connect, ChunkMapper(self.name), provider=self.name, meter=call.meter, auth_errors=())

    async def abandon(self, token: Json) -> None:
        """There are no marks."""

    async def aclose(self) -> None:
        """See `Provider.aclose`."""
        if self._owned is not None:
            await self._owned.close()

    def _connected(self) -> openai.AsyncOpenAI:
        """Built at the first use: a worker that never asks OpenAI needs no key."""
        if self._client is None:
            try:
                self._client = self._owned = openai.AsyncOpenAI(max_retries=0)
            except openai.OpenAIError:
                raise classify.no_credentials(self.name) from None
        return self._client


# --- request ---

_TAKES: Final = frozenset(inspect.signature(openai.resources.chat.AsyncCompletions.create).parameters)


def create_arguments(request: Request, *, host: str) -> Json:
    """The keyword arguments of the SDK's `create`. Messages and tools have this wire's shape: they go as they are."""
    official = f".{host}".endswith(".api.openai.com")
    limit = "max_completion_tokens" if official else "max_tokens"
    if request.provider_options.keys() & {"max_tokens", "max_completion_tokens"}:
        limit = ""
    fields = {
        limit: request.max_output_tokens,
        "temperature": request.temperature,
        "top_p": request.top_p,
        "stop": request.stop,
        "tools": request.tools,
        "tool_choice": request.tool_choice,
    }
    arguments: Json = {
        "model": request.model,
        "messages": request.messages,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    arguments |= {name: value for name, value in fields.items() if name and value is not None}
    arguments = wire.with_options(arguments, request.provider_options, takes=_TAKES)
    for place in (arguments, arguments.get("extra_body", {})):
        if place.get("n") not in {None, 1}:
            raise classify.invalid_request("provider_options.n: a generation is one answer, so it can only be 1")
    return arguments


# --- stream ---


class ChunkMapper:
    """Chat completion chunks to events; see `wire.Mapper`."""

    def __init__(self, provider: str) -> None:
        self.finished = False
        self._provider = provider
        self._frames = wire.Frames()
        self._calls = wire.ToolCalls(self._frames)
        self._call_key: object = None  # of the last fragment
        self._finish_reason: str | None = None
        self._usage: Usage | None = None

    def feed(self, name: bytes | None, data: bytes) -> Sequence[ProviderEvent]:
        if data.startswith(b"[DONE]"):
            return self.end()
        chunk = self._frames.loads(data)
        if error := chunk.get("error"):
            raise classify.error_object(error, provider=self._provider)
        if name == b"error":
            raise classify.error_object(chunk, provider=self._provider)
        if usage := chunk.get("usage"):
            self._usage = _usage(usage)
        events: list[ProviderEvent] = []
        for choice in chunk.get("choices") or ():
            if choice.get("index"):
                raise classify.invalid_request(f"{self._provider} sent more than one choice")
            if delta := choice.get("delta"):
                self._delta(delta, events)
            if reason := choice.get("finish_reason"):
                self._finish_reason = reason
        return events

    def end(self) -> Sequence[ProviderEvent]:
        if self._finish_reason is None:
            raise classify.incomplete(self._provider)
        if self._finish_reason == "error":  # a gateway's way to say that its provider broke
            raise classify.error_object({}, provider=self._provider)
        self.finished = True
        events = [*self._frames.deltas(), *self._calls.done_all()]
        if self._usage is not None:
            events.append(UsageReport(usage=self._usage))
        reason = _FINISH_REASONS.get(self._finish_reason.lower(), FinishReason.STOP)
        if reason is FinishReason.STOP and self._calls.count:
            reason = FinishReason.TOOL_CALLS
        events.append(Finish(finish_reason=reason, usage=self._usage))
        return events

    def _delta(self, delta: Mapping[str, Any], events: list[ProviderEvent]) -> None:
        if reasoning := delta.get("reasoning_content") or delta.get("reasoning"):
            self._text(DeltaKind.REASONING, reasoning, events)
        if content := delta.get("content"):
            if isinstance(content, list):  # typed parts, as some reasoning models are served
                for part in content:
                    self._part(part, events)
            else:
                self._text(DeltaKind.TEXT, content, events)
        if refusal := delta.get("refusal"):
            self._text(DeltaKind.REFUSAL, refusal, events)
        for fragment in delta.get("tool_calls") or ():
            self._fragment(fragment, events)
        if function := delta.get("function_call"):  # the deprecated single call
            self._fragment({"index": 0, "function": function}, events)

    def _part(self, part: Mapping[str, Any], events: list[ProviderEvent]) -> None:
        if part["type"] == "thinking":
            thinking = part["thinking"]
            pieces = thinking if isinstance(thinking, list) else [{"text": thinking}]
            for piece in pieces:
                self._text(DeltaKind.REASONING, piece["text"], events)
        elif part["type"] == "text":
            self._text(DeltaKind.TEXT, part["text"], events)

    def _text(self, kind: DeltaKind, text: str, events: list[ProviderEvent]) -> None:
        if not isinstance(text, str):
            raise TypeError(kind)
        if text := self._frames.text(kind, text):
            events.append(Delta(text=text, kind=kind))

    def _fragment(self, fragment: Mapping[str, Any], events: list[ProviderEvent]) -> None:
        function = fragment.get("function") or {}
        call_id = fragment.get("id") or None
        key: object = fragment.get("index")
        if key is None:  # some servers do not count: an id starts a call, what has none goes on with the last
            key = call_id or self._call_key
        elif call_id and (known := self._calls.id_of(key)) and known != call_id and function.get("name"):
            key = call_id  # and some count every call as 0
        self._call_key = key
        arguments = function.get("arguments") or ""
        if isinstance(arguments, dict):  # not yet made into text
            arguments = orjson.dumps(arguments).decode()
        events += self._calls.add(key, id=call_id, name=function.get("name"), arguments=arguments)


def _usage(usage: Mapping[str, Any]) -> Usage:
    return Usage(
        input_tokens=int(usage.get("prompt_tokens") or 0),
        output_tokens=int(usage.get("completion_tokens") or 0),
        cached_tokens=(usage.get("prompt_tokens_details") or {}).get("cached_tokens"),
        reasoning_tokens=(usage.get("completion_tokens_details") or {}).get("reasoning_tokens"),
    )
