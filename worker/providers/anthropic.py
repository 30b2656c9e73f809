"""Messages, by Anthropic.

The SDK does the request (keys, base URL, HTTP errors) from `ANTHROPIC_API_KEY` and `ANTHROPIC_BASE_URL`; the stream is
read raw, for the SDK's parsing costs ~10 µs a token and takes a stream that just ends for a whole answer. Events are
told by the `type` inside their data, so a gateway that drops the `event:` lines is understood too.

The end of an answer is `message_stop`; whatever ends without it is `upstream_incomplete`.

Requests come in the chat completions shape and are translated (`create_arguments`). What is not obvious there:
- `system` and `developer` messages are lifted out of the conversation, wherever they stand.
- `max_tokens` is mandatory here: `DEFAULT_MAX_TOKENS` where the request gives none.
- `temperature` and `top_p` are not arguments of the SDK any more, though many models take them: they go into the body.
- Content parts of types this module does not know go as they are, so the wire's own parts may be used.
- Thinking blocks of an assistant's message go before its other blocks; reasoning of other wires is left out.
- A tool's message may say `is_error`, which only this wire knows.

Deliberate oddities:
- `input_tokens` here counts what was not cached; it is reported with cache reads and writes added, as the others do.
- Tools that run at the provider (`server_tool_use` and its results) are not calls for anybody here: not shown.
- `pause_turn` (a turn the provider stopped in the middle) is `length`: the text is not all there could be.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Final

import anthropic
import orjson

from broker.events import Delta, DeltaKind, FinishReason, Json, Part, Usage, UsageReport
from broker.generation import Request
from worker.providers import classify, wire
from worker.providers.base import Call, Finish, ProviderEvent
from worker.providers.sdk import SdkProvider
from worker.providers.seam import Seam, given_back

#: Sent as `max_tokens` where the request gives no `max_output_tokens`.
DEFAULT_MAX_TOKENS: Final = 4096

_FINISH_REASONS: Final = {
    "end_turn": FinishReason.STOP,
    "stop_sequence": FinishReason.STOP,
    "max_tokens": FinishReason.LENGTH,
    "model_context_window_exceeded": FinishReason.LENGTH,
    "pause_turn": FinishReason.LENGTH,
    "tool_use": FinishReason.TOOL_CALLS,
    "refusal": FinishReason.CONTENT_FILTER,
}


class AnthropicProvider(SdkProvider[anthropic.AsyncAnthropic]):
    """See `SdkProvider`."""

    def __init__(
        self,
        *,
        client: anthropic.AsyncAnthropic | None = None,
        name: str = "anthropic",
        continue_models: Sequence[str] = (),
    ) -> None:
        super().__init__(name=name, client=client, continue_models=continue_models)

    def can_continue(self, request: Request) -> bool:
        """Not while the model thinks: then the wire takes no beginning of an answer."""
        thinking = request.provider_options.get("thinking")
        thinks = isinstance(thinking, dict) and thinking.get("type") != "disabled"
        return not thinks and super().can_continue(request)

    def stream(self, call: Call) -> AsyncGenerator[ProviderEvent, None]:
        """See `Provider.stream`."""

        def connect() -> AbstractAsyncContextManager[wire.Response]:
            create = self._connected().messages.with_streaming_response.create
            return create(**create_arguments(call))

        mapper: wire.Mapper = EventMapper(self.name)
        if call.partial:
            mapper = Seam(mapper, call.partial, echo=False)
        return wire.relay(connect, mapper, provider=self.name, meter=call.meter, auth_errors=_AUTH_ERRORS)

    def _build(self) -> anthropic.AsyncAnthropic:
        return anthropic.AsyncAnthropic(max_retries=0)


_AUTH_ERRORS: Final = (anthropic.CredentialsError,)

#: Content blocks that hold what the model thought, and are given back with their signature.
_THINKING: Final = frozenset({"thinking", "redacted_thinking"})

# --- request ---

_TAKES: Final = frozenset(inspect.signature(anthropic.resources.AsyncMessages.create).parameters)


def create_arguments(call: Call) -> Json:
    """The keyword arguments of the SDK's `create`."""
    request = call.request
    system, messages = _conversation(given_back(request.messages, call.partial))
    fields = {
        "system": system,
        "stop_sequences": request.stop,
        "tools": None if request.tools is None else [_tool(tool) for tool in request.tools],
        "tool_choice": _tool_choice(request.tool_choice),
    }
    sampling = {"temperature": request.temperature, "top_p": request.top_p}
    body = {name: value for name, value in sampling.items() if value is not None}
    arguments: Json = {
        "model": request.model,
        "messages": messages,
        "max_tokens": request.max_output_tokens or DEFAULT_MAX_TOKENS,
        "stream": True,
    }
    arguments |= {name: value for name, value in fields.items() if value is not None}
    return wire.with_options(arguments | ({"extra_body": body} if body else {}), request.provider_options, takes=_TAKES)


