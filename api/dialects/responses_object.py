"""A response object, but for its output: what it repeats of its request, its error, its usage. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from broker.events import FailureCode, Json, Usage
from broker.generation import Request, created_at

#: What the `dialect` of a request is called that came in as a response.
NAME: Final = "responses"

#: What the id of a response begins with, in place of `gen_`.
PREFIX: Final = "resp_"

#: Codes that clients of OpenAI look for; every other failure is a `server_error` whose message begins with ours.
_ERROR_CODES: Final = {
    FailureCode.RATE_LIMITED: "rate_limit_exceeded",
    FailureCode.CONTEXT_LENGTH: "context_length_exceeded",
    FailureCode.INVALID_REQUEST: "invalid_prompt",
    FailureCode.CONTENT_FILTER: "content_filter",
}

#: Annotations that this wire knows by itself.
_ANNOTATIONS: Final = frozenset({"url_citation", "file_citation", "container_file_citation", "file_path"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What a response is of, besides its log: its id, and what of its request every response object repeats."""

    key: str  # hex digits of the generation's id
    created_at: int  # Unix seconds
    background: bool
    shown: Json

    @property
    def id(self) -> str:
        return PREFIX + self.key


def subject_of(generation: str, created_ms: int, request: Request) -> Subject:
    """What the response to a request is, besides its log. Of a job that came another way, too."""
    dialect = request.dialect if request.dialect.get("name") == NAME else {}
    shown: Json = {
        "instructions": _text_of(request.messages[0]) if dialect.get("instructions") and request.messages else None,
        "max_output_tokens": request.max_output_tokens,
        "max_tool_calls": None,
        "metadata": request.metadata,
        "model": request.dialect.get("model") or f"{request.provider}/{request.model}",
        "parallel_tool_calls": True,
        "previous_response_id": None,
        "reasoning": {"effort": None, "summary": None},
        "safety_identifier": None,
        "service_tier": "default",
        "store": dialect.get("store", True),
        "temperature": request.temperature,
        "text": {"format": {"type": "text"}},
        "tool_choice": _flat_choice(request.tool_choice) or "auto",
        "tools": [_flat_tool(tool) for tool in request.tools or []],
        "top_logprobs": 0,
        "top_p": request.top_p,
        "truncation": "disabled",
        "user": None,
    }
    return Subject(
        key=generation.removeprefix("gen_"),
        created_at=created_ms // 1000 or int(created_at(generation)),
        background=bool(dialect.get("background", not dialect)),
        shown=shown | dialect.get("repeated", {}),
    )


def _text_of(message: Json) -> str:
    return str(message.get("content"))


def _flat_tool(tool: Json) -> Json:
    function = tool.get("function")
    if tool.get("type") != "function" or not isinstance(function, dict):
        return tool
    return {"type": "function", "description": None, "parameters": None, "strict": False} | function


def _flat_choice(choice: Any) -> Any:
    match choice:
        case {"type": "function", "function": {"name": name}}:
            return {"type": "function", "name": name}
        case _:
            return choice


def error_of(code: FailureCode, message: str) -> Json:
    """The `error` of a failed response."""
    if (known := _ERROR_CODES.get(code)) is not None:
        return {"code": known, "message": message}
    return {"code": "server_error", "message": f"{code.value}: {message}"}


def usage_of(usage: Usage | None) -> Json | None:
    """Tokens as this wire counts them; what the provider did not give is 0."""
    if usage is None:
        return None
    return {
        "input_tokens": usage.input_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens or 0, "cache_write_tokens": 0},
        "output_tokens": usage.output_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens or 0},
        "total_tokens": usage.input_tokens + usage.output_tokens,
    }


def annotation_of(data: Json, at: int) -> Json | None:
    """A citation in this wire's words; `None` where there is no address to show."""
    match data:
        case {"type": "url_citation", "url_citation": dict(nested)}:
            return {"type": "url_citation"} | nested
        case {"type": str(kind)} if kind in _ANNOTATIONS:
            return data
        case {"url": str(url)}:
            title = data.get("title") or url
            return {"type": "url_citation", "url": url, "title": title, "start_index": at, "end_index": at}
        case _:
            return None
