"""`legato worker`: processes that take jobs and generate."""

from __future__ import annotations

import click

from cli.logs import configure
from cli.serve import check_url, load_settings, require_url, run_until_told, supervise
from worker.__main__ import work


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
