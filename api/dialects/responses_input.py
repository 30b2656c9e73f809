"""`instructions` and `input` of a response, as messages. Pure.

Items become messages: what the assistant said, thought and called in a row is one message, as chat completions have it.

Deliberate oddities:
- A reasoning item goes back to the provider by its `encrypted_content` alone. One without is left out.
- `id` and `status` of items that a client gives back mean nothing here, nor do annotations and logprobs of their texts.
"""

from __future__ import annotations

from base64 import urlsafe_b64decode
from dataclasses import dataclass
from typing import Any, Final

import orjson

from api.dialects.openai_request import Draft, wire_of
from api.dialects.responses_events import SEALED
from broker.events import Json


@dataclass(frozen=True, slots=True, kw_only=True)
class Before:
    """An earlier response that goes on: what it was asked with, its instructions left out, and what it gave."""

    messages: list[Json]
    output: list[Json]


def take_input(draft: Draft, before: Before | None) -> int:
    """Make messages of `instructions`, the response before and `input`; how many stand before those of the input."""
    messages: list[Json] = []
    match draft.body.get("instructions"):
        case None:
            pass
        case str(text):
            messages.append({"role": "system", "content": text})
            draft.said_as["messages.0"] = "instructions"
        case _:
            draft.refuse("instructions", "it must be a string")
    if before is not None:
        messages += before.messages
        _Conversation(draft, messages).go_on(before.output)
    skip = len(messages)
    match draft.body.get("input"):
        case str(text):
            messages.append({"role": "user", "content": text})
            draft.said_as[f"messages.{len(messages) - 1}"] = "input"
        case list(items):
            _Conversation(draft, messages).add_all(items)
        case None:
            draft.refuse("input", "it is required")
        case _:
            draft.refuse("input", "it must be a string or a list of items")
    draft.native["messages"] = messages
    draft.said_as["messages"] = "input"
    return skip


#: What items of each type may hold besides their type.
_ITEM_FIELDS: Final = {
    "message": frozenset({"id", "role", "content", "status", "phase"}),
    "function_call": frozenset({"id", "call_id", "name", "arguments", "status"}),
    "function_call_output": frozenset({"id", "call_id", "output", "status"}),
    "reasoning": frozenset({"id", "summary", "content", "encrypted_content", "status"}),
}


