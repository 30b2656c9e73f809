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
- The `name` of a message has no place here. Content parts and tools of types this module does not know go as they are.

Deliberate oddities:
- Tools that run at the provider, and `custom` tools, are not calls for anybody here: not shown.
- An answer that is incomplete for a reason we do not know is `length`: the text is not all there could be. One that
  somebody cancelled at the provider is `upstream_incomplete`.
- The last events repeat the whole answer. It is not read again, but it must fit `_MOST_BYTES`.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Final

import openai
from openai.resources.responses import AsyncResponses

from broker.events import Delta, DeltaKind, FinishReason, Json, Usage, UsageReport
from broker.generation import Request
from worker.providers import classify, wire
from worker.providers.base import Call, Finish, ProviderEvent

_INCOMPLETE_REASONS: Final = {
    "max_output_tokens": FinishReason.LENGTH,
    "content_filter": FinishReason.CONTENT_FILTER,
}

_DELTAS: Final = {
    "response.output_text.delta": DeltaKind.TEXT,
    "response.refusal.delta": DeltaKind.REFUSAL,
    "response.reasoning_text.delta": DeltaKind.REASONING,
    "response.reasoning_summary_text.delta": DeltaKind.REASONING,
}

#: Codes of this wire alone, and the error type that means the same everywhere.
_TYPE_OF_CODE: Final = {
    "image_content_policy_violation": "content_policy_violation",
    "data_residency_mismatch": "invalid_request_error",
    "invalid_image": "invalid_request_error",
    "invalid_image_format": "invalid_request_error",
    "invalid_base64_image": "invalid_request_error",
    "invalid_image_url": "invalid_request_error",
    "invalid_image_mode": "invalid_request_error",
    "image_too_large": "invalid_request_error",
    "image_too_small": "invalid_request_error",
    "image_parse_error": "invalid_request_error",
    "image_file_too_large": "invalid_request_error",
    "unsupported_image_media_type": "invalid_request_error",
    "empty_image_file": "invalid_request_error",
    "image_file_not_found": "invalid_request_error",
}


#: The longest line of this wire: its last ones hold everything that was said, escaped.
_MOST_BYTES: Final = 32 * 1024 * 1024


class OpenAIResponsesProvider:
    """`name` is as requests say it. A client given by the caller stays the caller's to close."""

    def __init__(self, *, client: openai.AsyncOpenAI | None = None, name: str = "openai_responses") -> None:
        self.name = name
        self._client = None if client is None else client.with_options(max_retries=0)
        self._owned: openai.AsyncOpenAI | None = None

    def can_continue(self, request: Request) -> bool:
        """Never: whether a model goes on from a partial answer cannot be known from its name."""
        return False

    def stream(self, call: Call) -> AsyncGenerator[ProviderEvent, None]:
        """See `Provider.stream`. The worker owns retries; the SDK makes none."""

        def connect() -> AbstractAsyncContextManager[wire.Response]:
            create = self._connected().responses.with_streaming_response.create
            return create(**create_arguments(call.request))

        return wire.relay(
            connect,
            EventMapper(self.name),
            provider=self.name,
            meter=call.meter,
            auth_errors=(),
            most_bytes=_MOST_BYTES,
        )

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

_TAKES: Final = frozenset(inspect.signature(AsyncResponses.create).parameters)


def create_arguments(request: Request) -> Json:
    """The keyword arguments of the SDK's `create`."""
    if request.stop:
        raise classify.invalid_request("stop: the Responses API has no stop sequences")
    fields = {
        "max_output_tokens": request.max_output_tokens,
        "temperature": request.temperature,
        "top_p": request.top_p,
        "tools": None if request.tools is None else [_tool(tool) for tool in request.tools],
        "tool_choice": _tool_choice(request.tool_choice),
    }
    arguments: Json = {
        "model": request.model,
        "input": [item for message in request.messages for item in _items(message)],
        "stream": True,
        "store": False,
    }
    arguments |= {name: value for name, value in fields.items() if value is not None}
    arguments = wire.with_options(arguments, request.provider_options, takes=_TAKES)
    if "input" in request.provider_options or "input" in arguments.get("extra_body", {}):
        raise classify.invalid_request("provider_options.input: cannot be set here")
    return arguments


def _items(message: Json) -> list[Json]:
    """A message as input items: calls and their results are items of their own here."""
    role, content = message.get("role"), message.get("content")
    if role == "tool":
        output = _content(content, text_type="input_text")
        return [{"type": "function_call_output", "call_id": message.get("tool_call_id"), "output": output}]
    calls = message.get("tool_calls") or []
    items: list[Json] = []
    if content or not calls:
        text_type = "output_text" if role == "assistant" else "input_text"
        items.append({"type": "message", "role": role, "content": _content(content, text_type=text_type)})
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


class EventMapper:
    """Response stream events to events; see `wire.Mapper`."""

    def __init__(self, provider: str) -> None:
        self.finished = False
        self._provider = provider
        self._frames = wire.Frames()
        self._calls = wire.ToolCalls(self._frames)
        self._known_calls: set[int] = set()  # by the index of their output item, whether under way or done
        self._with_fragments: set[int] = set()

    def feed(self, name: bytes | None, data: bytes) -> Sequence[ProviderEvent]:
        if not data:
            return ()
        if data.startswith(b"[DONE]"):
            return self.end()
        event = self._frames.loads(data)
        kind = event.get("type")
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
            case "response.completed":
                return self._finish(event["response"], FinishReason.STOP)
            case "response.incomplete":
                return self._incomplete(event["response"])
            case "response.failed":
                raise self._error(event["response"].get("error"))
            case "error":
                raise self._error(event.get("error") or event)
            case _ if name == b"error" or event.get("error"):
                raise self._error(event.get("error") or event)
            case _:  # what says nothing new (`created`, `….done`), the provider's own tools, later versions
                return ()

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
        return self._frames.deltas() if item["type"] in {"message", "reasoning"} else ()

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


def _usage(usage: Mapping[str, Any]) -> Usage:
    return Usage(
        input_tokens=int(usage.get("input_tokens") or 0),
        output_tokens=int(usage.get("output_tokens") or 0),
        cached_tokens=(usage.get("input_tokens_details") or {}).get("cached_tokens"),
        reasoning_tokens=(usage.get("output_tokens_details") or {}).get("reasoning_tokens"),
    )
