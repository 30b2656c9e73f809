"""`POST /openai/v1/chat/completions`, the body: as a job. Pure. Messages and tools have the native shape already.

Deliberate oddities:
- What an answer of ours holds besides text and calls (`annotations`, `reasoning_content`) means nothing when it comes
  back with the conversation, and is left out; `reasoning_details` goes back to the provider.
"""

from __future__ import annotations

from typing import Any, Final

from api.dialects.openai_request import Draft, names, passed, stream_options, wire_of
from broker.events import Json
from broker.generation import Request
from broker.settings import Settings

NAME: Final = "chat"

_HINTS: Final = names("service_tier user safety_identifier prompt_cache_key prompt_cache_retention parallel_tool_calls")

#: What goes to the provider as an option of the same name, by its wire.
_OPTIONS: Final = {
    "chat": _HINTS
    | names(
        "seed presence_penalty frequency_penalty logit_bias response_format reasoning_effort verbosity prediction "
        "web_search_options"
    ),
    "responses": _HINTS,
    "": names(""),
}

#: Fields that need nothing done where they say what holds anyway.
_NEUTRAL: Final[dict[str, tuple[object, ...]]] = {
    "presence_penalty": (0, 0.0),
    "frequency_penalty": (0, 0.0),
    "logit_bias": ({},),
    "response_format": ({"type": "text"},),
    "parallel_tool_calls": (True,),
    "service_tier": ("auto", "default"),
}

_KNOWN: Final = _OPTIONS["chat"] | names(
    "model messages stream stream_options temperature top_p max_tokens max_completion_tokens stop tools tool_choice n "
    "metadata store logprobs top_logprobs modalities audio functions function_call legato"
)

#: What an assistant's message may hold that came from here and has nowhere to go.
_ECHOED: Final = frozenset({"annotations", "reasoning_content", "audio", "function_call"})


def job_of(body: Json, settings: Settings) -> Request:
    """The job. Raises `Problem`, which names everything that is wrong or not supported."""
    draft = Draft(body, settings)
    draft.only(_KNOWN)
    draft.model()
    for name in ("temperature", "top_p", "stop", "tool_choice", "metadata"):
        draft.take(name)
    limits = [name for name in ("max_tokens", "max_completion_tokens") if body.get(name) is not None]
    for name in limits[:1]:
        draft.take(name, native="max_output_tokens")
    if len(limits) > 1:
        draft.refuse("max_tokens", "it does not go with max_completion_tokens")
    _messages(draft)
    match body.get("tools"):
        case list(tools):
            draft.native["tools"] = tools
            for number, tool in enumerate(tools):
                if isinstance(tool, dict) and tool.get("type") != "function":
                    draft.refuse(f"tools.{number}.type", "only function tools are taken here")
        case _:
            draft.take("tools")
    _flags(draft)
    _options(draft)
    draft.extras()
    return draft.job({"name": NAME, "model": body.get("model")})


def include_usage(body: Json) -> bool:
    """Whether a chunk with the usage shall follow."""
    return bool((body.get("stream_options") or {}).get("include_usage"))


def _flags(draft: Draft) -> None:
    draft.accept("stream", True, False, why="it must be true or false")
    stream_options(draft, "include_usage")
    draft.accept("n", 1, why="a generation is one answer, so it can only be 1")
    draft.accept("store", False, why="completions are not kept to be looked up here; use the Responses API")
    draft.accept("logprobs", False, why="logprobs are not kept")
    draft.accept("top_logprobs", 0, why="logprobs are not kept")
    draft.accept("modalities", ["text"], why="answers are text")
    draft.accept("audio", why="answers are text")
    draft.accept("functions", why="use tools")
    draft.accept("function_call", why="use tool_choice")


def _options(draft: Draft) -> None:
    body, wire = draft.body, wire_of(draft.provider, draft.settings)
    given = [
        name
        for name in sorted(_OPTIONS["chat"])
        if body.get(name) is not None and body[name] not in _NEUTRAL.get(name, ())
    ]
    if wire == "responses":
        given = [name for name in given if not _said_otherwise(draft, name)]
    passed(draft, _OPTIONS[wire], given)


def _said_otherwise(draft: Draft, name: str) -> bool:
    """Whether the Responses API has the option by another name."""
    value = draft.body[name]
    options = draft.native.setdefault("provider_options", {})
    match name, value:
        case "reasoning_effort", _:
            draft.take(name, option="reasoning", value={"effort": value})
        case "verbosity", _:
            draft.take(name, option="text", value={**options.get("text", {}), "verbosity": value})
        case "response_format", {"type": "json_schema", "json_schema": {**schema}}:
            form = {"type": "json_schema", **schema}
            draft.take(name, option="text", value={**options.get("text", {}), "format": form})
        case "response_format", {"type": "json_object"}:
            draft.take(name, option="text", value={**options.get("text", {}), "format": value})
        case _:
            return False
    return True


def _messages(draft: Draft) -> None:
    match draft.body.get("messages"):
        case list(messages):
            draft.native["messages"] = [_message(message) for message in messages]
        case None:
            draft.refuse("messages", "it is required")
        case other:
            draft.native["messages"] = other


def _block(detail: Any) -> Any:
    """A block as the provider gave it: the `index` is of the stream that it came with."""
    return {name: value for name, value in detail.items() if name != "index"} if isinstance(detail, dict) else detail


def _message(message: Any) -> Any:
    if not isinstance(message, dict):
        return message
    kept = {name: value for name, value in message.items() if value is not None}
    if message.get("role") != "assistant":
        return kept
    kept = {name: value for name, value in kept.items() if name not in _ECHOED}
    details, refusal = kept.pop("reasoning_details", None), kept.pop("refusal", None)
    if details is None and refusal is None:
        return kept
    content = kept.get("content")
    parts = [{"type": "text", "text": content}] if isinstance(content, str) and content else content or []
    if not isinstance(parts, list) or not isinstance(details, list | None) or not isinstance(refusal, str | None):
        return message  # the native checks say what is not right
    said = [{"type": "refusal", "refusal": refusal}] if refusal else []
    if content := [*(_block(detail) for detail in details or []), *parts, *said]:
        kept["content"] = content
    return kept
