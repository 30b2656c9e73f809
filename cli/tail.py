"""`legato tail`, and what it prints.

Text mode writes the answer's plain text to stdout, as UTF-8, and nothing else; what else happens is told on stderr.
Where the generation takes text back (`reset`, `snapshot`), stdout follows the rule of `cli.shown`: what stays the same
is not written again; where the new text differs, a line on stderr says so and it is written anew from its beginning, on
a new line. Who needs exactly the final text, whatever happened on the way, takes `--whole`.
"""

from __future__ import annotations

import sys
from contextlib import closing
from typing import Any, Final, Protocol
from urllib.parse import quote

import click
import orjson

from broker.errors import InvalidPosition
from broker.position import Position
from cli.client import Client, connection_options, json_object
from cli.eventsource import Frame
from cli.exits import EXIT_HELP, Exit, Failure, harmless, note
from cli.follow import Follower
from cli.shown import Shown, Write

#: How a generation's status, or its terminal event, ends a command that followed it.
_EXIT_OF: Final = {"completed": Exit.COMPLETED, "failed": Exit.FAILED, "cancelled": Exit.CANCELLED}

_SNAPSHOT: Final = "snapshot"

#: How long to go on after a cut, by default.
FOLLOW_SECONDS: Final = 60.0


def check_from(_: click.Context, __: click.Parameter, value: str | None) -> str | None:
    """`--from` is a position, or `snapshot`."""
    if value is None or value == _SNAPSHOT:
        return value
    try:
        return str(Position.parse(value))
    except InvalidPosition as exc:
        raise click.BadParameter(f"{exc}; or {_SNAPSHOT}") from None


@click.command(epilog=EXIT_HELP)
@click.argument("generation", metavar="ID")
@click.option(
    "--from",
    "start",
    metavar="POSITION",
    callback=check_from,
    help="Begin behind this position (an id of --json); `snapshot`: with the state so far as one event.",
)
@click.option("--whole", is_flag=True, help="Print nothing before the end, then exactly the final text, once.")
@click.option("--json", "as_json", is_flag=True, help='Print every event, {"id", "event", "data"} a line, `open` too.')
@connection_options(FOLLOW_SECONDS)
def tail(generation: str, start: str | None, whole: bool, as_json: bool, url: str, timeout: float) -> None:
    """Print a generation's text as it comes, until it ends.

    Comes back by itself after any cut and goes on exactly where it was. Text goes to stdout, everything else to
    stderr. When the generation begins its text anew, what stays the same is not printed again; where it differs,
    stderr says so and the new text follows from its beginning, on a new line.
    """
    if whole and as_json:
        raise click.UsageError("--whole and --json exclude one another")
    with Client(url, timeout_seconds=timeout) as client:
        code = follow(client, generation, start=start, whole=whole, as_json=as_json)
    raise click.exceptions.Exit(code)


def follow(client: Client, generation: str, *, start: str | None, whole: bool, as_json: bool) -> Exit:
    """Print until the end, and say how it ended. Ctrl-C: 130, and how to go on."""
    snapshot = start == _SNAPSHOT
    follower = Follower(client, generation, cursor=None if snapshot else start, snapshot=snapshot)
    printer: Printer
    if as_json:
        printer = JsonPrinter()
    else:
        printer = TextPrinter(whole=whole, from_start=start in (None, "0-0", _SNAPSHOT), snapshot_asked=snapshot)
    code: Exit | None = None
    printed = follower.cursor
    try:
        with closing(follower.batches()) as batches:
            for batch in batches:
                for frame in batch:
                    printer.take(frame)
                printer.flush()
                printed = next((frame.id for frame in reversed(batch) if frame.id is not None), printed)
                code = _EXIT_OF.get(batch[-1].event)
    except KeyboardInterrupt:
        printer.interrupted()
        place = f" --from {printed}" if printed else ""
        note(f"the generation goes on; to read on: legato tail {generation}{place} --url {client.url}")
        return Exit.INTERRUPTED
    if code is None:  # there was nothing behind the cursor
        status = json_object(client.call("GET", f"/v1/generations/{quote(generation, safe='')}")).get("status")
        code = _EXIT_OF.get(str(status))
        if code is None:
            raise Failure(Exit.UNAVAILABLE, f"{client.url} says that there is nothing more, and that it is {status}")
    return code


class Printer(Protocol):
    """One way to print events."""

    def take(self, frame: Frame) -> None:
        """Note the next event."""
        ...

    def flush(self) -> None:
        """Write what was noted."""
        ...

    def interrupted(self) -> None:
        """Nothing more will come, though the generation has not ended."""
        ...


