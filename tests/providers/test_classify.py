"""Every way a provider can fail has a failure code, and says whether to try again."""

from __future__ import annotations

import email.utils
import time
from collections.abc import Callable, Iterator

import anthropic
import anthropic._error_classes  # loads every error class there is
import httpx2
import openai
import pytest

from broker.errors import ProviderError
from broker.events import FailureCode
from tests.providers.wires import API_KEY
from worker.providers import classify

REQUEST = httpx2.Request("POST", "https://api.example.org/v1/x", headers={"authorization": f"Bearer {API_KEY}"})


def subclasses(root: type[Exception]) -> Iterator[type[Exception]]:
    yield root
    for child in root.__subclasses__():
        yield from subclasses(child)


def instance(kind: type[Exception]) -> Exception:
    """An error of that class as its SDK would raise it."""
    if issubclass(kind, openai.APITimeoutError | anthropic.APITimeoutError):
        return kind(request=REQUEST)
    if issubclass(kind, openai.APIConnectionError | anthropic.APIConnectionError):
        return kind(request=REQUEST)
    status = getattr(kind, "status_code", None)
    response = httpx2.Response(status if isinstance(status, int) else 500, request=REQUEST)
    if issubclass(kind, openai.OAuthError):
        return openai.OAuthError(response=response, body=None)
    if issubclass(kind, openai.APIStatusError | anthropic.APIStatusError):
        return kind("message", response=response, body=None)
    if issubclass(kind, openai.APIResponseValidationError | anthropic.APIResponseValidationError):
        return kind(httpx2.Response(200, request=REQUEST), None)
    make: Callable[..., Exception] = kind
    return make("message", REQUEST, body=None)


def expected(status: int | None) -> tuple[FailureCode, bool]:
    """What the contract says of a status, in other words than the table."""
    if status is None or status in {200, 408, 409, 499} or status >= 500:
        return FailureCode.UPSTREAM_ERROR, True
    if status in {401, 403}:
        return FailureCode.UPSTREAM_AUTH, False
    if status in {402, 429}:
        return FailureCode.RATE_LIMITED, status == 429
    return FailureCode.INVALID_REQUEST, False


@pytest.mark.parametrize("root", [openai.APIError, anthropic.APIError], ids=["openai", "anthropic"])
def test_every_error_of_an_sdk_has_a_code(root: type[Exception]) -> None:
    """All of its classes, also those a new version adds."""
    kinds = list(subclasses(root))
    assert len(kinds) > 10
    for kind in kinds:
        error = classify.exception(instance(kind), provider="p", opened=False)
        assert isinstance(error, ProviderError)
        status = getattr(getattr(instance(kind), "response", None), "status_code", None)
        assert (error.failure, error.retryable) == expected(status), kind


@pytest.mark.parametrize("opened", [False, True])
def test_every_error_of_the_transport_has_a_code(opened: bool) -> None:
    """A connection that breaks before the answer is an error, one that breaks within it leaves it incomplete."""
    roots: list[type[Exception]] = [httpx2.HTTPError, httpx2.StreamError, httpx2.InvalidURL]
    for kind in [kind for root in roots for kind in subclasses(root)]:
        if kind is httpx2.HTTPStatusError:
            continue  # only `raise_for_status` raises it
        exc = kind.__new__(kind, "said Bearer secret")
        error = classify.exception(exc, provider="p", opened=opened)
        assert error.failure in {FailureCode.UPSTREAM_ERROR, FailureCode.UPSTREAM_INCOMPLETE}
        assert "secret" not in error.message
        assert kind.__name__ in error.message


