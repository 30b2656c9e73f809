"""The store loses its data between two steps of one submit: whoever submitted is told to come again, never 404."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import orjson
import pytest
from starlette.types import Message

from api.app import build
from api.services import Services
from broker.generation import Request
from broker.records import Records, Submitted
from broker.settings import Settings

JOB = {"provider": "sim", "model": "m", "messages": [{"role": "user", "content": "x"}]}


class Forgetful(Records):
    """Everything of a job is gone in the moment in which it has been stored."""

    forgets = False

    async def submit(
        self, tenant: str, request: Request, *, key: str | None = None, fingerprint: str = ""
    ) -> Submitted:
        submitted = await super().submit(tenant, request, key=key, fingerprint=fingerprint)
        if self.forgets:
            await self._store._topology.commands.delete(*self._keys.of(submitted.id))
        return submitted


class Api:
    """The application, asked without a server: its answers may end incompletely."""

    def __init__(self, services: Services) -> None:
        self._application = build(services)
        self.records = services.records = Forgetful(services.store, services.queue)

    async def submit(self, **headers: str) -> tuple[int, dict[bytes, bytes], bytes]:
        """Status, headers and body of a submit."""
        requests: asyncio.Queue[Message] = asyncio.Queue()
        requests.put_nowait({"type": "http.request", "body": orjson.dumps(JOB), "more_body": False})
        answers: list[Message] = []

        async def send(message: Message) -> None:
            answers.append(message)

        scope = {
            "type": "http",
            "http_version": "1.1",
            "method": "POST",
            "path": "/v1/generations",
            "query_string": b"",
            "headers": [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()],
        }
        await self._application(scope, requests.get, send)
        body = b"".join(message.get("body", b"") for message in answers)
        return answers[0]["status"], dict(answers[0]["headers"]), body


@asynccontextmanager
async def forgetful_api(redis_url: str, prefix: str) -> AsyncIterator[Api]:
    async with Services.open(redis_url, Settings(prefix=prefix, providers=("sim",))) as services:
        yield Api(services)


async def test_a_repeated_submit_whose_job_is_lost_is_told_to_come_again(redis_url: str, prefix: str) -> None:
    async with forgetful_api(redis_url, prefix) as api:
        status, _, first = await api.submit(idempotency_key="one")
        assert status == 202
        api.records.forgets = True
        status, headers, body = await api.submit(idempotency_key="one")
        assert (status, orjson.loads(body)["code"]) == (503, "data_lost")
        assert b"retry-after" in headers
        api.records.forgets = False
        status, _, again = await api.submit(idempotency_key="one")
        assert (status, orjson.loads(again)["id"]) == (202, orjson.loads(first)["id"])


@pytest.mark.parametrize("headers", [{}, {"idempotency_key": "one"}])
async def test_a_submit_that_streams_and_is_lost_is_told_to_come_again(
    redis_url: str, prefix: str, headers: dict[str, str]
) -> None:
    async with forgetful_api(redis_url, prefix) as api:
        api.records.forgets = True
        status, _, body = await api.submit(accept="text/event-stream", **headers)
        assert status == 200
        assert b'"code":"data_lost"' in body
