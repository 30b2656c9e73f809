"""`legato webhooks`: the deliveries that nobody tries any more."""

from __future__ import annotations

from typing import Final
from urllib.parse import quote

import click
import orjson

from cli.client import Client, connection_options, json_object
from cli.exits import EXIT_HELP, harmless

_CALL_SECONDS: Final = 5.0


@click.command(epilog=EXIT_HELP)
@click.argument("deliveries", metavar="[ID]...", nargs=-1)
@click.option("--limit", type=click.IntRange(1, 100), default=20, help="So many are listed, the newest.")
@click.option("--json", "as_json", is_flag=True, help="Print the server's answers.")
@connection_options(_CALL_SECONDS)
def webhooks(deliveries: tuple[str, ...], limit: int, as_json: bool, url: str, timeout: float) -> None:
    """List dead deliveries of webhooks; with their ids, have them tried again."""
    with Client(url, timeout_seconds=timeout) as client:
        if not deliveries:
            answer = json_object(client.call("GET", f"/v1/webhooks/dead?limit={limit}"))
            if as_json:
                click.echo(orjson.dumps(answer))
                return
            for item in answer.get("data", []):
                line = f"{item.get('id')}  {item.get('status')}, {item.get('tries')} tries: {item.get('error')}"
                click.echo(harmless(line))
        for delivery in deliveries:
            path = f"/v1/webhooks/dead/{quote(delivery, safe=':')}/redeliver"
            answer = json_object(client.call("POST", path))
            click.echo(orjson.dumps(answer) if as_json else f"{harmless(delivery)}  {answer.get('status')}")
