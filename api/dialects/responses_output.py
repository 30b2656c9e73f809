"""The output of a response while it is made: its items in order, and what of the open ones is not in them yet. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field

from api.dialects.responses_numbers import Blocks
from broker.events import Json


@dataclass(slots=True)
class Message:
    """An open message."""

    item: Json
    text: list[str] = field(default_factory=list)  # of the open part
    part: Json | None = None


@dataclass(slots=True)
class Reasoning:
    """Open reasoning."""

    item: Json
    text: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Call:
    """A call that is not whole yet."""

    arguments: list[str] = field(default_factory=list)
    id: str = ""
    name: str = ""
    item: Json | None = None  # once it was shown, which needs id and name


class Output:
    """The items of the response whose ids hold `key`; where each begins and is done, `blocks` has an event."""

    def __init__(self, key: str, blocks: Blocks) -> None:
        self.items: list[Json] = []
        self._key = key
        self._blocks = blocks

    def open(self, prefix: str, item: Json) -> Json:
        """Begin an item behind the others; the item, with its id."""
        index = len(self.items)
        item = {"id": f"{prefix}_{self._key}_{index}"} | item
        self.items.append(item)
        self._blocks.emit("response.output_item.added", {"output_index": index, "item": item})
        return item

    def done(self, item: Json) -> None:
        """An item is as it stays."""
        self._blocks.emit("response.output_item.done", {"output_index": place_of(item)["output_index"], "item": item})


def place_of(item: Json) -> Json:
    """What every event says that is about an item."""
    return {"item_id": item["id"], "output_index": int(item["id"].rpartition("_")[2])}
