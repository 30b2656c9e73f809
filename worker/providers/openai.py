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
- Reasoning is not part of the official wire; `reasoning_content` and `reasoning` are what others call it. Some also
  send `reasoning_details`, which they want back with the next turn: a `Part` at the end. It names this provider, for no
  other server of this wire could read it.
- Messages go as they came, but for what chat completions do not know: reasoning of other wires, and `is_error`.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Final, Literal

import openai
import orjson

from broker.events import Delta, DeltaKind, FinishReason, Json, Part, Usage, UsageReport
from worker.providers import classify, wire
from worker.providers.base import Call, Finish, ProviderEvent
from worker.providers.sdk import SdkProvider, posted
from worker.providers.seam import Seam, given_back

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

#: Kinds of `reasoning_details` that come in pieces, and the field of each that holds text.
_PIECES: Final = {"reasoning.text": "text", "reasoning.summary": "summary"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Quirks:
    """Where a server that speaks this wire differs. The defaults are right for most."""

    max_tokens_field: str | None = None  # what `max_output_tokens` is called; None: by the host
    stream_usage: bool = True  # it takes `stream_options`
    continue_style: Literal["vllm", "prefill", "prefix"] | None = None  # how it is made to go on from a text


class OpenAIProvider(SdkProvider[openai.AsyncOpenAI]):
    """See `SdkProvider`. Without `quirks` that say how, no model can go on from a text."""

    def __init__(
        self,
        *,
        client: openai.AsyncOpenAI | None = None,
        name: str = "openai",
        continue_models: Sequence[str] = (),
        quirks: Quirks = Quirks(),
    ) -> None:
        super().__init__(name=name, client=client, continue_models=continue_models if quirks.continue_style else ())
        self._quirks = quirks

    def stream(self, call: Call) -> AsyncGenerator[ProviderEvent, None]:
        """See `Provider.stream`."""

        def connect() -> AbstractAsyncContextManager[wire.Response]:
            client = self._connected()
            arguments = create_arguments(call, host=client.base_url.host, provider=self.name, quirks=self._quirks)
            return posted(client, "/chat/completions", arguments)

        mapper: wire.Mapper = ChunkMapper(self.name)
        if call.partial:
            mapper = Seam(mapper, call.partial, echo=self._quirks.continue_style == "prefix")
        return wire.relay(connect, mapper, provider=self.name, meter=call.meter)

    def _build(self) -> openai.AsyncOpenAI:
        try:
            return openai.AsyncOpenAI(max_retries=0)
        except openai.OpenAIError:
            raise classify.no_credentials(self.name) from None


# --- request ---

_TAKES: Final = frozenset(inspect.signature(openai.resources.chat.AsyncCompletions.create).parameters)


def create_arguments(call: Call, *, host: str, provider: str = "openai", quirks: Quirks = Quirks()) -> Json:
    """The keyword arguments of the SDK's `create`. Messages and tools have this wire's shape."""
    request = call.request
    official = f".{host}".endswith(".api.openai.com")
    limit = quirks.max_tokens_field or ("max_completion_tokens" if official else "max_tokens")
    if request.provider_options.keys() & {"max_tokens", "max_completion_tokens"}:
        limit = ""
    fields = {
        limit: request.max_output_tokens,
        "temperature": request.temperature,
        "top_p": request.top_p,
        "stop": request.stop,
        "tools": request.tools,
        "tool_choice": request.tool_choice,
        "stream_options": {"include_usage": True} if quirks.stream_usage else None,
    }
    messages = [_message(message, provider) for message in request.messages]
    arguments: Json = {"model": request.model, "messages": messages, "stream": True}
    if call.partial:
        arguments |= _continuation(messages, call.partial, quirks)
    arguments |= {name: value for name, value in fields.items() if name and value is not None}
    return wire.with_options(arguments, request.provider_options, takes=_TAKES)


def _continuation(messages: list[Json], partial: str, quirks: Quirks) -> Json:
    """The arguments that make the server go on from `partial`."""
    mark = {"prefix": True} if quirks.continue_style == "prefix" else {}
    longer = given_back(messages, partial, **mark)
    if quirks.continue_style != "vllm" or longer is messages:
        return {"messages": longer}
    return {"messages": longer, "extra_body": {"continue_final_message": True, "add_generation_prompt": False}}


def _message(message: Json, provider: str) -> Json:
    """A message as it came, unless it holds reasoning or says that a tool failed."""
    reasoning, content = wire.split_reasoning(message.get("content"))
    if not reasoning and "is_error" not in message:
        return message
    kept = {name: value for name, value in message.items() if name != "is_error"}
    if not reasoning:
        return kept
    own = [part for part in reasoning if part["type"] == "reasoning_details" and part.get("provider") == provider]
    if details := [detail for part in own for detail in part.get("reasoning_details") or ()]:
        kept["reasoning_details"] = details
    texts = [part.get("text") for part in content if isinstance(part, dict) and part.get("type") == "text"]
    if len(texts) == len(content):  # many servers take an assistant's content as plain text only
        content = "".join(map(str, texts))
    return kept | {"content": content or (None if message.get("tool_calls") else "")}


# --- stream ---


class ChunkMapper:
    """Chat completion chunks to events; see `wire.Mapper`."""

    def __init__(self, provider: str) -> None:
        self.finished = False
        self._provider = provider
        self._frames = wire.Frames()
        self._calls = wire.ToolCalls(self._frames)
        self._call_key: object = None  # of the last fragment
        self._details: list[Json] = []  # the reasoning that the server wants back
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
        events = self._frames.deltas()
        if self._details:
            data = {"type": "reasoning_details", "provider": self._provider, "reasoning_details": self._details}
            events.append(Part(type="reasoning", data=data))
        events += self._calls.done_all()
        if self._usage is not None:
            events.append(UsageReport(usage=self._usage))
        reason = _FINISH_REASONS.get(self._finish_reason.lower(), FinishReason.STOP)
        if reason is FinishReason.STOP and self._calls.count:
            reason = FinishReason.TOOL_CALLS
        events.append(Finish(finish_reason=reason, usage=self._usage))
        return events

    def _delta(self, delta: Mapping[str, Any], events: list[ProviderEvent]) -> None:
        if len(delta) == 1 and not self._frames.mends and type(content := delta.get("content")) is str:  # most of them
            if content:
                events.append(Delta(content))
            return
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
        for annotation in delta.get("annotations") or ():
            events.append(wire.part("citation", annotation))
        for detail in delta.get("reasoning_details") or ():
            self._detail(detail)
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

    def _detail(self, detail: Mapping[str, Any]) -> None:
        """One piece of `reasoning_details`; pieces of one text are joined, all else is kept as it came."""
        piece = dict(detail)
        last = self._details[-1] if self._details else {}
        key = _PIECES.get(piece["type"])
        if key is None or last.get("type") != piece["type"] or last.get("index") != piece.get("index"):
            self._details.append(piece)
            return
        joined = (last.get(key) or "") + (piece.get(key) or "")
        last |= {name: value for name, value in piece.items() if value is not None} | {key: joined}

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
        input_tokens=wire.count(usage.get("prompt_tokens")),
        output_tokens=wire.count(usage.get("completion_tokens")),
        cached_tokens=wire.known_count((usage.get("prompt_tokens_details") or {}).get("cached_tokens")),
        reasoning_tokens=wire.known_count((usage.get("completion_tokens_details") or {}).get("reasoning_tokens")),
    )