class JsonPrinter:
    """Every event, a line each."""

    def take(self, frame: Frame) -> None:
        line = orjson.dumps({"id": frame.id, "event": frame.event, "data": orjson.loads(frame.raw)})
        sys.stdout.buffer.write(line + b"\n")

    def flush(self) -> None:
        sys.stdout.buffer.flush()

    def interrupted(self) -> None:
        self.flush()


class TextPrinter:
    """The plain text to stdout, everything else to stderr."""

    def __init__(self, *, whole: bool, from_start: bool, snapshot_asked: bool) -> None:
        self._held: list[str] | None = [] if whole else None
        self._shown = Shown(whole=from_start)
        self._snapshot_asked = snapshot_asked
        self._terminal = sys.stdout.isatty()
        self._shared = self._terminal and sys.stderr.isatty()
        self._outgoing: list[str] = []
        self._at_line_start = True
        self._refusal: list[str] = []

    def take(self, frame: Frame) -> None:
        data = frame.data
        match frame.event:
            case "delta":
                self._delta(str(data.get("text", "")), str(data.get("kind", "text")))
            case "reset":
                self._note(
                    f"attempt {data.get('attempt')} begins the text anew ({data.get('reason')}); "
                    "what stays the same is not printed again"
                )
                self._refusal.clear()
                self._clear()
            case "snapshot":
                self._snapshot(data)
            case "status" if data.get("phase") == "retrying":
                self._note(
                    f"{data.get('code')}: {data.get('message')}; attempt {data.get('attempt')} "
                    f"in {float(data.get('delay_ms') or 0) / 1000:.1f} s"
                )
            case "tool_call_done":
                self._note(f"tool call {data.get('name')}({data.get('arguments')})")
            case "tool_result":
                self._note(f"tool result of {data.get('name')}: {data.get('content')}")
            case "completed" | "failed" | "cancelled":
                self._end(frame.event, data)

    def flush(self) -> None:
        if self._outgoing:
            text = "".join(self._outgoing)
            self._outgoing.clear()
            sys.stdout.buffer.write((harmless(text) if self._terminal else text).encode(errors="replace"))
            self._at_line_start = text.endswith("\n")
        sys.stdout.buffer.flush()

    def interrupted(self) -> None:
        self._last_line_end()

    def _delta(self, text: str, kind: str) -> None:
        if kind == "text":
            if self._held is None:
                self._write(self._shown.add(text))
            else:
                self._held.append(text)
        elif kind == "refusal":
            self._refusal.append(text)

    def _snapshot(self, data: dict[str, Any]) -> None:
        text = str(data.get("text", ""))
        if not self._snapshot_asked:
            self._note("the server does not hold what was read before; here is the text as it is now")
        self._snapshot_asked = False
        self._refusal = [str(data.get("refusal", ""))]
        if self._held is None:
            self._write(self._shown.replace(text))
        else:
            self._held = [text]

    def _clear(self) -> None:
        if self._held is None:
            self._write(self._shown.clear())
        else:
            self._held.clear()

    def _end(self, event: str, data: dict[str, Any]) -> None:
        if self._held is None:
            self._write(self._shown.end())
        else:
            self._outgoing += self._held
        self._last_line_end()
        if refusal := "".join(self._refusal):
            self._note(f"the model refused: {refusal}")
        match event:
            case "failed":
                more = ", the text is partial" if data.get("partial") else ""
                self._note(f"failed: {data.get('code')}: {data.get('message')}{more}")
            case "cancelled":
                self._note(f"cancelled ({data.get('reason')})")
            case _ if (reason := data.get("finish_reason")) != "stop":
                self._note(f"completed ({reason})")

    def _write(self, what: Write | None) -> None:
        if what is None:
            return
        if what.anew:
            self.flush()
            if not self._at_line_start:
                self._outgoing.append("\n")
                self.flush()
            self._note("what was printed so far is void; the text follows anew")
        self._outgoing.append(what.text)

    def _last_line_end(self) -> None:
        self.flush()
        if self._terminal and not self._at_line_start:
            self._outgoing.append("\n")
            self.flush()

    def _note(self, message: str) -> None:
        """On stderr, on a line of its own where stdout is the same terminal."""
        self.flush()
        if self._shared and not self._at_line_start:
            click.echo("", err=True)
            self._at_line_start = True
        note(message)
