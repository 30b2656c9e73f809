"""What the fields of a submit say about one another, and what is inside them: conversation, images, tools, options.

Runs over the body as it came, also where single fields are wrong already (`api.request_model` says those), so that one
answer names everything. So nothing here may trust a type: what has not the shape that a check is for is looked over.
Pure: it depends on the body and the settings alone.
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final, TypeGuard
from urllib.parse import urlsplit

from api.json_schema import wrong_schema
from broker.declared import WebhookEndpoint
from broker.options import Path, Wrong, wrong_options
from broker.settings import Settings

_SYSTEM_ROLES: Final = ("system", "developer")

#: Anthropic's scale ends here; that of the others, at 2.
_MOST_TEMPERATURE_OF_ANTHROPIC: Final = 1

_DATA_URL: Final = re.compile(r"data:image/(png|jpeg|gif|webp);base64,")

#: What a file of each type begins with.
_SIGNATURES: Final = {
    "png": re.compile(rb"\x89PNG\r\n\x1a\n"),
    "jpeg": re.compile(rb"\xff\xd8\xff"),
    "gif": re.compile(rb"GIF8[79]a"),
    "webp": re.compile(rb"RIFF....WEBP", re.DOTALL),
}


def check(body: Mapping[str, Any], settings: Settings) -> Iterator[Wrong]:
    """Everything that is wrong with the body besides single fields, in no order."""
    yield from _asked(body, settings.providers)
    yield from _conversation(body, settings.max_image_bytes)
    yield from _tools(body)
    yield from _tool_use(body)
    yield from _times(body)
    yield from _thread(body)
    yield from _delivery(body)
    yield from _options(body)
    yield from _webhook(body, settings.webhooks)


def _objects(value: object) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """The objects in a list, with their indexes; nothing where it is none."""
    for number, item in enumerate(value) if isinstance(value, list) else ():
        if isinstance(item, dict):
            yield number, item


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _both(one: Path, other: Path, why: str) -> Iterator[Wrong]:
    """Two fields that contradict one another; `why` follows on the name of the other one."""
    for path, against in ((one, other), (other, one)):
        yield Wrong(path, f"it does not go with {'.'.join(map(str, against))}: {why}")


# --- who is asked ---


def _targets(body: Mapping[str, Any]) -> Iterator[tuple[Path, str, object]]:
    """The request's own provider and model, then those of its fallbacks: where they stand, and what they are."""
    for path, target in [((), body), *((("fallbacks", at), item) for at, item in _objects(body.get("fallbacks")))]:
        if isinstance(provider := target.get("provider"), str) and provider:
            yield path, provider, target.get("model")


def _asked(body: Mapping[str, Any], providers: tuple[str, ...]) -> Iterator[Wrong]:
    there_is = ", ".join(providers) or "none"
    seen: dict[tuple[str, str], Path] = {}
    for path, provider, model in _targets(body):
        if provider not in providers:
            yield Wrong((*path, "provider"), f"no provider is named so; there is {there_is}")
        if isinstance(model, str) and (before := seen.setdefault((provider, model), path)) != path:
            yield from _both(path, before or ("model",), "the same model at the same provider")
        yield from _limits_of(provider, (*path, "provider"), body)


def _options(body: Mapping[str, Any]) -> Iterator[Wrong]:
    """The options of the request, and those that a fallback has of its own."""
    if isinstance(provider := body.get("provider"), str) and isinstance(body.get("provider_options"), dict):
        yield from wrong_options(provider, body)
    for at, item in _objects(body.get("fallbacks")):
        if isinstance(provider := item.get("provider"), str) and isinstance(item.get("provider_options"), dict):
            for wrong in wrong_options(provider, {**body, "provider_options": item["provider_options"]}):
                own = wrong.path[:1] == ("provider_options",)
                yield Wrong(("fallbacks", at, *wrong.path), wrong.message) if own else wrong


def _limits_of(provider: str, path: Path, body: Mapping[str, Any]) -> Iterator[Wrong]:
    temperature = body.get("temperature")
    match provider:
        case "openai_responses" if body.get("stop"):
            yield from _both(("stop",), path, "this provider has no stop sequences")
        case "anthropic" if _is_number(temperature) and temperature > _MOST_TEMPERATURE_OF_ANTHROPIC:
            yield from _both(("temperature",), path, f"there it is at most {_MOST_TEMPERATURE_OF_ANTHROPIC}")
        case _:
            pass


def _thread(body: Mapping[str, Any]) -> Iterator[Wrong]:
    if body.get("thread_policy") is not None and body.get("thread") is None:
        yield Wrong(("thread_policy",), "it says what to do in a thread: name one in thread")


def _webhook(body: Mapping[str, Any], endpoints: Mapping[str, WebhookEndpoint]) -> Iterator[Wrong]:
    match body.get("webhook"):
        case {"url": str(url)} if url and not any(endpoint.covers(url) for endpoint in endpoints.values()):
            yield Wrong(("webhook", "url"), "the operator allows no such URL (LEGATO_WEBHOOKS)")
        case _:
            pass


# --- messages ---


