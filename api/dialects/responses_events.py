"""A log as the event stream of OpenAI's Responses API. Pure: one response is a function of its request and its log.

Every event is made from one entry, however entries came together, so event 57 is the same bytes at every replay and
`starting_after=57` means the same place for ever. One delta of the log is one event; nothing is merged here.

Deliberate oddities:
- A half-way function call is not said to be done when the answer ends: nobody should run it.
- A cancelled answer ends with `response.incomplete` whose `status` is `cancelled`: there is no `response.cancelled`.
- `created_at` is all the stream knows of times. What the record adds later would make replays differ.
"""

from __future__ import annotations

from base64 import urlsafe_b64encode
from collections.abc import Iterable
from typing import Final

import orjson

from api.dialects.encoder import CannotTakeBack
from api.dialects.responses_numbers import START, Blocks, Origin
from api.dialects.responses_object import Subject, annotation_of, error_of, usage_of
from api.dialects.responses_output import Call, Message, Output, Reasoning, place_of
from broker.events import (
    DELTA_FIELDS,
    Cancelled,
    Completed,
    DeltaKind,
    Entry,
    Failed,
    FinishReason,
    Json,
    Part,
    Reset,
    Started,
    ToolCall,
    ToolCallDone,
    ToolResult,
    Usage,
    UsageReport,
    decode,
)

#: What a reasoning item's `encrypted_content` begins with, where it holds a block of any provider.
SEALED: Final = "legato:"

_INCOMPLETE: Final = {FinishReason.LENGTH: "max_output_tokens", FinishReason.CONTENT_FILTER: "content_filter"}


