"""`legato dev`, `legato api`, `legato worker`: the long-running commands."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NoReturn

import click
import orjson
import structlog
import uvloop
from pydantic import ValidationError

from api.auth import check_bind
from api.gauges import Gauges
from api.server import bind, serve
from broker.connect import checked
from broker.embedded import EmbeddedServer
from broker.errors import LegatoError
from broker.settings import Settings
from cli.logs import configure
from cli.supervisor import Supervisor
from worker.__main__ import work

_log = structlog.get_logger("legato")

#: Variables of our names that are no settings of a server: the client's, and the tests'.
_OTHER_VARIABLES = {"LEGATO_URL", "LEGATO_TEST_REDIS_URL", "LEGATO_MODEL_RUNS", "LEGATO_BENCH_CACHE"}

#: The lease of `legato dev`, unless the environment says otherwise.
_DEV_LEASE_SECONDS = 3.0
#: And its patience with running generations at the end: the next start goes on with them.
_DEV_DRAIN_SECONDS = 0.5

PORT = click.IntRange(0, 65_535)


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
    listener = _bind("127.0.0.1", port)
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
    listener = _bind(host, port)
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


def supervise(
    count: int,
    command: Callable[[int], Sequence[str]],
    *,
    descriptors: Sequence[int] = (),
    ended: Callable[[int], None] = lambda number: None,
) -> NoReturn:
    """Keep children running until told to stop, then end as they did."""
    sys.exit(asyncio.run(Supervisor(count, command, descriptors=descriptors, ended=ended).run()))


@click.command()
@click.option("--concurrency", type=click.IntRange(1), help="Generations at once; default LEGATO_WORKER_CONCURRENCY.")
@click.option("--processes", type=click.IntRange(1, 256), default=1, show_default=True, help="So many, each with that.")
def worker(concurrency: int | None, processes: int) -> None:
    """Worker processes. Need LEGATO_REDIS_URL. SIGHUP replaces several of them one by one."""
    settings = load_settings()
    if processes > 1:
        configure(settings.log_level)
        check_url(require_url(settings))
        more = [] if concurrency is None else ["--concurrency", str(concurrency)]
        supervise(processes, lambda number: ["worker", *more])
    if concurrency is not None:
        settings = settings.model_copy(update={"worker_concurrency": concurrency})
    configure(settings.log_level)
    url = require_url(settings)
    run_until_told(lambda stop: work(url, settings, stop=stop))


def load_settings() -> Settings:
    """The settings of the environment; a wrong one ends the command and is named."""
    known = {f"LEGATO_{name.upper()}" for name in Settings.model_fields} | _OTHER_VARIABLES
    for name in sorted(set(os.environ) - known):
        if name.startswith("LEGATO_"):
            click.echo(f"legato: {name} is set, and is no setting (docs/settings.md lists them)", err=True)
    try:
        return Settings()
    except ValidationError as exc:
        for item in exc.errors(include_url=False, include_input=False):
            name = "LEGATO_" + "_".join(str(part) for part in item["loc"]).upper()
            click.echo(f"legato: {name if item['loc'] else 'settings'}: {item['msg']}", err=True)
        sys.exit(2)


def require_url(settings: Settings) -> str:
    """The store's URL, which processes of one deployment must share."""
    if settings.redis_url is None:
        fail("LEGATO_REDIS_URL is not set; it names the store that all processes share (`legato dev` needs none)")
    return settings.redis_url


def check_url(url: str) -> None:
    """End the command for a URL that can name no store; nothing is contacted."""
    try:
        checked(url)
    except LegatoError as error:
        fail(str(error))


def run_until_told(work_: Callable[[asyncio.Event], Awaitable[None]]) -> None:
    """Run until SIGTERM or SIGINT, which stop in good order; a second one ends the process at once."""

    async def main() -> None:
        stop = asyncio.Event()

        def told() -> None:
            if stop.is_set():
                os._exit(130)
            click.echo("legato: stopping in good order (once more: at once)", err=True)
            # What is under way says what is still being done; in a process that nobody uses, what has leaked.
            _log.info("stopping", tasks=len(asyncio.all_tasks()))
            stop.set()

        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, told)
        await work_(stop)

    try:
        uvloop.run(main())
    except* (LegatoError, ValueError) as group:
        fail(str(group.exceptions[0]))


def fail(message: str) -> NoReturn:
    """End the command with a message that says what and where."""
    click.echo(f"legato: {message}", err=True)
    sys.exit(2)


def _bind(host: str, port: int) -> socket.socket:
    try:
        return bind(host, port)
    except OSError as exc:
        fail(f"cannot listen on {host}:{port}: {exc.strerror}")


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
