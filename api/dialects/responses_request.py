"""`POST /openai/v1/responses`, the body, as a job. Pure.

Deliberate oddities:
- `store: false` keeps the response for a minute after its end, so that a reader that was cut off still gets it.
- What `include` may ask for, `reasoning.encrypted_content`, is always there.
"""

from __future__ import annotations

from typing import Final

from api.dialects.openai_request import Draft, names, passed, stream_options, wire_of
from api.dialects.responses_input import Before, take_input
from api.dialects.responses_object import NAME
from broker.events import Json
from broker.generation import Request
from broker.settings import Settings

#: How long a response lives after its end that was asked for with `store: false`.
UNSTORED_SECONDS: Final = 60

#: Hints for the provider, which OpenAI takes on both of its wires.
_HINTS: Final = names("service_tier user safety_identifier prompt_cache_key prompt_cache_retention")

#: What goes to the provider as an option of the same name, by wire.
_OPTIONS: Final = {
    "responses": _HINTS | names("max_tool_calls parallel_tool_calls truncation"),
    "chat": _HINTS | {"parallel_tool_calls"},
    "": names(""),
}

_KNOWN: Final = _HINTS | names(
    "model input instructions max_output_tokens temperature top_p tools tool_choice parallel_tool_calls metadata "
    "background stream stream_options store include reasoning text truncation top_logprobs previous_response_id "
    "conversation prompt max_tool_calls legato"
)

#: Fields that a response object repeats as they were given.
_REPEATED: Final = _HINTS | names("reasoning text truncation parallel_tool_calls max_tool_calls previous_response_id")

_ENCRYPTED: Final = "reasoning.encrypted_content"


def job_of(body: Json, settings: Settings, before: Before | None = None) -> Request:
    """The job; it goes on from `before`, which `previous_response_id` names. Raises `Problem`, which names everything
    that is wrong or not supported."""
    draft = Draft(body, settings)
    draft.only(_KNOWN)
    draft.model()
    for name in ("max_output_tokens", "temperature", "top_p", "metadata"):
        draft.take(name)
    _metadata(draft)
    skip = take_input(draft, before)
    _tools(draft)
    _flags(draft)
    _options(draft)
    draft.extras()
    if body.get("store") is False and "ttl_seconds" not in draft.native:
        draft.native["ttl_seconds"] = UNSTORED_SECONDS
    dialect: Json = {"name": NAME, "model": body.get("model"), "background": body.get("background") is True}
    dialect["instructions"] = body.get("instructions") is not None
    dialect["skip"] = skip  # messages before those of its own input
    dialect["store"] = body.get("store") is not False
    dialect["repeated"] = {name: body[name] for name in sorted(_REPEATED) if body.get(name) is not None}
    return draft.job(dialect)


# --- flags and options ---


def _metadata(draft: Draft) -> None:
    metadata = draft.body.get("metadata")
    if not isinstance(metadata, dict):
        return  # the native checks say so
    if len(metadata) > 16:
        draft.refuse("metadata", "it has at most 16 keys")
    for name, value in metadata.items():
        if not isinstance(value, str):
            draft.refuse(f"metadata.{name}", "it must be a string")


def _flags(draft: Draft) -> None:
    body = draft.body
    for name in ("background", "stream", "store"):
        draft.accept(name, True, False, why="it must be true or false")
    draft.accept("conversation", why="there are no conversations here: send the whole one as input")
    draft.accept("prompt", why="there are no stored prompts here")
    draft.accept("top_logprobs", 0, why="logprobs are not kept")
    draft.accept("truncation", "auto", "disabled", why="it must be auto or disabled")
    draft.accept("parallel_tool_calls", True, False, why="it must be true or false")
    stream_options(draft)
    match body.get("include"):
        case None:
            pass
        case list(wanted):
            for number, item in enumerate(wanted):
                if item != _ENCRYPTED:
                    draft.refuse(f"include.{number}", f"only {_ENCRYPTED} can be included, and always is")
        case _:
            draft.refuse("include", "it must be a list")


def _options(draft: Draft) -> None:
    """What goes to the provider beside the job itself."""
    wire = wire_of(draft.provider, draft.settings)
    neutral = {"parallel_tool_calls": True, "truncation": "disabled", "service_tier": "auto"}
    given = [name for name in sorted(_OPTIONS["responses"]) if draft.body.get(name) != neutral.get(name)]
    passed(draft, _OPTIONS[wire], given)
    _reasoning(draft, wire)
    _text(draft, wire)


def _reasoning(draft: Draft, wire: str) -> None:
    match draft.body.get("reasoning"):
        case None:
            return
        case dict(reasoning):
            pass
        case _:
            draft.refuse("reasoning", "it must be an object")
            return
    given = {name: value for name, value in reasoning.items() if value is not None}
    if wire == "responses" and given:
        draft.take("reasoning", option="reasoning", value=given)
        return
    for name, value in given.items():
        if wire == "chat" and name == "effort":
            draft.take("reasoning", option="reasoning_effort", value=value)
        else:
            draft.refuse(f"reasoning.{name}", f"the provider {draft.provider} has no such option")


def _text(draft: Draft, wire: str) -> None:
    match draft.body.get("text"):
        case None:
            return
        case dict(text):
            pass
        case _:
            draft.refuse("text", "it must be an object")
            return
    given = {name: value for name, value in text.items() if value is not None and value != {"type": "text"}}
    if wire == "responses" and given:
        draft.take("text", option="text", value=given)
        return
    for name, value in given.items():
        match name, value:
            case "verbosity", str() if wire == "chat":
                draft.take("text", option="verbosity", value=value)
            case "format", {"type": "json_schema", **schema} if wire == "chat":
                draft.take("text", option="response_format", value={"type": "json_schema", "json_schema": schema})
            case "format", {"type": "json_object"} if wire == "chat":
                draft.take("text", option="response_format", value=value)
            case _:
                draft.refuse(f"text.{name}", f"the provider {draft.provider} has no such option")


# --- tools ---


def _tools(draft: Draft) -> None:
    match draft.body.get("tools"):
        case None:
            pass
        case list(tools):
            draft.native["tools"] = [_tool(draft, number, tool) for number, tool in enumerate(tools)]
        case other:
            draft.native["tools"] = other  # the native checks say what it must be
    match draft.body.get("tool_choice"):
        case {"type": "function", "name": name, **rest} if not rest:
            draft.native["tool_choice"] = {"type": "function", "function": {"name": name}}
            draft.said_as["tool_choice.function"] = "tool_choice"
        case {}:
            draft.refuse("tool_choice", "it must be auto, none, required, or name a function")
        case None:
            pass
        case choice:
            draft.native["tool_choice"] = choice


def _tool(draft: Draft, number: int, tool: object) -> object:
    if not isinstance(tool, dict):
        return tool
    if tool.get("type") != "function":
        draft.refuse(f"tools.{number}.type", "only function tools are taken here")
        return {"type": "other"}
    draft.said_as[f"tools.{number}.function"] = f"tools.{number}"
    return {"type": "function", "function": {name: item for name, item in tool.items() if name != "type"}}
