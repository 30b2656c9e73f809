"""Tells endpoints how generations ended: takes what is due, signs it, posts it, and notes how that went.

An endpoint decides by its status alone: 2xx is taken, 410 is never to be asked again, anything else is tried later. No
redirect is followed and no body is read; the address is checked as that of an HTTP tool is (`worker.tools.guard`). What
is sent is derived from the record at every try, so the same body comes every time, but for a text that has expired.
"""

from __future__ import annotations

import asyncio
import os
import random
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

import httpx2
import orjson
import structlog

from broker.declared import WebhookEndpoint
from broker.errors import GenerationExpired, GenerationUnknown, StoreError
from broker.events import Json
from broker.generation import Record
from broker.log import Log
from broker.records import Records
from broker.settings import Settings
from broker.totals import Total, Totals
from broker.webhooks import DELIVERED, is_dead
from worker.signature import headers, secret_key
from worker.tools.guard import AddressRefused, GuardedTransport

_log = structlog.get_logger("legato.webhooks")

#: Longest sleep without a look at what is due: another worker may have left something.
_IDLE_SECONDS: Final = 1.0

#: Deliveries of one endpoint that a worker makes at once.
_AT_ONCE: Final = 8

#: Beyond the time-out of a delivery: what noting it may take.
_MARGIN_SECONDS: Final = 15.0

