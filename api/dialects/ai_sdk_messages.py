"""The UI messages of the AI SDK as a job's messages: what `useChat` posts, part by part. Pure.

As `convertToModelMessages` of the SDK does it: sources, data parts and the text of reasoning are for people and stay
out, and so do calls that nothing came of (the user stopped the answer there). What a model would need and cannot be
given here is refused by its name, never left out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import orjson

from broker.events import Json
from broker.options import Path, Wrong

_ROLES: Final = ("system", "user", "assistant")

#: Parts that are shown to people, and that no model is given.
_FOR_PEOPLE: Final = frozenset({"source-url", "source-document", "step-start"})

#: Calls in these states have no result, and never will.
_UNANSWERED: Final = frozenset({"input-streaming", "input-available"})

_IMAGE: Final = "image/"


class _Reading:
    """One conversion: the messages so far, and everything that is wrong."""

    def __init__(self) -> None:
        self.messages: list[Json] = []
        self.wrong: list[Wrong] = []

    def refuse(self, path: Path, message: str) -> None:
        self.wrong.append(Wrong(path, message))


def converted(messages: Any) -> tuple[list[Json], list[Wrong]]:
    """The messages in the shape of chat completions, and what is wrong with them, by paths below `messages`."""
    reading = _Reading()
    if not isinstance(messages, list) or not messages:
        return [], [Wrong(("messages",), "it must be a list of UI messages, and not empty")]
    for number, message in enumerate(messages):
        path: Path = ("messages", number)
        match message:
            case {"role": "system" | "user" | "assistant" as role, "parts": list(parts)}:
                _OF_ROLE[role](reading, path, parts)
            case {"role": role} if role not in _ROLES:
                reading.refuse((*path, "role"), f"it must be one of {', '.join(_ROLES)}")
            case {"role": _}:
                reading.refuse((*path, "parts"), "it must be a list of parts")
            case _:
                reading.refuse(path, "it must be a UI message: an object with role and parts")
    return reading.messages, reading.wrong


def _system(reading: _Reading, path: Path, parts: list[Any]) -> None:
    texts: list[str] = []
    for number, part in enumerate(parts):
        match part:
            case {"type": "text", "text": str(text)}:
                texts.append(text)
            case _:
                _refuse_part(reading, (*path, "parts", number), part, "a system message has text only")
    reading.messages.append({"role": "system", "content": "".join(texts)})


def _user(reading: _Reading, path: Path, parts: list[Any]) -> None:
    content: list[Json] = []
    wrong_before = len(reading.wrong)
    for number, part in enumerate(parts):
        place: Path = (*path, "parts", number)
        match part:
            case {"type": "text", "text": str(text)}:
                content.append({"type": "text", "text": text})
            case {"type": "file", "mediaType": str(media), "url": str(url)} if media.startswith(_IMAGE):
                content.append({"type": "image_url", "image_url": {"url": url}})
            case {"type": "file", "mediaType": media}:
                reading.refuse((*place, "mediaType"), f"of files only images are supported, not {media!r:.80}")
            case {"type": str(kind)} if kind.startswith("data-") or kind in _FOR_PEOPLE:
                pass
            case _:
                _refuse_part(reading, place, part, "a user's message has text and images")
    if not content and len(reading.wrong) == wrong_before:
        reading.refuse((*path, "parts"), "there is nothing in it that a model could be given")
    elif all(part["type"] == "text" for part in content):
        reading.messages.append({"role": "user", "content": "".join(part["text"] for part in content)})
    else:
        reading.messages.append({"role": "user", "content": content})


def _assistant(reading: _Reading, path: Path, parts: list[Any]) -> None:
    """A message of several steps becomes one message of the model a step, each with its results behind it."""
    step = _Step()
    for number, part in enumerate(parts):
        place: Path = (*path, "parts", number)
        match part:
            case {"type": "step-start"}:
                reading.messages += step.messages()
                step = _Step()
            case {"type": "text", "text": str(text)}:
                if step.calls:  # a message of another server may have no steps: text behind calls is another turn's
                    reading.messages += step.messages()
                    step = _Step()
                step.texts.append(text)
            case {"type": "reasoning", "providerMetadata": {"legato": {"reasoning": dict(block)}}}:
                step.blocks.append(block)
            case {"type": str(kind)} if kind in ("reasoning", *_FOR_PEOPLE) or kind.startswith("data-"):
                pass
            case {"type": str(kind)} if kind.startswith("tool-") or kind == "dynamic-tool":
                _call(reading, place, part, step)
            case _:
                _refuse_part(reading, place, part, "an assistant's message has text, reasoning and tool calls")
    reading.messages += step.messages()


class _Step:
    """One turn of the model inside a message."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.blocks: list[Json] = []  # reasoning that the provider wants back
        self.calls: list[Json] = []
        self.results: list[Json] = []

    def messages(self) -> list[Json]:
        text = "".join(self.texts)
        if not (text or self.calls):
            return []
        content: object = text or None
        if self.blocks:
            content = [*self.blocks, *([{"type": "text", "text": text}] if text else [])]
        message: Json = {"role": "assistant", "content": content}
        return [message | ({"tool_calls": self.calls} if self.calls else {}), *self.results]


def _call(reading: _Reading, path: Path, part: Json, step: _Step) -> None:
    name = part.get("toolName") if part["type"] == "dynamic-tool" else part["type"].removeprefix("tool-")
    call, state = part.get("toolCallId"), part.get("state")
    if not (isinstance(name, str) and name and isinstance(call, str) and call):
        reading.refuse(path, "a tool call needs a name and a toolCallId")
        return
    match state:
        case "output-available":
            output = part.get("output")
            result: Json = {"content": output if isinstance(output, str) else _text(output)}
        case "output-error":
            result = {"content": str(part.get("errorText") or "the tool failed"), "is_error": True}
        case _ if state in _UNANSWERED:
            return
        case _:
            reading.refuse((*path, "state"), "tool approvals are not supported; a call has its output, or its error")
            return
    given = part.get("input")
    if given is None:
        given = part.get("rawInput")
    arguments = _text(given if isinstance(given, dict) else {} if given is None else {"input": given})
    step.calls.append({"id": call, "type": "function", "function": {"name": name, "arguments": arguments}})
    step.results.append({"role": "tool", "tool_call_id": call, **result})


def _refuse_part(reading: _Reading, path: Path, part: Any, there_is: str) -> None:
    match part:
        case {"type": str(kind)}:
            reading.refuse(path, f"a part of type {kind!r:.80} is not supported, or not whole: {there_is}")
        case _:
            reading.refuse(path, "a part is an object with a type")


def _text(value: object) -> str:
    return orjson.dumps(value).decode()


_OF_ROLE: Final[dict[str, Callable[[_Reading, Path, list[Any]], None]]] = {
    "system": _system,
    "user": _user,
    "assistant": _assistant,
}