def _conversation(messages: list[Json]) -> tuple[str | list[Json] | None, list[Json]]:
    """What the system says, and the turns. Results of parallel tool calls must share one user turn here."""
    system: list[Any] = []
    turns: list[Json] = []
    results: list[Json] | None = None  # blocks of the user turn under way, while it holds tool results
    for number, message in enumerate(messages):
        role, content = message.get("role"), message.get("content")
        if role in {"system", "developer"}:
            system.append(content)
            continue
        if role == "tool":
            if results is None:
                results = []
                turns.append({"role": "user", "content": results})
            results.append(_tool_result(message))
        elif role == "user" and results is not None:
            results += _blocks(content)
        else:
            results = None
            turns.append({"role": role, "content": _turn(message, number)})
    if all(isinstance(content, str) for content in system):
        return "\n\n".join(system) or None, turns
    return [block for content in system for block in _blocks(content)], turns


def _turn(message: Json, number: int) -> Any:
    reasoning, content = wire.split_reasoning(message.get("content"))
    thinking = [part for part in reasoning if part["type"] in _THINKING]
    if not message.get("tool_calls") and not thinking:
        return _content(content) or "" if reasoning else _content(content)
    return thinking + _blocks(content) + _tool_uses(message, number)


def _tool_result(message: Json) -> Json:
    content = _content(message.get("content"))
    block: Json = {"type": "tool_result", "tool_use_id": message.get("tool_call_id"), "content": content}
    return block | ({"is_error": True} if message.get("is_error") else {})


def _content(content: Any) -> Any:
    return [_part(part) for part in content] if isinstance(content, list) else content


def _blocks(content: Any) -> list[Json]:
    """Content as blocks; empty text, which the API refuses in a block, is none."""
    if isinstance(content, list):
        return [_part(part) for part in content]
    return [{"type": "text", "text": content}] if content else []


def _part(part: Any) -> Any:
    match part:
        case {"type": "image_url"}:
            image = part.get("image_url")
            url = image.get("url") if isinstance(image, dict) else image
            if not isinstance(url, str):
                raise classify.invalid_request("messages: an image_url part has no url")
            return {"type": "image", "source": _source(url)}
        case {"type": "file", "file": dict(file)}:
            title = {"title": file["filename"]} if file.get("filename") else {}
            if isinstance(data := file.get("file_data"), str):
                return {"type": "document", "source": _source(data)} | title
            return {"type": "document", "source": {"type": "file", "file_id": file.get("file_id")}} | title
        case _:
            return part


def _source(url: str) -> Json:
    if not url.startswith("data:"):
        return {"type": "url", "url": url}
    head, _, data = url.removeprefix("data:").partition(",")
    media_type, *parameters = head.split(";")
    if "base64" not in parameters:
        raise classify.invalid_request("messages: a data: URL of an image or a file must be base64")
    return {"type": "base64", "media_type": media_type, "data": data}


def _tool_uses(message: Json, number: int) -> list[Json]:
    uses: list[Json] = []
    for position, call in enumerate(message.get("tool_calls") or ()):
        function = call.get("function") or {}
        try:
            arguments = orjson.loads(function.get("arguments") or "{}")
        except orjson.JSONDecodeError:
            where = f"messages.{number}.tool_calls.{position}.function.arguments"
            raise classify.invalid_request(f"{where}: not JSON") from None
        uses.append({"type": "tool_use", "id": call.get("id"), "name": function.get("name"), "input": arguments})
    return uses


def _tool(tool: Json) -> Json:
    """A function tool in this wire's shape; any other (the wire's own) as it is."""
    function = tool.get("function")
    if tool.get("type") != "function" or not isinstance(function, dict):
        return tool
    schema = function.get("parameters") or {"type": "object", "properties": {}}
    kept = {name: function[name] for name in ("name", "description", "strict") if function.get(name) is not None}
    return kept | {"input_schema": schema}


def _tool_choice(choice: str | Json | None) -> Json | None:
    match choice:
        case "required":
            return {"type": "any"}
        case str():
            return {"type": choice}
        case {"type": "function", "function": {"name": name}}:
            return {"type": "tool", "name": name}
        case _:
            return choice


# --- stream ---