def _conversation(body: Mapping[str, Any], most_bytes: int) -> Iterator[Wrong]:
    messages = body.get("messages")
    called: set[str] = set()
    for number, message in _objects(messages):
        match message:
            case {"role": "assistant", "tool_calls": calls}:
                called.update(call["id"] for _, call in _objects(calls) if isinstance(call.get("id"), str))
            case {"role": "tool", "tool_call_id": str(call_id)} if call_id and call_id not in called:
                yield Wrong(
                    ("messages", number, "tool_call_id"), "no assistant message before it has a call of this id"
                )
            case _:
                pass
        for part_number, part in _objects(message.get("content")):
            match part:
                case {"type": "image_url", "image_url": {"url": str(url)}} if url:
                    place = ("messages", number, "content", part_number, "image_url", "url")
                    yield from (Wrong(place, why) for why in _image(url, most_bytes))
                case _:
                    pass
    if messages and isinstance(messages, list) and all(_is_instruction(message) for message in messages):
        yield Wrong(("messages",), "at least one message must be of another role than system and developer")


def _is_instruction(message: object) -> bool:
    return isinstance(message, dict) and message.get("role") in _SYSTEM_ROLES


def _image(url: str, most_bytes: int) -> Iterator[str]:
    if not url.startswith("data:"):
        if not _is_web_address(url):
            yield "it must be an http:// or https:// address, or an image as data:image/png;base64,…"
        return
    head = _DATA_URL.match(url)
    if head is None:
        yield "a data: address must begin with data:image/, then png, jpeg, gif or webp, then ;base64,"
        return
    if (len(url) - head.end()) // 4 * 3 - 2 > most_bytes:
        yield f"the image is larger than {most_bytes} bytes"
        return
    try:
        data = binascii.a2b_base64(url[head.end() :], strict_mode=True)
    except ValueError:
        yield "the image is not in base64"
        return
    if len(data) > most_bytes:
        yield f"the image is larger than {most_bytes} bytes"
    if not _SIGNATURES[head[1]].match(data):
        yield f"the data does not begin as {head[1]} does"


def _is_web_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in {"http", "https"} and bool(parts.hostname) and url.isprintable() and " " not in url
    except ValueError:
        return False


# --- tools ---


def _tools(body: Mapping[str, Any]) -> Iterator[Wrong]:
    names: dict[str, int] = {}
    for number, tool in _objects(body.get("tools")):
        match tool:
            case {"type": "function", "function": {"name": str(name), **rest}}:
                pass
            case _:
                continue
        path: Path = ("tools", number, "function")
        if names.setdefault(name, number) != number:
            yield Wrong((*path, "name"), f"tools.{names[name]} has the same name")
        parameters = rest.get("parameters")
        if not parameters or not isinstance(parameters, dict):  # an empty one means what none means
            continue
        if parameters.get("type") != "object":
            yield Wrong((*path, "parameters", "type"), "it must be object")
        yield from wrong_schema((*path, "parameters"), parameters)
    match body.get("tool_choice"):
        case {"function": {"name": str(name)}} if name not in names and body.get("tools"):
            yield Wrong(("tool_choice", "function", "name"), "no function in tools is named so")
        case _:
            pass


def _tool_use(body: Mapping[str, Any]) -> Iterator[Wrong]:
    mode = body.get("tool_mode", "return")
    if not body.get("tools"):
        if body.get("tool_choice") is not None:
            yield from _both(("tool_choice",), ("tools",), "there are none")
        if mode in ("server", "interactive"):
            yield from _both(("tool_mode",), ("tools",), "there are none")
    if mode == "return" and "max_tool_rounds" in body:
        yield from _both(("max_tool_rounds",), ("tool_mode",), "only server and interactive have rounds")
    if mode in ("return", "server") and "tool_timeout_seconds" in body:
        yield from _both(("tool_timeout_seconds",), ("tool_mode",), "only interactive waits for the client")


# --- time and text ---


def _times(body: Mapping[str, Any]) -> Iterator[Wrong]:
    stall, timeout = body.get("stall_seconds"), body.get("timeout_seconds")
    if _is_number(stall) and _is_number(timeout) and stall > timeout:
        yield from _both(("stall_seconds",), ("timeout_seconds",), "a silence cannot be longer than the whole")
    match body.get("on_disconnect"):
        case {"grace_seconds": _, **rest} if rest.get("policy", "continue") == "continue":
            grace, policy = ("on_disconnect", "grace_seconds"), ("on_disconnect", "policy")
            yield from _both(grace, policy, "only cancel waits for somebody to come back")
        case _:
            pass


def _delivery(body: Mapping[str, Any]) -> Iterator[Wrong]:
    match body.get("delivery"):
        case {"flush_ms": int(), **rest} if rest.get("unit", "token") == "token" and rest.get("max_chars") is None:
            why = "nothing waits there, unless max_chars is given"
            yield from _both(("delivery", "flush_ms"), ("delivery", "unit"), why)
        case _:
            pass
    for name in ("transforms", "validators"):
        if body.get("recovery") == "continue" and body.get(name):
            yield from _both(("recovery",), (name,), "the text that was shown need not be what the model said")
