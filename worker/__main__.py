"""Builds and runs a worker process: `python -m worker`, and what `legato worker` calls."""

from __future__ import annotations

import asyncio
import gc
import signal

import structlog
import uvloop

from broker.connect import without_secrets
from broker.errors import StoreUnavailable
from broker.settings import Settings
from broker.store import Store
from worker.providers.registry import build_providers
from worker.tools.registry import build_tools
from worker.webhooks import endpoints
from worker.worker import Worker

_log = structlog.get_logger("legato.worker")


async def work(url: str, settings: Settings, *, stop: asyncio.Event) -> None:
    """Run a worker until `stop` is set and everything has ended or is handed over.

    Raises `ValueError` for an unknown provider, `StoreUnusable` for a store that can never do.
    """
    providers = build_providers(
        settings.providers, compatible=settings.openai_compatible, continue_models=settings.continue_models
    )
    tools = build_tools(settings)
    webhooks = endpoints(settings)
    # What start-up made is never looked at again by the cyclic collector: with the SDKs loaded a full collection would
    # stop every generation for a sixth of a second.
    gc.collect()
    gc.freeze()
    store = Store(url, settings)
    try:
        try:
            await store.facts()
        except StoreUnavailable as exc:
            _log.warning("store_unavailable", store=without_secrets(url), error=str(exc))
        _log.info("worker_started", concurrency=settings.worker_concurrency, providers=list(settings.providers))
        worker = Worker(store, providers=providers, tools=tools, settings=settings, webhooks=webhooks)

        async def drain_when_told() -> None:
            await stop.wait()
            worker.drain()

        draining = asyncio.create_task(drain_when_told())
        try:
            await worker.run()
        finally:
            draining.cancel()
    finally:
        for provider in providers.values():
            await provider.aclose()
        await tools.aclose()
        await store.aclose()


async def _main() -> None:
    settings = Settings()
    if settings.redis_url is None:
        raise SystemExit("LEGATO_REDIS_URL is not set: a worker needs the store that the API uses")
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await work(settings.redis_url, settings, stop=stop)


if __name__ == "__main__":
    uvloop.run(_main())
