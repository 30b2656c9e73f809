"""The least that a client of the AI SDK does with chunks: `processUIMessageStream` of version 7, as far as we send."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

Chunk = dict[str, Any]


@dataclass(slots=True)
class UiMessage:
    """A message as it is built. Fails where the real client would throw."""

    id: str | None = None
    parts: list[dict[str, Any]] = field(default_factory=list)
    ended: Chunk | None = None
    error: str | None = None
    aborted: bool = False
    _active: dict[str, dict[str, Any]] = field(default_factory=dict)
    _inputs: dict[str, str] = field(default_factory=dict)

    def take(self, chunk: Chunk) -> None:
        assert self.ended is None, f"{chunk} behind finish"
        kind = chunk["type"]
        match kind:
            case "start":
                self.id = chunk["messageId"]
            case "start-step":
                self.parts.append({"type": "step-start"})
            case "finish-step":
                assert not self._active, "a part was left open"
            case "reset-step":
                step = max((i for i, part in enumerate(self.parts) if part["type"] == "step-start"), default=-1)
                del self.parts[step + 1 :]
                self._active, self._inputs = {}, {}
            case "text-start" | "reasoning-start":
                part = {"type": kind.removesuffix("-start"), "text": ""}
                self._active[chunk["id"]] = part
                self.parts.append(part)
            case "text-delta" | "reasoning-delta":
                self._active[chunk["id"]]["text"] += chunk["delta"]
            case "text-end" | "reasoning-end":
                ended = self._active.pop(chunk["id"])
                if "providerMetadata" in chunk:
                    ended["metadata"] = chunk["providerMetadata"]
            case "tool-input-start":
                self._inputs[chunk["toolCallId"]] = ""
                self._tool(chunk["toolCallId"], name=chunk["toolName"], state="input-streaming")
            case "tool-input-delta":
                self._inputs[chunk["toolCallId"]] += chunk["inputTextDelta"]
            case "tool-input-available":
                self._tool(chunk["toolCallId"], name=chunk["toolName"], state="input-available", input=chunk["input"])
            case "tool-output-available":
                self._known(chunk["toolCallId"]).update(state="output-available", output=chunk["output"])
            case "tool-output-error":
                self._known(chunk["toolCallId"]).update(state="output-error", errorText=chunk["errorText"])
            case "source-url":
                self.parts.append({"type": "source-url", "url": chunk["url"]})
            case "error":
                self.error = chunk["errorText"]
            case "abort":
                self.aborted = True
            case "finish":
                self.ended = chunk
            case _:
                raise AssertionError(f"the client knows no {kind}")

    @property
    def text(self) -> str:
        return "".join(part["text"] for part in self.parts if part["type"] == "text")

    @property
    def reasoning(self) -> str:
        return "".join(part["text"] for part in self.parts if part["type"] == "reasoning")

    @property
    def tools(self) -> list[dict[str, Any]]:
        return [part for part in self.parts if part["type"] == "tool"]

    def _tool(self, call: str, **fields: Any) -> None:
        known = next((part for part in self.tools if part["id"] == call), None)
        if known is None:
            self.parts.append({"type": "tool", "id": call, **fields})
        else:
            known.update(fields)

    def _known(self, call: str) -> dict[str, Any]:
        return next(part for part in self.tools if part["id"] == call)


def built(chunks: list[Chunk]) -> UiMessage:
    """The message that these chunks make."""
    message = UiMessage()
    for chunk in chunks:
        message.take(chunk)
    return message