class EventMapper:
    """Message stream events to events; see `wire.Mapper`."""

    def __init__(self, provider: str) -> None:
        self.finished = False
        self._provider = provider
        self._frames = wire.Frames()
        self._calls = wire.ToolCalls(self._frames)
        self._thought: list[str] = []  # of the thinking block under way
        self._signature = ""
        self._stop_reason: str | None = None
        self._usage: Json = {}

    def feed(self, name: bytes | None, data: bytes) -> Sequence[ProviderEvent]:
        if not data:
            return ()
        event = self._frames.loads(data)
        match event.get("type"):
            case "content_block_delta":
                return self._delta(event["index"], event["delta"])
            case "message_start":
                return self._count(event["message"].get("usage"))
            case "content_block_start":
                return self._start(event["index"], event["content_block"])
            case "content_block_stop":
                return self._stop(event["index"])
            case "message_delta":
                self._stop_reason = event["delta"].get("stop_reason") or self._stop_reason
                return self._count(event.get("usage"))
            case "message_stop":
                return self._finish()
            case "error":
                raise classify.error_object(event, provider=self._provider)
            case _ if name == b"error":
                raise classify.error_object(event, provider=self._provider)
            case _:  # `ping`, and what later versions may add
                return ()

    def end(self) -> Sequence[ProviderEvent]:
        raise classify.incomplete(self._provider)

    def _delta(self, index: int, delta: Mapping[str, Any]) -> Sequence[ProviderEvent]:
        match delta["type"]:
            case "text_delta" if not self._frames.mends and type(text := delta["text"]) is str:  # most of them
                return (Delta(text),) if text else ()
            case "text_delta":
                return self._text(DeltaKind.TEXT, delta["text"])
            case "thinking_delta":
                return self._think(delta["thinking"])
            case "signature_delta":
                self._signature += delta["signature"]
                return ()
            case "citations_delta":
                return (wire.part("citation", delta["citation"]),)
            case "input_json_delta" if index in self._calls:
                return self._calls.add(index, arguments=delta["partial_json"])
            case _:  # input of the provider's own tools is not ours
                return ()

    def _text(self, kind: DeltaKind, text: str) -> Sequence[ProviderEvent]:
        if not isinstance(text, str):
            raise TypeError(kind)
        text = self._frames.text(kind, text)
        return (Delta(text=text, kind=kind),) if text else ()

    def _start(self, index: int, block: Mapping[str, Any]) -> Sequence[ProviderEvent]:
        match block["type"]:
            case "text":
                sources = [wire.part("citation", citation) for citation in block.get("citations") or ()]
                return (*self._text(DeltaKind.TEXT, block.get("text") or ""), *sources)
            case "thinking":
                self._thought, self._signature = [], block.get("signature") or ""
                return self._think(block.get("thinking") or "")
            case "redacted_thinking":
                return (Part(type="reasoning", data={"type": "redacted_thinking", "data": block["data"]}),)
            case "tool_use":
                given = orjson.dumps(block["input"]).decode() if block.get("input") else ""
                return self._calls.add(index, id=block["id"], name=block["name"], whole=given)
            case _:
                return ()

    def _think(self, text: str) -> Sequence[ProviderEvent]:
        events = self._text(DeltaKind.REASONING, text)
        self._thought += [event.text for event in events if isinstance(event, Delta)]
        return events

    def _stop(self, index: int) -> Sequence[ProviderEvent]:
        """The end of a block. A thinking block without its signature could not be given back, so it is no part."""
        if index in self._calls:
            return self._calls.done(index)
        rest = self._frames.deltas()
        if not self._signature:
            return rest
        self._thought += [
            event.text for event in rest if isinstance(event, Delta) and event.kind is DeltaKind.REASONING
        ]
        block = {"type": "thinking", "thinking": "".join(self._thought), "signature": self._signature}
        self._thought, self._signature = [], ""
        return (*rest, Part(type="reasoning", data=block))

    def _count(self, usage: Json | None) -> Sequence[ProviderEvent]:
        """Counts are cumulative, and a later event may leave out what an earlier one said."""
        if not usage:
            return ()
        self._usage |= {name: value for name, value in usage.items() if value is not None}
        return (UsageReport(usage=_usage(self._usage)),)

    def _finish(self) -> Sequence[ProviderEvent]:
        self.finished = True
        reason = _FINISH_REASONS.get(self._stop_reason or "end_turn", FinishReason.STOP)
        usage = _usage(self._usage) if self._usage else None
        return (*self._frames.deltas(), *self._calls.done_all(), Finish(finish_reason=reason, usage=usage))


def _usage(usage: Json) -> Usage:
    read = wire.known_count(usage.get("cache_read_input_tokens"))
    written = wire.count(usage.get("cache_creation_input_tokens"))
    return Usage(
        input_tokens=wire.count(usage.get("input_tokens")) + (read or 0) + written,
        output_tokens=wire.count(usage.get("output_tokens")),
        cached_tokens=read,
        reasoning_tokens=wire.known_count((usage.get("output_tokens_details") or {}).get("thinking_tokens")),
    )
