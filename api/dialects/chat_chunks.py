"""A log as a stream of chat completion chunks, and as one chat completion. Pure.

Chunks have no numbers and no state: what an entry becomes depends on it alone, so a reader goes on behind any position.
Every block that stands for entries has the last one's position as its `id:`; OpenAI's clients do not look at it, and
whoever wants to resume gives it back as `Last-Event-ID` with the same POST. Deltas that are there already are joined.

What a failed or cancelled answer ends with is an error object in the stream, which OpenAI's clients raise. `[DONE]`
follows on whole answers only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import orjson

from api.dialects.encoder import CannotTakeBack
from api.dialects.openai_errors import error_object
from api.frames import MERGED_BYTES
from broker.events import (
    DELTA_FIELDS,
    Cancelled,
    Completed,
    DeltaKind,
    Entry,
    Failed,
    FailureCode,
    Json,
    Part,
    Reset,
    ToolCall,
    Usage,
    decode,
)
from broker.position import Position
from broker.snapshot import Fold

DONE: Final = b"data: [DONE]\n\n"

_DELTAS: Final = {
    DeltaKind.TEXT: "content",
    DeltaKind.REASONING: "reasoning_content",
    DeltaKind.REFUSAL: "refusal",
}

#: Status and code of each failure, for who waits for the whole answer, and in the stream; a code that clients of OpenAI
#: look for is theirs.
_FAILURES: Final = {
    FailureCode.RATE_LIMITED: (429, "rate_limit_exceeded"),
    FailureCode.CONTEXT_LENGTH: (400, "context_length_exceeded"),
    FailureCode.CONTENT_FILTER: (400, "content_filter"),
    FailureCode.INVALID_REQUEST: (400, "invalid_request"),
    FailureCode.BUDGET_EXCEEDED: (429, "insufficient_quota"),
    FailureCode.UPSTREAM_ERROR: (502, "upstream_error"),
    FailureCode.UPSTREAM_INCOMPLETE: (502, "upstream_incomplete"),
    FailureCode.UPSTREAM_AUTH: (502, "upstream_auth"),
    FailureCode.STALLED: (504, "stalled"),
    FailureCode.TIMEOUT: (504, "timeout"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """What a completion is of, besides its log."""

    key: str  # hex digits of the generation's id
    created: int  # Unix seconds
    model: str

    @property
    def id(self) -> str:
        return f"chatcmpl-{self.key}"


def failure_of(failed: Failed) -> tuple[int, str]:
    """Status and code."""
    return _FAILURES.get(failed.code, (500, failed.code.value))


class ChunkStream:
    """The chunks of one completion. With `resumed`, its reader has the beginning already."""

    def __init__(self, subject: Completion, *, include_usage: bool = False, resumed: bool = False) -> None:
        self._include_usage = include_usage
        self._resumed = resumed
        head: Json = {
            "id": subject.id,
            "object": "chat.completion.chunk",
            "created": subject.created,
            "model": subject.model,
            "system_fingerprint": None,
        }
        self._head = orjson.dumps(head)[:-1]

    def begin(self) -> bytes:
        """What stands before the first entry: whose message it is."""
        return b"" if self._resumed else self._chunk({"role": "assistant", "content": ""}, "")

    def encode(self, entries: Sequence[Entry]) -> bytes:
        """The chunks of the next entries. Raises `CannotTakeBack`."""
        out: list[bytes] = []
        run: list[bytes] = []  # deltas of one kind that lie next to one another
        run_kind = DeltaKind.TEXT
        size, place = 0, ""
        for entry in entries:
            kind = DELTA_FIELDS.get(entry.field)
            if run and (kind is not run_kind or size + len(entry.payload) > MERGED_BYTES):
                out.append(self._chunk({_DELTAS[run_kind]: b"".join(run).decode()}, place))
                run, size = [], 0
            if kind is None:
                out.append(self._other(entry))
            else:
                run.append(entry.payload)
                size += len(entry.payload)
                run_kind, place = kind, entry.position
        if run:
            out.append(self._chunk({_DELTAS[run_kind]: b"".join(run).decode()}, place))
        return b"".join(out)

    def deleted(self) -> bytes:
        """The end of a completion that is erased while it is read."""
        return _error(404, "gone", "it was deleted", "")

    def _other(self, entry: Entry) -> bytes:
        event = decode(entry)
        match event:
            case Reset():
                raise CannotTakeBack
            case ToolCall(index=index, arguments=arguments, id=call_id, name=name):
                call: Json = {"index": index, "function": {"arguments": arguments}}
                if name is not None:
                    call["function"] = {"name": name, "arguments": arguments}
                if call_id is not None:
                    call |= {"id": call_id, "type": "function"}
                return self._chunk({"tool_calls": [call]}, entry.position)
            case Part(type="citation", data=data):
                return self._chunk({"annotations": [_indexed(data, entry.position)]}, entry.position)
            case Part(type="reasoning", data=data):
                return self._chunk({"reasoning_details": [_indexed(data, entry.position)]}, entry.position)
            case Completed(finish_reason=reason, usage=usage):
                return self._whole(reason.value, usage, entry.position)
            case Failed() as failed:
                return _error(*failure_of(failed), failed.message, entry.position)
            case Cancelled(reason=why):
                return _error(409, "cancelled", f"it was cancelled ({why.value})", entry.position)
            case _:  # nothing this wire has words for
                return b""

    def _whole(self, reason: str, usage: Usage | None, position: str) -> bytes:
        out = self._chunk({}, position, reason)
        if self._include_usage and usage is not None:
            out += b'data: %b,"choices":[],"usage":%b}\n\n' % (self._head, orjson.dumps(usage_of(usage)))
        return out + DONE

    def _chunk(self, delta: Json, position: str, finish_reason: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        usage = b',"usage":null' if self._include_usage else b""
        place = b"id: %b\n" % position.encode() if position else b""
        return b'%bdata: %b,"choices":[%b]%b}\n\n' % (place, self._head, orjson.dumps(choice), usage)


def _indexed(data: Json, position: str) -> Json:
    """A member of a list that grows chunk by chunk. OpenAI's Python SDK joins members of one `index`, and fails where
    there is none; behind the end of its list it adds one. An event's number is always behind that end."""
    return data | {"index": Position.of_entry_id(position).seq}