@pytest.mark.parametrize(
    ("exc", "opened", "code", "retry"),
    [
        (httpx2.ReadTimeout("x"), True, FailureCode.UPSTREAM_ERROR, True),
        (httpx2.ConnectTimeout("x"), False, FailureCode.UPSTREAM_ERROR, True),
        (httpx2.RemoteProtocolError("x"), True, FailureCode.UPSTREAM_INCOMPLETE, True),
        (httpx2.RemoteProtocolError("x"), False, FailureCode.UPSTREAM_ERROR, True),
        (httpx2.ReadError("x"), True, FailureCode.UPSTREAM_INCOMPLETE, True),
        (ConnectionResetError("x"), True, FailureCode.UPSTREAM_INCOMPLETE, True),
        (httpx2.UnsupportedProtocol("x"), False, FailureCode.UPSTREAM_ERROR, False),
        (httpx2.LocalProtocolError("x"), False, FailureCode.UPSTREAM_ERROR, False),
        (httpx2.DecodingError("x"), True, FailureCode.UPSTREAM_ERROR, True),
    ],
)
def test_a_transport_failure_counts_through_its_sdk_wrapper(
    exc: Exception, opened: bool, code: FailureCode, retry: bool
) -> None:
    wrapped = openai.APIConnectionError(request=REQUEST)
    wrapped.__cause__ = exc
    for raised in (exc, wrapped):
        error = classify.exception(raised, provider="p", opened=opened)
        assert (error.failure, error.retryable) == (code, retry)


@pytest.mark.parametrize(
    ("status", "body", "code", "retry"),
    [
        (400, {"code": "context_length_exceeded", "type": "invalid_request_error"}, FailureCode.CONTEXT_LENGTH, False),
        (400, {"message": "prompt is too long: 9 tokens > 8 maximum"}, FailureCode.CONTEXT_LENGTH, False),
        (400, {"message": "This model's maximum context length is 8"}, FailureCode.CONTEXT_LENGTH, False),
        (500, {"message": "cannot load the context window"}, FailureCode.UPSTREAM_ERROR, True),
        (400, {"code": "content_filter"}, FailureCode.CONTENT_FILTER, False),
        (400, {"code": 400, "message": "no"}, FailureCode.INVALID_REQUEST, False),
        (401, {"type": "invalid_request_error"}, FailureCode.UPSTREAM_AUTH, False),
        (403, None, FailureCode.UPSTREAM_AUTH, False),
        (404, {"code": "model_not_found"}, FailureCode.INVALID_REQUEST, False),
        (402, None, FailureCode.RATE_LIMITED, False),
        (413, {"type": "request_too_large"}, FailureCode.INVALID_REQUEST, False),
        (429, {"code": "insufficient_quota"}, FailureCode.RATE_LIMITED, False),
        (429, {"type": "insufficient_quota", "code": None}, FailureCode.RATE_LIMITED, False),
        (429, {"code": "rate_limit_exceeded", "type": "tokens"}, FailureCode.RATE_LIMITED, True),
        (418, None, FailureCode.INVALID_REQUEST, False),
        (302, None, FailureCode.UPSTREAM_ERROR, True),
        (503, "<html>Service Unavailable</html>", FailureCode.UPSTREAM_ERROR, True),
        (529, {"type": "overloaded_error"}, FailureCode.UPSTREAM_ERROR, True),
        (200, {"type": "error", "error": {"type": "overloaded_error"}}, FailureCode.UPSTREAM_ERROR, True),
        (200, {"type": "error", "error": {"type": "rate_limit_error"}}, FailureCode.RATE_LIMITED, True),
    ],
)
def test_codes_come_before_the_status_and_the_status_before_generic_types(
    status: int, body: object, code: FailureCode, retry: bool
) -> None:
    response = httpx2.Response(status, request=REQUEST)
    for kind in (openai.APIStatusError, anthropic.APIStatusError):
        error = classify.exception(kind("m", response=response, body=body), provider="p", opened=False)
        assert (error.failure, error.retryable) == (code, retry)
        assert "html" not in error.message


