"""The edge: one server over httpx, and what its refusals and its silences are called.

A call is tried again as long as patience allows, so every request must be harmless to repeat; a submit is so by its
Idempotency-Key. Redirects of a GET are followed; a POST that is redirected is an error, for it would submit nothing.
"""

from __future__ import annotations

import asyncio
import random
import ssl
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Final

import httpx

from legato_client.errors import (
    Conflict,
    FieldError,
    Gone,
    InvalidRequest,
    NotAllowed,
    NotFound,
    Refused,
    Unavailable,
    UnexpectedAnswer,
)
from legato_client.patience import GiveUp, Patience, next_try
from legato_client.state import may_pass

#: Longest wait for a connection.
CONNECT_SECONDS: Final = 5.0
#: Longest wait for the answer of a call.
CALL_SECONDS: Final = 30.0
#: A path of redirects longer than this is taken for a circle.
_MAX_REDIRECTS: Final = 5

_REFUSALS: Final[Mapping[int, type[Refused]]] = {
    400: InvalidRequest,
    401: NotAllowed,
    403: NotAllowed,
    404: NotFound,
    405: InvalidRequest,
    409: Conflict,
    410: Gone,
    413: InvalidRequest,
    422: InvalidRequest,
}


class Http:
    """One server. `close` closes the connections, unless `http_client` is the caller's own."""

    def __init__(
        self,
        base_url: str,
        *,
        patience: Patience,
        api_key: str | None = None,
        headers: Mapping[str, str] | None = None,
        http_client: httpx.AsyncClient | None = None,
    ) -> None:
        try:
            url = httpx.URL(base_url)
        except httpx.InvalidURL as exc:
            raise ValueError(f"{base_url!r} is no URL: {exc}") from None
        if url.scheme not in ("http", "https") or not url.host:
            raise ValueError(f"{base_url!r} is no URL of an API; one reads http://127.0.0.1:8700")
        self._base_url = base_url.rstrip("/")
        #: The address for messages: a user and a password that the URL may hold are not in it.
        self.address: Final = f"{url.scheme}://{url.netloc.decode('ascii')}{url.path}".rstrip("/")
        self.patience: Final = patience
        self._headers = dict(headers or {})
        if api_key is not None:
            self._headers["Authorization"] = f"Bearer {api_key}"
        self._owned = http_client is None
        # A proxy does not reach this machine's loopback.
        self._client = http_client or httpx.AsyncClient(
            trust_env=not _is_loopback(url.host),
            max_redirects=_MAX_REDIRECTS,
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=20),
        )

    async def close(self) -> None:
        if self._owned:
            await self._client.aclose()

    async def call(
        self,
        method: str,
        path: str,
        *,
        json: object = None,
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        accepted: Callable[[int], bool] = lambda status: 200 <= status < 300,
    ) -> httpx.Response:
        """The answer, whole. Raises `Refused`, `UnexpectedAnswer`, and `Unavailable` when patience is over."""
        since = time.monotonic()
        failures = 0
        while True:
            retry_after: float | None = None
            cause: httpx.RequestError | None = None
            try:
                request = self._request(
                    method, path, json=json, query=query, headers=headers, read_seconds=CALL_SECONDS
                )
                answer = await self._client.send(request, follow_redirects=method == "GET")
            except httpx.RequestError as exc:
                problem, cause = self.unreachable(exc), exc
            else:
                if accepted(answer.status_code):
                    return answer
                if not may_pass(answer.status_code):
                    raise self.refusal(answer)
                problem = self.describe(answer)
                retry_after = retry_after_seconds(answer)
            step = next_try(
                self.patience,
                failures=failures,
                lost_seconds=time.monotonic() - since,
                retry_seconds=None,
                retry_after_seconds=retry_after,
                chance=random.random(),
            )
            if isinstance(step, GiveUp):
                raise Unavailable(problem, retry_after_seconds=step.retry_after_seconds) from cause
            failures += 1
            await asyncio.sleep(step.seconds)

    async def open(
        self, path: str, *, query: Mapping[str, str], headers: Mapping[str, str], silence_seconds: float
    ) -> httpx.Response:
        """An answer whose body is still to be read, and to be closed. Reading it raises `httpx.ReadTimeout` after so
        much silence. Raises `httpx.RequestError`, `UnexpectedAnswer`."""
        request = self._request("GET", path, query=query, headers=headers, read_seconds=silence_seconds)
        return await self._client.send(request, stream=True, follow_redirects=True)

    def unreachable(self, exc: httpx.RequestError) -> str:
        """What a broken connection is called. Raises `UnexpectedAnswer` for what no other try would change."""
        if isinstance(exc, httpx.TooManyRedirects):
            raise UnexpectedAnswer(f"{self.address} redirects without end") from exc
        if (reason := _bad_certificate(exc)) is not None:
            raise UnexpectedAnswer(f"the certificate of {self.address} is not accepted: {reason}") from exc
        what = "silence" if isinstance(exc, httpx.ReadTimeout) else str(exc) or type(exc).__name__
        return f"no answer from {self.address} ({what})"

    def refusal(self, answer: httpx.Response) -> Refused | UnexpectedAnswer:
        """What an answer that is no success means. Its body must have been read."""
        status = answer.status_code
        if answer.has_redirect_location:
            return UnexpectedAnswer(f"{self.address} redirects to {_origin(answer)}: use that as the base URL")
        kind = _REFUSALS.get(status, InvalidRequest if 400 <= status < 500 else None)
        if kind is None:
            return UnexpectedAnswer(self.describe(answer))
        problem = _problem(answer)
        fields = problem.get("errors")
        return kind(
            status,
            str(problem.get("code") or ""),
            self.describe(answer),
            tuple(
                FieldError(str(item.get("field")), str(item.get("message")))
                for item in (fields if isinstance(fields, list) else [])
                if isinstance(item, dict)
            ),
        )

    def describe(self, answer: httpx.Response) -> str:
        """One line on an answer that is no success."""
        problem = _problem(answer)
        said = problem.get("detail") or problem.get("title")
        if said:
            return str(said)
        return f"{self.address} answers {answer.status_code} {answer.reason_phrase}".rstrip() + ", not as Legato does"

    def object_of(self, answer: httpx.Response) -> dict[str, Any]:
        """The JSON object that an answer holds. Raises `UnexpectedAnswer`."""
        try:
            value = answer.json()
        except ValueError:
            value = None
        if not isinstance(value, dict):
            raise UnexpectedAnswer(f"{self.address} answers {answer.status_code}, but not as Legato does")
        return value

    def _request(
        self,
        method: str,
        path: str,
        *,
        read_seconds: float,
        json: object = None,
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> httpx.Request:
        return self._client.build_request(
            method,
            self._base_url + path,
            json=json,
            params=dict(query) if query else None,
            headers={"Accept": "application/json", **self._headers, **(headers or {})},
            timeout=httpx.Timeout(read_seconds, connect=CONNECT_SECONDS),
        )


def retry_after_seconds(answer: httpx.Response) -> float | None:
    """What `Retry-After` asks for: a number of seconds, or a date. None where it cannot be read."""
    text = answer.headers.get("retry-after", "").strip()
    if text.isascii() and text.isdigit():
        return float(text)
    try:
        date = parsedate_to_datetime(text)
    except ValueError:
        return None
    if date.tzinfo is None:
        date = date.replace(tzinfo=UTC)
    return max(0.0, (date - datetime.now(UTC)).total_seconds())


def _problem(answer: httpx.Response) -> dict[str, Any]:
    if not answer.headers.get("content-type", "").startswith("application/problem+json"):
        return {}
    try:
        value = answer.json()
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _origin(answer: httpx.Response) -> str:
    """Where a redirect leads, without its path and query, which may hold a credential."""
    target = answer.url.join(answer.headers["location"])
    return f"{target.scheme}://{target.netloc.decode('ascii', 'replace').rpartition('@')[2]}"


def _bad_certificate(exc: BaseException) -> str | None:
    seen: BaseException | None = exc
    while seen is not None:
        if isinstance(seen, ssl.SSLCertVerificationError):
            return seen.verify_message
        seen = seen.__cause__ or seen.__context__
    return None


def _is_loopback(host: str) -> bool:
    return host in ("localhost", "::1") or host.startswith("127.")
