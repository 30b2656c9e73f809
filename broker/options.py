"""What `provider_options` may hold, for each provider that is built in.

Here, and pure, so that a submit can be refused before anything is queued without importing an SDK: the API never talks
to a provider. Tests compare the names with the SDKs that are installed, and the options of `sim` with what it reads.

What an SDK takes is checked by name alone: its values are the provider's business. Servers that speak chat completions,
and providers of others, take what they like; only what the worker depends on is not theirs to change. Problems come
back as values; whoever asked makes an answer of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import islice
from typing import Any, Final, Literal

from broker.events import Json


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


#: More problems than this are not looked for: they would only fill the answer.
MOST_PROBLEMS: Final = 100

#: Never to be set here, nor in `extra_body`: the request itself says them, or the worker depends on them.
RESERVED: Final = ("messages", "model", "stream")

#: Besides those, by provider.
RESERVED_MORE: Final[Mapping[str, tuple[str, ...]]] = {"openai_responses": ("input",)}

#: Headers that say who asks and who pays, or that frame the request. By name, in lower case.
RESERVED_HEADERS: Final = _names(
    "authorization proxy-authorization x-api-key api-key x-goog-api-key cookie openai-organization openai-project "
    "host content-length content-type content-encoding transfer-encoding connection keep-alive te trailer upgrade "
    "expect accept accept-encoding"
)

#: What the SDKs' `create` take by name; made from their signatures.
SDK_OPTIONS: Final[Mapping[str, frozenset[str]]] = {
    "openai": _names(
        "audio extra_body extra_headers extra_query frequency_penalty function_call functions logit_bias logprobs "
        "max_completion_tokens max_tokens messages metadata modalities model moderation n parallel_tool_calls "
        "prediction presence_penalty prompt_cache_key prompt_cache_options prompt_cache_retention reasoning_effort "
        "response_format safety_identifier seed service_tier stop store stream stream_options temperature timeout "
        "tool_choice tools top_logprobs top_p user verbosity web_search_options"
    ),
    "openai_responses": _names(
        "access_programs background context_management conversation extra_body extra_headers extra_query image "
        "include input instructions max_output_tokens max_tool_calls metadata model moderation parallel_tool_calls "
        "previous_response_id prompt prompt_cache_key prompt_cache_options prompt_cache_retention reasoning "
        "safety_identifier service_tier store stream stream_options temperature text timeout tool_choice tools "
        "top_logprobs top_p truncation user"
    ),
    "anthropic": _names(
        "cache_control container diagnostics extra_body extra_headers extra_query inference_geo max_tokens messages "
        "metadata model output_config service_tier speed stop_sequences stream system thinking timeout tool_choice "
        "tools user_profile_id workspace_id"
    ),
}

#: What the worker sends to Anthropic as `max_tokens` where the request gives no limit.
ANTHROPIC_MAX_TOKENS: Final = 4096

#: Fields of a request, and the options that say the same to one provider or another.
_SAME: Final[Mapping[str, tuple[str, ...]]] = {
    "max_output_tokens": ("max_output_tokens", "max_tokens", "max_completion_tokens"),
    "temperature": ("temperature",),
    "top_p": ("top_p",),
    "stop": ("stop", "stop_sequences"),
    "tools": ("tools",),
    "tool_choice": ("tool_choice",),
}

#: Longest `timeout` of one request to a provider.
_MOST_TIMEOUT_SECONDS: Final = 86_400

#: Names longer than this are not compared with the ones there are.
_MOST_NAME_CHARS: Final = 64

_HEADER_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,128}")

Path = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Wrong:
    """One thing in a request that is not right: where, as names and indexes from its top, and what to do about it."""

    path: Path
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """A value of JSON: its type, and its bounds (both included)."""

    kind: Literal["string", "integer", "number", "boolean", "list", "object"]
    minimum: int | None = None
    maximum: int | None = None
    one_of: tuple[str, ...] | None = None
    or_null: bool = False
    required: bool = False
    item: Option | None = None  # of a list
    fields: Mapping[str, Option] | None = None  # of an object; None: any


_FAULT: Final = Option(
    kind="object",
    fields={
        "at_token": Option(kind="integer", minimum=0, required=True),
        "kind": Option(kind="string", one_of=("error", "stall", "truncate", "rate_limit"), required=True),
        "attempt": Option(kind="integer", minimum=1, or_null=True),
    },
)

#: Everything that `sim` takes.
SIM_OPTIONS: Final[Mapping[str, Option]] = {
    "text": Option(kind="string", or_null=True),
    "tokens": Option(kind="integer", minimum=0, maximum=1_000_000, or_null=True),
    "seed": Option(kind="integer"),
    "tokens_per_second": Option(kind="number", minimum=0),
    "first_token_ms": Option(kind="number", minimum=0),
    "chunk_chars": Option(kind="integer", minimum=1, or_null=True),
    "faults": Option(kind="list", item=_FAULT),
    "turns": Option(kind="list", item=Option(kind="object"), or_null=True),  # what is in them, the worker sees
    "resumable": Option(kind="boolean"),
}

#: Options of `sim` that say what it says.
_SIM_SOURCES: Final = ("text", "tokens", "turns")

_SIM: Final = Option(kind="object", fields=SIM_OPTIONS)

_TYPES: Final[Mapping[str, tuple[type, ...]]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "list": (list,),
    "object": (dict,),
}

_CALLED: Final = {
    "string": "a string",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "list": "a list",
    "object": "an object",
}


def wrong_options(provider: str, request: Mapping[str, Any]) -> list[Wrong]:
    """What of `request["provider_options"]` (an object) `provider` would not take, and what of it contradicts the rest.

    `request` is the body as it came; fields of a wrong type are looked over. At most `MOST_PROBLEMS`.
    """
    options = request["provider_options"]
    found = _sim(options) if provider == "sim" else _all(provider, options, request)
    return list(islice(found, MOST_PROBLEMS))


def did_you_mean(name: str, names: frozenset[str]) -> str:
    """`; did you mean …?` with the one of `names` that is most like `name`, or nothing."""
    close = get_close_matches(name, sorted(names), n=1) if len(name) <= _MOST_NAME_CHARS else []
    return f"; did you mean {close[0]}?" if close else ""


def _sim(options: Json) -> Iterator[Wrong]:
    yield from _value(("provider_options",), options, _SIM)
    given = [name for name in _SIM_SOURCES if options.get(name) is not None]
    if len(given) > 1:
        yield from (Wrong(("provider_options", name), f"{', '.join(given)}: only one of them") for name in given)


def _value(path: Path, value: object, option: Option) -> Iterator[Wrong]:
    if value is None and option.or_null:
        return
    if type(value) not in _TYPES[option.kind]:  # exactly: true is no number
        yield Wrong(path, f"it must be {_CALLED[option.kind]}")
        return
    match value:
        case str() if option.one_of is not None and value not in option.one_of:
            yield Wrong(path, f"it must be one of {', '.join(option.one_of)}")
        case int() | float() if option.minimum is not None and value < option.minimum:
            yield Wrong(path, f"it must be at least {option.minimum}")
        case int() | float() if option.maximum is not None and value > option.maximum:
            yield Wrong(path, f"it must be at most {option.maximum}")
        case list() if option.item is not None:
            for number, item in enumerate(value):
                yield from _value((*path, number), item, option.item)
        case dict() if option.fields is not None:
            for name, item in value.items():
                if (known := option.fields.get(name)) is not None:
                    yield from _value((*path, name), item, known)
                else:
                    hint = did_you_mean(name, frozenset(option.fields))
                    yield Wrong((*path, name), f"there is no such option{hint}")
            for name, known in option.fields.items():
                if known.required and name not in value:
                    yield Wrong((*path, name), "it is required")
        case _:
            pass


def _all(provider: str, options: Json, request: Mapping[str, Any]) -> Iterator[Wrong]:
    body = options.get("extra_body")
    places: list[tuple[Path, Json]] = [(("provider_options",), options)]
    if isinstance(body, dict):
        places.append((("provider_options", "extra_body"), body))
    elif body is not None:
        yield Wrong(("provider_options", "extra_body"), "it must be an object")
    for path, place in places:
        yield from _reserved(provider, path, place)
        yield from _said_twice(path, place, request)
    if (known := SDK_OPTIONS.get(provider)) is not None:
        yield from _unknown(options, known)
    yield from _sending(options)
    match provider:
        case "anthropic":
            yield from _thinking(options, request)
        case "openai_responses":
            yield from _background(options)
        case _:
            pass


def _reserved(provider: str, path: Path, place: Json) -> Iterator[Wrong]:
    for name in (*RESERVED, *RESERVED_MORE.get(provider, ())):
        if name in place:
            yield Wrong((*path, name), "it cannot be set here")
    if place.get("n") not in (None, 1):
        yield Wrong((*path, "n"), "a generation is one answer, so it can only be 1")


def _said_twice(path: Path, place: Json, request: Mapping[str, Any]) -> Iterator[Wrong]:
    for field, names in _SAME.items():
        if request.get(field) is None:
            continue
        for name in names:
            if name in place:
                option = ".".join(map(str, (*path, name)))
                yield Wrong((field,), f"it cannot go together with {option}")
                yield Wrong((*path, name), f"it cannot go together with {field}")


def _unknown(options: Json, known: frozenset[str]) -> Iterator[Wrong]:
    takes = known.difference(RESERVED)
    for name in options:
        if name in known or name in RESERVED or name == "n":
            continue
        hint = "; it is a field of the request" if name in _SAME else did_you_mean(name, takes)
        path = ("provider_options", name)
        yield Wrong(path, f"there is no such option{hint or '; what is newer than the SDK goes into extra_body'}")


def _sending(options: Json) -> Iterator[Wrong]:
    """The options that every SDK takes besides what it sends in the body."""
    timeout = options.get("timeout", 1)
    if type(timeout) not in {int, float} or not 0 < timeout <= _MOST_TIMEOUT_SECONDS:
        yield Wrong(("provider_options", "timeout"), f"it must be a number of seconds, at most {_MOST_TIMEOUT_SECONDS}")
    if not isinstance(options.get("extra_query"), dict | None):
        yield Wrong(("provider_options", "extra_query"), "it must be an object")
    headers = options.get("extra_headers") or {}
    if not isinstance(headers, dict):
        yield Wrong(("provider_options", "extra_headers"), "it must be an object")
        return
    for name, value in headers.items():
        path = ("provider_options", "extra_headers", name)
        if name.lower() in RESERVED_HEADERS:
            yield Wrong(path, "this header cannot be set here")
        elif not _HEADER_NAME.fullmatch(name):
            yield Wrong(path, "this is no name of a header")
        elif not (isinstance(value, str) and value.isascii() and value.isprintable()):
            yield Wrong(path, "it must be a string of printable ASCII characters")


def _thinking(options: Json, request: Mapping[str, Any]) -> Iterator[Wrong]:
    """Thinking is a part of the output there: its budget must leave room for an answer."""
    match options.get("thinking"):
        case {"budget_tokens": int(budget)}:
            pass
        case _:
            return
    path: Path = ("max_output_tokens",)
    limit: Any = request.get("max_output_tokens")
    default = ""
    if limit is None and options.get("max_tokens") is not None:
        path, limit = ("provider_options", "max_tokens"), options["max_tokens"]
    elif limit is None:
        limit, default = ANTHROPIC_MAX_TOKENS, f"; that is {ANTHROPIC_MAX_TOKENS} where it is not given"
    if isinstance(limit, int) and budget >= limit:
        yield Wrong(path, f"it must be more than provider_options.thinking.budget_tokens{default}")
        smaller = f"it must be less than {'.'.join(map(str, path))}{default}"
        yield Wrong(("provider_options", "thinking", "budget_tokens"), smaller)


def _background(options: Json) -> Iterator[Wrong]:
    body = options.get("extra_body")
    given = options | body if isinstance(body, dict) else options
    if given.get("background") is True and given.get("store") is False:
        yield Wrong(("provider_options", "background"), "it cannot go together with provider_options.store: false")
        yield Wrong(("provider_options", "store"), "it must be true where provider_options.background is")