def _error(status: int, code: str, message: str, position: str) -> bytes:
    place = b"id: %b\n" % position.encode() if position else b""
    return b"%bdata: %b\n\n" % (place, orjson.dumps({"error": error_object(status, code, message)}))


def completion(subject: Completion, fold: Fold, end: Completed) -> Json:
    """The whole answer as one object."""
    message: Json = {"role": "assistant", "content": fold.text or None, "refusal": None, "annotations": []}
    state = fold.state()
    message["refusal"] = state.get("refusal")
    if (reasoning := state.get("reasoning")) is not None:
        message["reasoning_content"] = reasoning
    for part in fold.other_parts:
        if part.type in ("citation", "reasoning"):
            name = "annotations" if part.type == "citation" else "reasoning_details"
            message.setdefault(name, []).append(part.data)
    if calls := fold.tool_calls:
        message["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for _, call in sorted(calls.items())
        ]
    elif message["content"] is None and message["refusal"] is None:
        message["content"] = ""
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": end.finish_reason.value}
    return {
        "id": subject.id,
        "object": "chat.completion",
        "created": subject.created,
        "model": subject.model,
        "choices": [choice],
        "usage": usage_of(fold.usage) if fold.usage else None,
        "system_fingerprint": None,
    }


def usage_of(usage: Usage) -> Json:
    """Tokens as this wire counts them."""
    return {
        "prompt_tokens": usage.input_tokens,
        "completion_tokens": usage.output_tokens,
        "total_tokens": usage.input_tokens + usage.output_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens or 0},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens or 0},
    }