@pytest.mark.parametrize(
    ("said", "code", "retry"),
    [
        ({"code": 502, "message": "bad gateway"}, FailureCode.UPSTREAM_ERROR, True),
        ({"code": "429"}, FailureCode.RATE_LIMITED, True),
        ({"code": 401}, FailureCode.UPSTREAM_AUTH, False),
        ({"code": 400, "message": "maximum context length is 8"}, FailureCode.CONTEXT_LENGTH, False),
        ("something broke", FailureCode.UPSTREAM_ERROR, True),
        (["?"], FailureCode.UPSTREAM_ERROR, True),
        ({"type": ["?"], "code": {}, "message": 7}, FailureCode.UPSTREAM_ERROR, True),
        (True, FailureCode.UPSTREAM_ERROR, True),
    ],
)
def test_errors_inside_a_stream_of_every_shape(said: object, code: FailureCode, retry: bool) -> None:
    error = classify.error_object(said, provider="p")
    assert (error.failure, error.retryable) == (code, retry)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "3"}, 3.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after-ms": "250", "retry-after": "9"}, 0.25),
        ({"retry-after-ms": "soon", "retry-after": "9"}, 9.0),
        ({"retry-after": "-1"}, 0.0),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "Thu, 01 Jan 1970 00:00:10 GMT"}, 0.0),
        ({}, None),
    ],
)
def test_retry_after(headers: dict[str, str], seconds: float | None) -> None:
    assert classify.retry_after_seconds(httpx2.Headers(headers)) == seconds
    response = httpx2.Response(429, headers=headers, request=REQUEST)
    error = classify.exception(openai.RateLimitError("m", response=response, body=None), provider="p", opened=False)
    assert error.retry_after == seconds


def test_retry_after_as_a_date() -> None:
    date = email.utils.formatdate(time.time() + 3600, usegmt=True)
    seconds = classify.retry_after_seconds({"retry-after": date})
    assert seconds is not None
    assert 3000 < seconds <= 3600


def test_a_server_may_say_not_to_retry() -> None:
    response = httpx2.Response(500, headers={"x-should-retry": "false", "retry-after": "3"}, request=REQUEST)
    error = classify.exception(openai.APIStatusError("m", response=response, body=None), provider="p", opened=False)
    assert (error.retryable, error.retry_after) == (False, None)


@pytest.mark.parametrize(
    "secret",
    [
        API_KEY,
        "sk-ant-api03-AbCd_12-34",
        "sk-proj-****************wxyz",
        "lg_dev_0123456789abcdef",
        "Bearer abc.def",
        "bearer dG9rZW4=",
        "Basic dXNlcjpwYXNz",
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2ln",
        "AIzaSyA-1234567890abcdefghijk",
        "api_key=hunter2hunter2",
        "Authorization: Basic hunter2",
        '{"authorization": "Bearer hunter2"}',
        "API key provided: hunter2",
        "d41d8cd98f00b204e9800998ecf8427e",
        'authorization": "hunter2',
        "0123456789abcdef0123456789abcdef0123456789abcdef",
    ],
)
def test_what_looks_like_a_credential_is_cut_out(secret: str) -> None:
    """Wherever it stands, and also at the edge of the length limit."""
    for message in (f"wrong key {secret}, see the docs", secret, "x " * 140 + secret):
        scrubbed = classify.scrub(message)
        assert secret not in scrubbed
        assert "hunter2" not in scrubbed
        assert secret[-6:] not in scrubbed
    assert classify.scrub("https://user:pw@host/x").count("pw") == 0


def test_messages_are_one_short_line() -> None:
    """And ordinary ones stay as they are."""
    plain = (
        "mistralai/Mixtral-8x22B-Instruct-v0.1 and claude-opus-4-20250514-with-thinking take max_completion_tokens: 7"
    )
    assert classify.scrub(plain) == plain
    assert classify.scrub("max_tokens: 7 is\ntoo\x00 large") == "max_tokens: 7 is too\x00 large"
    assert len(classify.scrub("word " * 1_000_000)) == classify.MAX_MESSAGE_CHARS