class _Conversation:
    """Items as messages."""

    def __init__(self, draft: Draft, messages: list[Json]) -> None:
        self._draft = draft
        self._messages = messages
        self._thoughts: list[Json] = []  # that belong to what the assistant says or calls next

    def add_all(self, items: list[Any]) -> None:
        if not items:
            self._draft.refuse("input", "it must not be empty")
        for number, item in enumerate(items):
            self._add(f"input.{number}", item)
        if self._thoughts:
            self._assistant("input", anew=True)

    def go_on(self, output: list[Json]) -> None:
        """What was given before. A call that never became whole was not made."""
        for item in output:
            if item["type"] != "function_call" or item["status"] == "completed":
                self._add("previous_response_id", item)
        if self._thoughts:
            self._assistant("previous_response_id", anew=True)

    def _add(self, path: str, item: object) -> None:
        draft = self._draft
        if not isinstance(item, dict):
            draft.refuse(path, "it must be an object")
            return
        kind = item.get("type", "message")
        fields = _ITEM_FIELDS.get(kind) if isinstance(kind, str) else None
        if fields is None:
            draft.refuse(f"{path}.type", f"it must be one of {', '.join(_ITEM_FIELDS)}")
            return
        for name, value in item.items():
            if name != "type" and value is not None and (name not in fields or name == "phase"):
                draft.refuse(f"{path}.{name}", "there is no such field here")
        match kind:
            case "message":
                self._message(path, item)
            case "function_call":
                self._call(path, item)
            case "function_call_output":
                output = _content(draft, f"{path}.output", item.get("output"), assistant=False)
                self._said(path, {"role": "tool", "tool_call_id": item.get("call_id"), "content": output})
            case _:
                self._reasoning(path, item)

    def _said(self, path: str, message: Json) -> Json:
        self._draft.said_as[f"messages.{len(self._messages)}"] = path
        self._messages.append(message)
        return message

    def _message(self, path: str, item: Json) -> None:
        content = _content(
            self._draft, f"{path}.content", item.get("content"), assistant=item.get("role") == "assistant"
        )
        if item.get("role") != "assistant":
            self._said(path, {"role": item.get("role"), "content": content})
            return
        message = self._assistant(path, anew=True)
        if message["content"] is None:
            message["content"] = content
        else:
            message["content"] += [{"type": "text", "text": content}] if isinstance(content, str) else content

    def _call(self, path: str, item: Json) -> None:
        message = self._assistant(path, anew=bool(self._thoughts))
        call = {"name": item.get("name"), "arguments": item.get("arguments")}
        calls = message.setdefault("tool_calls", [])
        self._draft.said_as[f"messages.{len(self._messages) - 1}.tool_calls.{len(calls)}"] = path
        calls.append({"id": item.get("call_id"), "type": "function", "function": call})

    def _assistant(self, path: str, *, anew: bool) -> Json:
        """The assistant's message that goes on, or a new one, which begins with what it thought."""
        if not anew and self._messages and self._messages[-1]["role"] == "assistant":
            return self._messages[-1]
        thoughts, self._thoughts = self._thoughts, []
        return self._said(path, {"role": "assistant", "content": thoughts or None})

    def _reasoning(self, path: str, item: Json) -> None:
        sealed = item.get("encrypted_content")
        if sealed is None:
            return
        block: Json | None = None
        if isinstance(sealed, str) and sealed.startswith(SEALED):
            block = _opened(sealed)
        elif isinstance(sealed, str) and wire_of(self._draft.provider, self._draft.settings) == "responses":
            block = {"summary": [], **item, "type": "reasoning"}
        if block is None:
            self._draft.refuse(f"{path}.encrypted_content", "it does not come from here")
            return
        last = self._messages[-1] if self._messages else {}
        if block.get("type") == "reasoning_details" and last.get("role") == "assistant":
            # Of chat completions, which tell it last: it belongs to what came before.
            content = last["content"]
            parts = [{"type": "text", "text": content}] if isinstance(content, str) else content or []
            last["content"] = [block, *parts]
        else:
            self._thoughts.append(block)


def _opened(sealed: str) -> Json | None:
    try:
        block = orjson.loads(urlsafe_b64decode(sealed.removeprefix(SEALED)))
    except ValueError:
        return None
    return block if isinstance(block, dict) and isinstance(block.get("type"), str) else None


def _content(draft: Draft, path: str, content: object, *, assistant: bool) -> Any:
    match content:
        case str():
            return content
        case list(parts):
            pass
        case _:
            draft.refuse(path, "it must be a string or a list of parts")
            return ""
    converted = [_part(draft, f"{path}.{number}", part) for number, part in enumerate(parts)]
    if assistant and all(part.get("type") == "text" for part in converted):
        return "".join(str(part.get("text")) for part in converted)  # as many servers take it only
    return converted


def _part(draft: Draft, path: str, part: Any) -> Json:
    match part:
        case {"type": "input_text" | "output_text", "text": str(text)}:
            return {"type": "text", "text": text}
        case {"type": "refusal", "refusal": str(text)}:
            return {"type": "refusal", "refusal": text}
        case {"type": "input_image", "image_url": str(url)} if part.get("file_id") is None:
            detail = part.get("detail")
            return {"type": "image_url", "image_url": {"url": url} | ({"detail": detail} if detail else {})}
        case {"type": "input_file", "file_data": str(data)} if not _given(part, "file_id", "file_url"):
            name = {"filename": part["filename"]} if part.get("filename") else {}
            return {"type": "file", "file": {"file_data": data} | name}
        case {"type": "input_image" | "input_file"}:
            draft.refuse(path, "send the file itself or its address: files are not kept here")
        case {"type": "input_text" | "output_text"}:
            draft.refuse(f"{path}.text", "it must be a string")
        case {}:
            kinds = "input_text, output_text, refusal, input_image, input_file"
            draft.refuse(f"{path}.type", f"it must be one of {kinds}")
        case _:
            draft.refuse(path, "it must be an object")
    return {"type": "text", "text": ""}


def _given(fields: Json, *names: str) -> bool:
    return any(fields.get(name) is not None for name in names)
