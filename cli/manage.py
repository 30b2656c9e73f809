"""`legato cancel`, `legato inspect`: what one does with a generation besides reading it."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final
from urllib.parse import quote

import click
import orjson

from cli.client import Client, connection_options, json_object
from cli.exits import EXIT_HELP, harmless

_CALL_SECONDS: Final = 5.0

#: Text that `inspect` shows, from both ends.
_EXCERPT_CHARACTERS: Final = 160


@click.command(epilog=EXIT_HELP)
@click.argument("generation", metavar="ID")
@click.option("--json", "as_json", is_flag=True, help="Print the server's answer.")
@connection_options(_CALL_SECONDS)
def cancel(generation: str, as_json: bool, url: str, timeout: float) -> None:
    """Cancel a generation, and print its status.

    Once this has ended with 0 the cancel is stored; of a generation that had ended before nothing changes.
    """
    with Client(url, timeout_seconds=timeout) as client:
        answer = json_object(client.call("POST", f"/v1/generations/{quote(generation, safe='')}/cancel"))
    click.echo(orjson.dumps(answer) if as_json else str(answer.get("status")))


@click.command(epilog=EXIT_HELP)
@click.argument("generation", metavar="ID")
@click.option("--json", "as_json", is_flag=True, help="Print everything the server knows.")
@connection_options(_CALL_SECONDS)
def inspect(generation: str, as_json: bool, url: str, timeout: float) -> None:
    """Show a generation's status, timings and text. Ends with 0 whatever the status is."""
    with Client(url, timeout_seconds=timeout) as client:
        answer = json_object(client.call("GET", f"/v1/generations/{quote(generation, safe='')}"))
    if as_json:
        click.echo(orjson.dumps(answer))
        return
    for name, value in describe(answer):
        click.echo(f"{name:<9} {harmless(value)}")


def describe(state: dict[str, Any]) -> list[tuple[str, str]]:
    """What `inspect` prints of `GET /v1/generations/{id}`, line by line."""
    created, started, ended = (state.get(name) for name in ("created_at", "started_at", "ended_at"))
    reason = state.get("finish_reason")
    lines = [
        ("id", str(state.get("id"))),
        ("status", f"{state.get('status')} ({reason})" if reason else str(state.get("status"))),
        ("provider", f"{state.get('provider')}, model {state.get('model')}"),
        ("attempt", str(state.get("attempt"))),
        ("position", str(state.get("position"))),
    ]
    if created is not None:
        lines.append(("created", datetime.fromtimestamp(created).astimezone().isoformat(" ", "milliseconds")))
    if created is not None and started is not None:
        lines.append(("waited", _duration(started - created)))
    if ended is not None:
        lines.append(("ran", _duration(ended - (started if started is not None else created))))
    if error := state.get("error"):
        more = ", retryable" if error.get("retryable") else ""
        lines.append(("error", f"{error.get('code')}: {error.get('message')}{more}"))
    if usage := state.get("usage"):
        lines.append(("usage", ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in usage.items())))
    if calls := state.get("tool_calls"):
        lines.append(("tools", "; ".join(f"{call.get('name')}({call.get('arguments')})" for call in calls)))
    text = str(state.get("text") or "")
    lines.append(("text", f"{len(text):,} characters"))
    lines += [("", part) for part in _excerpt(text)]
    return lines


def _duration(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


def _excerpt(text: str) -> list[str]:
    flat = " ".join(text.split())
    if len(flat) <= 2 * _EXCERPT_CHARACTERS:
        return [flat] if flat else []
    return [f"{flat[:_EXCERPT_CHARACTERS]} …", f"… {flat[-_EXCERPT_CHARACTERS:]}"]