_CONNECT_SECONDS: Final = 5.0
_GONE: Final = 410


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One endpoint, with the keys that it is signed with."""

    name: str
    declared: WebhookEndpoint
    keys: tuple[bytes, ...]
    verify: ssl.SSLContext


def endpoints(settings: Settings, environment: Mapping[str, str] = os.environ) -> list[Endpoint]:
    """Those of the settings. Raises `ValueError` where a secret is not there, or is none."""
    found: list[Endpoint] = []
    if not settings.webhooks:
        return found
    verify = httpx2.create_ssl_context()
    for name, declared in settings.webhooks.items():
        keys = []
        for variable in (declared.secret_env, declared.old_secret_env):
            if variable is None:
                continue
            try:
                keys.append(secret_key(environment.get(variable, "").strip()))
            except ValueError as exc:
                raise ValueError(f"webhook {name!r}: {variable} is {exc}") from None
        found.append(Endpoint(name, declared, tuple(keys), verify))
    return found


@dataclass(frozen=True, slots=True)
class Answer:
    """How a try went. `failure` is None where it was taken; `last`: there is no use in trying again."""

    failure: str | None
    last: bool = False
    retry_after: float = 0.0


class Deliveries:
    """The deliveries that one worker makes. Run `run()` beside its runs."""

    def __init__(
        self, endpoints: list[Endpoint], *, records: Records, log: Log, totals: Totals, settings: Settings
    ) -> None:
        self._endpoints = endpoints
        self._records = records
        self._webhooks = records.webhooks
        self._log = log
        self._totals = totals
        self._settings = settings
        self._scheduled = asyncio.Event()

    async def owe(self, generation: str) -> None:
        """It has ended: see that those are told who are to be. Its hint stays in the queue until this has returned, so
        nobody can be forgotten."""
        record = await self._records.find(generation) if self._settings.webhooks else None
        if record is not None and await self._webhooks.schedule(record):
            self._scheduled.set()

    async def run(self) -> None:
        """Deliver what is due, each endpoint for itself: a slow one keeps no other waiting."""
        async with asyncio.TaskGroup() as group:
            wakes = [asyncio.Event() for _ in self._endpoints]
            for endpoint, wake in zip(self._endpoints, wakes, strict=True):
                group.create_task(self._serve(endpoint, wake), name=f"webhooks {endpoint.name}")
            while True:
                await self._scheduled.wait()
                self._scheduled.clear()
                for wake in wakes:
                    wake.set()

    async def _serve(self, endpoint: Endpoint, wake: asyncio.Event) -> None:
        lease_ms = round(1000 * (self._settings.webhook_timeout_seconds + _MARGIN_SECONDS))
        async with asyncio.TaskGroup() as group:
            running: set[asyncio.Task[None]] = set()
            while True:
                wake.clear()
                sleep = _IDLE_SECONDS
                try:
                    due = await self._webhooks.take(endpoint.name, _AT_ONCE - len(running), lease_ms=lease_ms)
                except StoreError as exc:
                    _log.warning("webhooks_unavailable", endpoint=endpoint.name, error=str(exc))
                else:
                    for generation in due.generations:
                        task = group.create_task(self._deliver(endpoint, generation))
                        running.add(task)
                        task.add_done_callback(running.discard)
                        task.add_done_callback(lambda _: wake.set())
                    if due.next_ms is not None:
                        sleep = min(sleep, due.next_ms / 1000)
                if len(running) >= _AT_ONCE:
                    await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                    continue
                try:
                    async with asyncio.timeout(max(sleep, 0.01)):
                        await wake.wait()
                except TimeoutError:
                    continue

    async def _deliver(self, endpoint: Endpoint, generation: str) -> None:
        """One try. Whatever goes wrong, the delivery is due again when its lease is over."""
        try:
            record = await self._records.find(generation)
            if record is None or endpoint.name not in self._webhooks.owed(record):
                if record is not None and is_dead(record, endpoint.name):
                    await self._webhooks.bury(record, endpoint.name)  # who noted that may have died before he said so
                await self._webhooks.drop(endpoint.name, generation)
                return
            body = orjson.dumps(payload(record, await self._text(endpoint, record)))
            url = record.webhooks[endpoint.name].url or endpoint.declared.url
            answer = await self._post(endpoint, url, message_id(generation), body)
            await self._note(endpoint, record, answer)
        except (StoreError, GenerationExpired) as exc:
            _log.warning("webhook_not_noted", endpoint=endpoint.name, generation=generation, error=str(exc))
        except Exception as exc:  # noqa: BLE001 - one delivery's defect must not take the others with it
            _log.error("webhook_defect", endpoint=endpoint.name, generation=generation, error=repr(exc)[:300])

    async def _note(self, endpoint: Endpoint, record: Record, answer: Answer) -> None:
        name, generation = endpoint.name, record.id
        tries = record.webhooks[name].tries + 1
        last = answer.last or tries >= self._settings.webhook_attempts
        if answer.failure is None:
            await self._webhooks.note(generation, name, DELIVERED)
            await self._webhooks.drop(name, generation)
            await self._totals.add(Total.WEBHOOKS_DELIVERED)
            _log.info("webhook_delivered", endpoint=name, generation=generation, tries=tries)
        elif last:
            await self._webhooks.note(generation, name, answer.failure)
            await self._webhooks.bury(record, name)
            await self._webhooks.drop(name, generation)
            await self._totals.add(Total.WEBHOOKS_DEAD)
            _log.warning("webhook_dead", endpoint=name, generation=generation, tries=tries, why=answer.failure)
        else:
            await self._webhooks.note(generation, name, "")
            delay = max(self._delay(tries), answer.retry_after)
            await self._webhooks.put_off(name, generation, round(1000 * delay))
            _log.info("webhook_failed", endpoint=name, generation=generation, tries=tries, why=answer.failure)

    def _delay(self, tries: int) -> float:
        """Seconds before the next try: three times as long each time, half of it random."""
        settings = self._settings
        bound = min(settings.webhook_base_seconds * 3.0 ** (tries - 1), settings.webhook_cap_seconds)
        return random.uniform(bound / 2, bound)

    async def _text(self, endpoint: Endpoint, record: Record) -> str | None:
        if not endpoint.declared.text:
            return None
        try:
            fold, _ = await self._log.folded(record.id)
        except (GenerationExpired, GenerationUnknown):
            return None
        return fold.text

    async def _post(self, endpoint: Endpoint, url: str, message: str, body: bytes) -> Answer:
        seconds = self._settings.webhook_timeout_seconds
        sent = {"content-type": "application/json", "user-agent": "legato"}
        sent |= headers(message, int(time.time()), body, endpoint.keys)
        transport = GuardedTransport(private=endpoint.declared.private, verify=endpoint.verify)
        timeout = httpx2.Timeout(None, connect=_CONNECT_SECONDS)
        try:
            async with (
                asyncio.timeout(seconds),
                httpx2.AsyncClient(transport=transport, trust_env=False, timeout=timeout) as client,
                client.stream("POST", url, content=body, headers=sent, follow_redirects=False) as response,
            ):
                return _judged(response, most_seconds=self._settings.webhook_cap_seconds)
        except TimeoutError:
            return Answer(f"it did not answer within {seconds:g} s")
        except AddressRefused:
            return Answer("it has an address that it must not have")
        except (httpx2.ConnectError, httpx2.ConnectTimeout):
            return Answer("it cannot be reached")
        except (httpx2.TransportError, httpx2.InvalidURL):
            return Answer("it broke the connection")


def _judged(response: httpx2.Response, *, most_seconds: float) -> Answer:
    status = response.status_code
    if response.is_success:
        return Answer(None)
    after = response.headers.get("retry-after", "")
    retry_after = min(float(after), most_seconds) if after.isascii() and after.isdigit() else 0.0
    if response.is_redirect:
        return Answer(f"it answered {status}, and redirects are not followed")
    return Answer(f"it answered {status}", last=status == _GONE, retry_after=retry_after)


def message_id(generation: str) -> str:
    """What receivers tell repetitions by: a generation ends once, so its own id does it."""
    return "msg_" + generation.removeprefix("gen_")


def payload(record: Record, text: str | None) -> Json:
    """What is sent: `{type, timestamp, data}`. Small: who wants the text asks for it, or is declared with `text`."""
    end = record.end or {}
    data: Json = {
        "id": record.id,
        "object": "generation",
        "status": record.state.value,
        "provider": record.provider,
        "model": record.model,
        "thread": record.thread,
        "created_at": record.created_ms / 1000,
        "ended_at": (record.ended_ms or 0) / 1000,
        "finish_reason": end.get("finish_reason"),
        "reason": end.get("reason"),
        "code": end.get("code"),
        "message": end.get("message"),
        "characters": end.get("characters"),
        "usage": end.get("usage"),
        "metadata": record.metadata,
    }
    if text is not None:
        data["text"] = text
    ended = datetime.fromtimestamp((record.ended_ms or 0) / 1000, UTC)
    return {
        "type": f"generation.{record.state.value}",
        "timestamp": ended.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "data": data,
    }
