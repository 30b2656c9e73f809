"""The HTTP client under the client commands: where the server is, how long to try, what its refusals mean.

It tries again by itself, until the deadline, what may pass: no connection, 429, 502, 503, 504. Every request it is
given must therefore be harmless to repeat; a submit is so by its Idempotency-Key.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final, TypeVar

import click
import httpx
import orjson

from cli.exits import Exit, Failure, note

DEFAULT_URL: Final = "http://127.0.0.1:8700"

#: Statuses of which the same request may be rid of later.
TRANSIENT: Final = frozenset({429, 502, 503, 504})

#: Longest wait for a connection.
_CONNECT_SECONDS: Final = 5.0
#: Longest silence of a stream: three of the server's default keepalives.
_SILENCE_SECONDS: Final = 45.0
#: First and longest pause between tries, before jitter.
_PAUSE_SECONDS: Final = (0.25, 15.0)
#: What the server may ask us to wait at most.
_RETRY_AFTER_MAX_SECONDS: Final = 60.0

_F = TypeVar("_F", bound=Callable[..., Any])


def connection_options(default_timeout: float) -> Callable[[_F], _F]:
    """`--url` and `--timeout`."""

    def add(command: _F) -> _F:
        url = click.option(
            "--url",
            envvar="LEGATO_URL",
            default=DEFAULT_URL,
            show_default=True,
            show_envvar=True,
            help="Where the API is.",
        )
        timeout = click.option(
            "--timeout",
            type=click.FloatRange(min=0),
            default=default_timeout,
            show_default=True,
            metavar="SECONDS",
            help="How long to go on trying a server that does not answer; 0 tries once.",
        )
        return url(timeout(command))

    return add


class Client:
    """One server. Use as a context manager."""

    def __init__(self, url: str, *, timeout_seconds: float, transport: httpx.BaseTransport | None = None) -> None:
        try:
            parsed = httpx.URL(url)
        except httpx.InvalidURL as exc:
            raise Failure(Exit.USAGE, f"--url {url!r} is no URL: {exc}") from None
        if parsed.scheme not in ("http", "https") or not parsed.host:
            raise Failure(Exit.USAGE, f"--url {url!r} is no URL of an API; one reads {DEFAULT_URL}")
        self.url = url.rstrip("/")
        self.timeout_seconds = timeout_seconds
        self._http = httpx.Client(
            base_url=self.url,
            transport=transport,
            trust_env=not _is_loopback(parsed.host),  # a proxy does not reach this machine's loopback
        )

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def call(
        self, method: str, path: str, *, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> httpx.Response:
        """The answer, a 2xx. Raises `Failure`: refused at once, unavailable once the time is up."""
        deadline = time.monotonic() + self.timeout_seconds
        tries = 0
        while True:
            left = max(deadline - time.monotonic(), 1.0)
            pause = backoff(tries)
            try:
                answer = self._http.request(
                    method,
                    path,
                    content=body,
                    headers={"Accept": "application/json", **(headers or {})},
                    timeout=httpx.Timeout(left, connect=min(left, _CONNECT_SECONDS)),
                )
            except httpx.RequestError as exc:
                problem = self.unreachable(exc)
            else:
                if answer.is_success:
                    return answer
                failure = self.failure_of(answer)
                if answer.status_code not in TRANSIENT:
                    raise failure
                problem, pause = failure.message, max(pause, retry_after(answer) or 0.0)
            if time.monotonic() + pause >= deadline:
                raise Failure(Exit.UNAVAILABLE, problem)
            if tries == 0:
                note(f"{problem}; trying for {self.timeout_seconds:g} s")
            tries += 1
            time.sleep(pause)

    @contextmanager
    def stream(self, path: str, *, headers: Mapping[str, str]) -> Iterator[httpx.Response]:
        """A response whose body is read as it comes. Raises `httpx.RequestError`, here or while it is read."""
        silence = min(_SILENCE_SECONDS, max(self.timeout_seconds, 1.0))
        timeout = httpx.Timeout(silence, connect=_CONNECT_SECONDS)
        with self._http.stream("GET", path, headers=headers, timeout=timeout) as answer:
            yield answer

    def unreachable(self, exc: httpx.RequestError) -> str:
        """What a broken connection is called."""
        what = str(exc) or type(exc).__name__
        return f"no answer from {self.url} ({what})"

    def failure_of(self, answer: httpx.Response) -> Failure:
        """A refusal, as an exit code and one line. The body must have been read."""
        status = answer.status_code
        problem = _problem(answer)
        if problem is None:
            if answer.is_redirect:
                return Failure(
                    Exit.USAGE, f"{self.url} redirects to {answer.headers.get('location')}: use that as --url"
                )
            named = f"{self.url} answers {status} {answer.reason_phrase}, and not as Legato does".replace("  ", " ")
            return Failure(Exit.UNAVAILABLE, named)
        fields = problem.get("errors")
        named = "; ".join(
            f"{item.get('field')}: {item.get('message')}"
            for item in (fields if isinstance(fields, list) else [])
            if isinstance(item, dict)
        )
        detail = str(problem.get("detail") or problem.get("title") or f"HTTP {status}")
        if status in (404, 410):
            code = Exit.NOT_FOUND
        elif status >= 500 or status in TRANSIENT:
            code = Exit.UNAVAILABLE
        else:
            code = Exit.USAGE
        return Failure(code, f"{detail} ({named})" if named else detail)


def backoff(tries: int, *, first_seconds: float = _PAUSE_SECONDS[0]) -> float:
    """How long to wait after so many tries that failed: doubling, jittered upwards, never below the first."""
    longest = max(first_seconds, _PAUSE_SECONDS[1])
    return min(first_seconds * 2.0 ** min(tries, 16), longest) * random.uniform(1.0, 1.25)


def retry_after(answer: httpx.Response) -> float | None:
    """Seconds the server asks us to wait, where it says so as a number."""
    text = answer.headers.get("retry-after", "")
    return min(float(text), _RETRY_AFTER_MAX_SECONDS) if text.isascii() and text.isdigit() else None


def json_object(answer: httpx.Response) -> dict[str, Any]:
    """The body of an answer of Legato's."""
    try:
        value = orjson.loads(answer.content)
    except orjson.JSONDecodeError:
        value = None
    if not isinstance(value, dict):
        raise Failure(Exit.UNAVAILABLE, f"{answer.url} answers, but not as Legato does")
    return value


def _problem(answer: httpx.Response) -> dict[str, Any] | None:
    if not answer.headers.get("content-type", "").startswith("application/problem+json"):
        return None
    try:
        value = orjson.loads(answer.content)
    except orjson.JSONDecodeError:
        return None
    return value if isinstance(value, dict) else None


def _is_loopback(host: str) -> bool:
    return host in ("localhost", "::1") or host.startswith("127.")
