"""What `legato dev`, `legato api` and `legato worker` share: settings, stopping in good order, several processes.

Each of the three has a file of its own, so that a worker does not load the web framework, and an API not the providers.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, NoReturn

import click
import structlog
import uvloop
from pydantic import ValidationError

from broker.connect import checked
from broker.errors import LegatoError
from broker.settings import Settings
from cli.supervisor import Supervisor

_log = structlog.get_logger("legato")

#: Variables of our names that are no settings of a server: the client's, and the tests'.
_OTHER_VARIABLES: Final = {"LEGATO_URL", "LEGATO_TEST_REDIS_URL", "LEGATO_MODEL_RUNS", "LEGATO_BENCH_CACHE"}


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


def supervise(
    count: int,
    command: Callable[[int], Sequence[str]],
    *,
    descriptors: Sequence[int] = (),
    ended: Callable[[int], None] = lambda number: None,
) -> NoReturn:
    """Keep children running until told to stop, then end as they did."""
    sys.exit(asyncio.run(Supervisor(count, command, descriptors=descriptors, ended=ended).run()))
