"""`legato api`: processes that answer HTTP on one port."""

from __future__ import annotations

import socket
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final, NoReturn

import click
import orjson

from api.auth import check_bind
from api.gauges import Gauges
from api.server import bind, serve
from broker.errors import LegatoError
from broker.settings import Settings
from cli.logs import configure
from cli.serve import check_url, fail, load_settings, require_url, run_until_told, supervise

PORT: Final = click.IntRange(0, 65_535)


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=PORT, default=8700, show_default=True, help="Port; 0 picks a free one.")
@click.option(
    "--workers", type=click.IntRange(1, 256), default=1, show_default=True, help="Processes that share the port."
)
@click.option("--json", "as_json", is_flag=True, help='Say on stdout where it is, as {"url"}.')
@click.option("--fd", type=int, hidden=True, help="Listen on this descriptor.")
@click.option("--gauges", type=(click.Path(path_type=Path), int, int), hidden=True, help="File, number, how many.")
def api(
    host: str, port: int, workers: int, as_json: bool, fd: int | None, gauges: tuple[Path, int, int] | None
) -> None:
    """API processes on one port. Needs LEGATO_REDIS_URL. SIGHUP replaces several of them one by one."""
    settings = load_settings()
    configure(settings.log_level)
    url = require_url(settings)
    if fd is not None and gauges is not None:
        _serve_shared(url, settings, fd, gauges)
        return
    try:
        check_bind(host)
    except LegatoError as error:
        fail(str(error))
    check_url(url)
    listener = listen(host, port)
    address = f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}"
    if as_json:
        click.echo(orjson.dumps({"url": address}))
    else:
        click.echo(f"Legato API at {address}, open to this machine only", err=True)
    if workers > 1:
        _share(listener, workers)
    else:
        run_until_told(lambda stop: serve(url, settings, listener=listener, stop=stop))


def _share(listener: socket.socket, workers: int) -> NoReturn:
    """Have so many processes serve on a socket, until told to stop."""
    listening = listener.fileno()
    with TemporaryDirectory(prefix="legato-gauges-") as folder:
        path, places = Path(folder) / "gauges", 2 * workers
        Gauges.create(path, places)

        def command(number: int) -> list[str]:
            return ["api", "--fd", str(listening), "--gauges", str(path), str(number), str(places)]

        gauges = Gauges(path, places=places)
        supervise(workers, command, descriptors=[listening], ended=gauges.clear)


def _serve_shared(url: str, settings: Settings, fd: int, shared: tuple[Path, int, int]) -> None:
    """What a child of `_share` does."""
    path, place, places = shared
    gauges = Gauges(path, place=place, places=places)
    listener = socket.socket(fileno=fd)
    run_until_told(lambda stop: serve(url, settings, listener=listener, stop=stop, gauges=gauges))


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens there; an address that cannot be had ends the command and is named."""
    try:
        return bind(host, port)
    except OSError as exc:
        fail(f"cannot listen on {host}:{port}: {exc.strerror}")
