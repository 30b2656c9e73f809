"""What goes over each wire, as files: requests and the exact bodies they become, streams and the exact events.

`requests/<case>.json` are requests of ours; `<wire>/requests/<case>.json` is what that wire makes of one (`sent`, or
the words with which it is `refused`). `<wire>/streams/<case>.json` holds the lines of a `stream`, in the shape in which
the provider sends them, and the `events` read from it. What is made of a case is written by

    python -m tests.providers.golden

so that a change of an adapter shows as a change of these files. A case is added by writing its input and running that.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import asdict
from enum import Enum
from pathlib import Path
from typing import Any, Final

from broker.errors import ProviderError
from broker.events import Delta
from tests.providers.wires import WIRES, Wire, collect, request
from tests.support.wire_provider import Reply, WireProvider
from worker.providers.base import Call, ProviderEvent

HERE: Final = Path(__file__).parent


def request_cases() -> Iterator[tuple[Wire, str]]:
    """Every wire and the name of every request that concerns it."""
    for path in sorted((HERE / "requests").glob("*.json")):
        wires = json.loads(path.read_text()).get("wires")
        yield from ((wire, path.stem) for wire in WIRES if wires is None or wire.name in wires)


def stream_cases() -> Iterator[tuple[Wire, str]]:
    """Every wire and the name of each of its streams."""
    for wire in WIRES:
        yield from ((wire, path.stem) for path in sorted((HERE / wire.name / "streams").glob("*.json")))


def made_of_request(wire: Wire, case: str) -> tuple[Path, str]:
    """The file of a request and what should be in it."""
    given = json.loads((HERE / "requests" / f"{case}.json").read_text())
    made = asyncio.run(_sent(wire, given))
    return HERE / wire.name / "requests" / f"{case}.json", _text(made)


def made_of_stream(wire: Wire, case: str, *, piece_bytes: int = 0) -> tuple[Path, str]:
    """The file of a stream and what should be in it. The stream comes in HTTP chunks of `piece_bytes`; 0: in one."""
    path = HERE / wire.name / "streams" / f"{case}.json"
    given = json.loads(path.read_text())
    stream = "\n".join(given["stream"]).encode()
    events = asyncio.run(_read(wire, stream, piece_bytes))
    return path, _text({name: given[name] for name in ("about", "stream")} | {"events": events})


async def _sent(wire: Wire, given: dict[str, Any]) -> dict[str, Any]:
    async with WireProvider() as server, wire.connect(server) as provider:
        server.script(Reply.events(wire.whole("ok")))
        call = Call(request(**given["request"]), partial=given.get("partial", ""))
        _, error = await collect(provider.stream(call))
    if error is not None:
        return {"refused": error.message}
    (received,) = server.requests
    body = json.loads(json.dumps(received.body, sort_keys=True))  # their order is the SDK's affair
    return {"sent": {"method": received.method, "path": received.path, "body": body}}


async def _read(wire: Wire, stream: bytes, piece_bytes: int) -> list[Any]:
    async with WireProvider() as server, wire.connect(server) as provider:
        server.script(Reply.events(stream, piece_bytes=piece_bytes))
        events, error = await collect(provider.stream(Call(request())))
    return [_shown(event) for event in events] + ([_shown(error)] if error else [])


def _shown(event: ProviderEvent | ProviderError) -> dict[str, Any]:
    """An event by its name, without the fields that are not set."""
    if isinstance(event, ProviderError):
        return {"ProviderError": {"code": event.code, "retryable": event.retryable, "message": event.message}}
    fields = event._asdict() if isinstance(event, Delta) else asdict(event)
    return {type(event).__name__: {name: _plain(item) for name, item in fields.items() if item is not None}}


def _plain(value: Any) -> Any:
    match value:
        case Enum():
            return value.value
        case dict():
            return {name: _plain(item) for name, item in value.items()}
        case list():
            return [_plain(item) for item in value]
        case _:
            return value


def _text(made: dict[str, Any]) -> str:
    return json.dumps(made, indent=1, ensure_ascii=False) + "\n"
