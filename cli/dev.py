"""`legato dev`: a whole deployment in one process."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import click
import orjson

from api.server import serve
from broker.embedded import EmbeddedServer
from broker.errors import LegatoError
from cli.api import PORT, listen
from cli.logs import configure
from cli.serve import fail, load_settings, run_until_told
from worker.__main__ import work

#: The lease of `legato dev`, unless the environment says otherwise.
_DEV_LEASE_SECONDS: Final = 3.0
#: And its patience with running generations at the end: the next start goes on with them.
_DEV_DRAIN_SECONDS: Final = 0.5


@click.command()
@click.option("--port", type=PORT, default=8700, show_default=True, help="Port on 127.0.0.1; 0 picks a free one.")
@click.option(
    "--data",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(".legato"),
    show_default=True,
    help="Directory of the embedded server's append-only file.",
)
@click.option("--json", "as_json", is_flag=True, help='Say where it is as {"url", "providers"}.')
def dev(port: int, data: Path, as_json: bool) -> None:
    """API, worker and an embedded server in one command. Uses LEGATO_REDIS_URL instead of the server if it is set."""
    settings = load_settings()
    if "sim" not in settings.providers:
        settings = settings.model_copy(update={"providers": ("sim", *settings.providers)})
    if "lease_seconds" not in settings.model_fields_set:
        # One process that is restarted often: what it held should not wait long for it.
        settings = settings.model_copy(update={"lease_seconds": _DEV_LEASE_SECONDS})
    if "drain_seconds" not in settings.model_fields_set:
        settings = settings.model_copy(update={"drain_seconds": _DEV_DRAIN_SECONDS})
    configure(settings.log_level)
    listener = listen("127.0.0.1", port)
    with _embedded(settings.redis_url, data) as url:
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"
        if as_json:
            click.echo(orjson.dumps({"url": address, "providers": settings.providers}))
        else:
            click.echo(f"Legato is at {address}  (providers: {', '.join(settings.providers)}; Ctrl-C stops it)")

        async def both(stop: asyncio.Event) -> None:
            async with asyncio.TaskGroup() as group:
                group.create_task(serve(url, settings, listener=listener, stop=stop))
                group.create_task(work(url, settings, stop=stop))

        run_until_told(both)


@contextmanager
def _embedded(url: str | None, data: Path) -> Iterator[str]:
    """The URL that is set, or that of an embedded server that lives as long as the block."""
    if url is not None:
        yield url
        return
    try:
        server = EmbeddedServer.start(data)
    except LegatoError as error:
        fail(str(error))
    with server:
        yield server.url