class ResponseStream:
    """The events of one response, entry by entry, as blocks of SSE.

    With `after`, events up to that number are counted and not given. With `mute` none are, and a `reset` begins anew:
    for who wants `origin` or `response` only.
    """

    def __init__(
        self, subject: Subject, *, origin: Origin = START, after: int | None = None, mute: bool = False
    ) -> None:
        self._subject = subject
        self._mute = mute
        self._blocks = Blocks(after=after, mute=mute)
        self._anew(origin)

    def _anew(self, origin: Origin) -> None:
        self.origin = origin
        self._blocks.start(origin)
        self._begun = False
        self._running = False
        self._output = Output(self._subject.key, self._blocks)
        self._message: Message | None = None
        self._reasoning: Reasoning | None = None
        self._calls: dict[int, Call] = {}
        self._usage: Usage | None = None
        self._end: Completed | Failed | Cancelled | None = None

    # --- what goes out ---

    def begin(self) -> bytes:
        """What stands before the first entry."""
        if self._begun:
            return b""
        self._begun = True
        background = self._subject.background
        self._lifecycle("response.created", "queued" if background else "in_progress")
        if background:
            self._lifecycle("response.queued", "queued")
        return self._blocks.taken()

    def encode(self, entries: Iterable[Entry]) -> bytes:
        """The events of the next entries. Raises `CannotTakeBack` where what was given is not the answer any more."""
        for entry in entries:
            self._add(entry)
        return self._blocks.taken()

    def deleted(self) -> bytes:
        """The end of a response that is erased while it is read."""
        self._finish("response.incomplete", "cancelled", "incomplete")
        return self._blocks.taken()

    @property
    def number(self) -> int:
        """Of the next event."""
        return self._blocks.number

    @property
    def ended(self) -> bool:
        """Whether the log has its terminal event."""
        return self._end is not None

    def gives(self, number: int) -> bool:
        """Whether an event of that number was, or will be, given behind `origin`."""
        return self._end is None or number < self.number

    def response(self, *, cancelling: bool = False, completed_at: float | None = None) -> Json:
        """The response object as of now."""
        match self._end:
            case None:
                status = "in_progress" if self._running or not self._subject.background else "queued"
                whole = self._object("cancelled" if cancelling else status)
            case Completed() | Failed() | Cancelled():
                whole = self._object(self._status())
        return whole | {"completed_at": completed_at}

    # --- entries ---

    def _add(self, entry: Entry) -> None:
        epoch = self._blocks.stand_at(entry.position)
        if (kind := DELTA_FIELDS.get(entry.field)) is not None:
            self._text(kind, entry.payload.decode())
            return
        event = decode(entry)
        match event:
            case Reset():
                if not self._mute:
                    raise CannotTakeBack
                self._anew(Origin(position=entry.position, number=self.number, epoch=epoch))
                self.begin()
            case Started() if not self._running:
                self._running = True
                self._lifecycle("response.in_progress", "in_progress")
            case ToolCall(index=index, arguments=arguments, id=call_id, name=name):
                self._fragment(index, arguments, call_id, name)
            case ToolCallDone(index=index, id=call_id, name=name, arguments=arguments):
                self._call_done(index, call_id, name, arguments)
            case Part(type="reasoning", data=data):
                self._reasoning_block(data)
            case Part(type="citation", data=data):
                self._citation(data)
            case ToolResult(id=call_id, content=content):
                self._result(call_id, content)
            case UsageReport(usage=usage):
                self._usage = usage
            case Completed() | Failed() | Cancelled():
                self._ended(event)
            case _:  # status, a later `started`, parts of other types: nothing this wire has words for
                pass

    def _text(self, kind: DeltaKind, text: str) -> None:
        if kind is DeltaKind.REASONING:
            self._reasoning_text(text)
            return
        message = self._message
        name = "text" if kind is DeltaKind.TEXT else "refusal"
        if message is None or message.part is None or name not in message.part:
            message = self._open_part(name)
        message.text.append(text)
        self._blocks.delta(text)

    def _open_part(self, name: str) -> Message:
        message = self._message
        if message is None:
            self._close()
            item = self._output.open(
                "msg", {"type": "message", "role": "assistant", "content": [], "status": "in_progress"}
            )
            message = self._message = Message(item)
        self._close_part(message)
        content = message.item["content"]
        place = place_of(message.item) | {"content_index": len(content)}
        if name == "text":
            message.part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
            self._blocks.open_delta("response.output_text.delta", place | {"logprobs": []})
        else:
            message.part = {"type": "refusal", "refusal": ""}
            self._blocks.open_delta("response.refusal.delta", place)
        self._blocks.emit("response.content_part.added", place | {"part": message.part})
        content.append(message.part)
        return message

    def _close_part(self, message: Message) -> None:
        part = message.part
        if part is None:
            return
        place = place_of(message.item) | {"content_index": len(message.item["content"]) - 1}
        text = "".join(message.text)
        if "text" in part:
            part["text"] = text
            self._blocks.emit("response.output_text.done", place | {"text": text, "logprobs": []})
        else:
            part["refusal"] = text
            self._blocks.emit("response.refusal.done", place | {"refusal": text})
        self._blocks.emit("response.content_part.done", place | {"part": part})
        message.part, message.text = None, []

    def _reasoning_text(self, text: str) -> None:
        reasoning = self._reasoning
        if reasoning is None:
            reasoning = self._open_reasoning()
            place = place_of(reasoning.item) | {"summary_index": 0}
            part = {"type": "summary_text", "text": ""}
            self._blocks.emit("response.reasoning_summary_part.added", place | {"part": part})
            self._blocks.open_delta("response.reasoning_summary_text.delta", place)
        reasoning.text.append(text)
        self._blocks.delta(text)

    def _open_reasoning(self) -> Reasoning:
        self._close()
        item = self._output.open("rs", {"type": "reasoning", "summary": [], "status": "in_progress"})
        self._reasoning = Reasoning(item)
        return self._reasoning

    def _reasoning_block(self, data: Json) -> None:
        """A block that the provider wants back: it ends the reasoning that was shown, or is one of its own."""
        reasoning = self._reasoning or self._open_reasoning()
        reasoning.item["encrypted_content"] = SEALED + urlsafe_b64encode(orjson.dumps(data)).decode()
        self._close()

    def _citation(self, data: Json) -> None:
        message = self._message
        if message is None or message.part is None or "text" not in message.part:
            message = self._open_part("text")
        part = message.part
        annotation = annotation_of(data, len("".join(message.text)))
        if part is None or annotation is None:
            return
        place = place_of(message.item) | {"content_index": len(message.item["content"]) - 1}
        number = {"annotation_index": len(part["annotations"]), "annotation": annotation}
        part["annotations"].append(annotation)
        self._blocks.emit("response.output_text.annotation.added", place | number)

    # --- calls ---

    def _fragment(self, index: int, arguments: str, call_id: str | None, name: str | None) -> None:
        call = self._calls.setdefault(index, Call())
        call.id, call.name = call.id or call_id or "", call.name or name or ""
        call.arguments.append(arguments)
        if call.item is not None:
            self._arguments(call.item, arguments)
        elif call.id and call.name:
            self._arguments(self._open_call(call), "".join(call.arguments))

    def _call_done(self, index: int, call_id: str, name: str, arguments: str) -> None:
        call = self._calls.pop(index, None) or Call()
        item = call.item
        if item is None:
            call.id, call.name = call_id, name
            item = self._open_call(call)
            self._arguments(item, arguments)
        item |= {"arguments": arguments, "status": "completed"}
        said = {"name": item["name"], "arguments": arguments}
        self._blocks.emit("response.function_call_arguments.done", place_of(item) | said)
        self._output.done(item)

    def _open_call(self, call: Call) -> Json:
        self._close()
        shown = {"type": "function_call", "call_id": call.id, "name": call.name, "arguments": ""}
        call.item = self._output.open("fc", shown | {"status": "in_progress"})
        return call.item

    def _arguments(self, item: Json, text: str) -> None:
        if text:
            self._blocks.emit("response.function_call_arguments.delta", place_of(item) | {"delta": text})

    def _result(self, call_id: str, content: str) -> None:
        """What a tool gave back that ran here, between two turns."""
        self._close()
        item = {"type": "function_call_output", "call_id": call_id, "output": content, "status": "completed"}
        self._output.done(self._output.open("fco", item))

    # --- items ---

    def _close(self, status: str = "completed") -> None:
        """The open message or reasoning is over. Calls end by themselves."""
        if (message := self._message) is not None:
            self._close_part(message)
            message.item["status"] = status
            self._output.done(message.item)
            self._message = None
        if (reasoning := self._reasoning) is not None:
            if reasoning.text:
                part = {"type": "summary_text", "text": "".join(reasoning.text)}
                place = place_of(reasoning.item) | {"summary_index": 0}
                self._blocks.emit("response.reasoning_summary_text.done", place | {"text": part["text"]})
                self._blocks.emit("response.reasoning_summary_part.done", place | {"part": part})
                reasoning.item["summary"] = [part]
            reasoning.item["status"] = status
            self._output.done(reasoning.item)
            self._reasoning = None

    # --- the whole ---

    def _ended(self, end: Completed | Failed | Cancelled) -> None:
        self._end = end
        match end:
            case Completed(finish_reason=reason, usage=usage):
                self._usage = usage or self._usage
                whole = reason not in _INCOMPLETE
                kind = "response.completed" if whole else "response.incomplete"
                self._finish(kind, self._status(), "completed" if whole else "incomplete")
            case Failed():
                self._finish("response.failed", "failed", "incomplete")
            case Cancelled(usage=usage):
                self._usage = usage or self._usage
                self._finish("response.incomplete", "cancelled", "incomplete")

    def _status(self) -> str:
        match self._end:
            case Completed(finish_reason=reason):
                return "incomplete" if reason in _INCOMPLETE else "completed"
            case Failed():
                return "failed"
            case _:
                return "cancelled"

    def _finish(self, kind: str, status: str, items: str) -> None:
        self._close(items)
        for call in self._calls.values():
            if call.item is not None:
                call.item |= {"arguments": "".join(call.arguments), "status": "incomplete"}
        self._lifecycle(kind, status)

    def _lifecycle(self, kind: str, status: str) -> None:
        self._blocks.emit(kind, {"response": self._object(status)})

    def _object(self, status: str) -> Json:
        error = details = None
        match self._end:
            case Completed(finish_reason=reason) if reason in _INCOMPLETE:
                details = {"reason": _INCOMPLETE[reason]}
            case Failed(code=code, message=message):
                error = error_of(code, message)
            case _:
                pass
        return {
            "id": self._subject.id,
            "object": "response",
            "created_at": self._subject.created_at,
            "status": status,
            "background": self._subject.background,
            "completed_at": None,
            "error": error,
            "incomplete_details": details,
            **self._subject.shown,
            "output": self._output_so_far(),
            "usage": usage_of(self._usage),
        }

    def _output_so_far(self) -> list[Json]:
        """The items, with what was said of the open ones."""
        if self._message is not None and (part := self._message.part) is not None:
            part["text" if "text" in part else "refusal"] = "".join(self._message.text)
        if self._reasoning is not None and self._reasoning.text:
            self._reasoning.item["summary"] = [{"type": "summary_text", "text": "".join(self._reasoning.text)}]
        for call in self._calls.values():
            if call.item is not None:
                call.item["arguments"] = "".join(call.arguments)
        return self._output.items
