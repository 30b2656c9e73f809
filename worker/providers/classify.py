"""One table from what goes wrong at a provider to failure codes.

Both SDKs are generated from one mould: an HTTP error carries `response` and `body`, a transport failure carries an
`httpx2` exception as its cause. So this module needs neither of them, and importing it is cheap. What a provider
*says* (its error's code or type) is looked at before the HTTP status, and the status before the generic types,
because servers report the same trouble under different statuses, inside a stream under 200.

What leaves here is read by API clients. It never holds a header, a body, a URL or the words of a transport error
(which can quote a bad `Authorization` header); a provider's own message is cut short and stripped of all that looks
like a key.
"""

from __future__ import annotations

import email.utils
import math
import re
import time
from collections.abc import Mapping
from typing import Final

import httpx2

from broker.errors import ProviderError
from broker.events import FailureCode

#: Longest message passed on, in characters.
MAX_MESSAGE_CHARS: Final = 300

#: A longer Retry-After is cut to this: longer than any generation, and still a number to count with.
LONGEST_RETRY_AFTER_SECONDS: Final = 1e6

#: As much of a provider's message is looked at, in characters.
_MAX_READ_CHARS: Final = 4096

_Verdict = tuple[FailureCode, bool]  # and whether to try again

_INVALID: Final = (FailureCode.INVALID_REQUEST, False)
_AUTH: Final = (FailureCode.UPSTREAM_AUTH, False)
_SLOW_DOWN: Final = (FailureCode.RATE_LIMITED, True)
_NO_MONEY: Final = (FailureCode.RATE_LIMITED, False)
_TOO_LONG: Final = (FailureCode.CONTEXT_LENGTH, False)
_FILTERED: Final = (FailureCode.CONTENT_FILTER, False)
_BROKEN: Final = (FailureCode.UPSTREAM_ERROR, True)
_MISCONFIGURED: Final = (FailureCode.UPSTREAM_ERROR, False)
_CUT: Final = (FailureCode.UPSTREAM_INCOMPLETE, True)
_DEFECT: Final = (FailureCode.INTERNAL, False)

#: An error's `code` or `type` that says exactly what is wrong, whatever the HTTP status.
_EXACT: Final[dict[str, _Verdict]] = {
    "context_length_exceeded": _TOO_LONG,
    "model_context_window_exceeded": _TOO_LONG,
    "content_filter": _FILTERED,
    "content_policy_violation": _FILTERED,
    "invalid_prompt": _FILTERED,
    "bio_policy": _FILTERED,
    "misalignment_policy_violation": _FILTERED,
    "insufficient_quota": _NO_MONEY,
    "billing_hard_limit_reached": _NO_MONEY,
    "billing_not_active": _NO_MONEY,
    "billing_error": _NO_MONEY,
    "rate_limit_exceeded": _SLOW_DOWN,
    "rate_limit_error": _SLOW_DOWN,
    "invalid_api_key": _AUTH,
    "authentication_error": _AUTH,
    "permission_error": _AUTH,
    "overloaded_error": _BROKEN,
    "timeout_error": _BROKEN,
    "model_not_found": _INVALID,
    "request_too_large": _INVALID,
}

#: HTTP statuses that differ from "4xx: the request is wrong; 5xx: the provider is broken".
_STATUS: Final[dict[int, _Verdict]] = {
    401: _AUTH,
    402: _NO_MONEY,
    403: _AUTH,
    407: _AUTH,
    408: _BROKEN,
    409: _BROKEN,
    425: _BROKEN,
    429: _SLOW_DOWN,
    499: _BROKEN,
}

#: An error's `type` that only says whose fault it is; counts where no HTTP status says more.
_GENERIC: Final[dict[str, _Verdict]] = {
    "invalid_request_error": _INVALID,
    "not_found_error": _INVALID,
    "api_error": _BROKEN,
    "server_error": _BROKEN,
    "requests": _SLOW_DOWN,
    "tokens": _SLOW_DOWN,
}

#: First match wins. A connection that broke is `_CUT` when the answer had begun, `_BROKEN` when not.
_TRANSPORT: Final[tuple[tuple[type[Exception], _Verdict | None, str], ...]] = (
    (httpx2.TimeoutException, _BROKEN, "timed out"),
    (httpx2.UnsupportedProtocol, _MISCONFIGURED, "has a base URL that cannot be used"),
    (httpx2.InvalidURL, _MISCONFIGURED, "has a base URL that cannot be used"),
    (httpx2.LocalProtocolError, _MISCONFIGURED, "got a request that is not valid HTTP; look at its credentials"),
    (httpx2.TooManyRedirects, _MISCONFIGURED, "redirects without end"),
    (httpx2.DecodingError, _BROKEN, "sent a body that cannot be decompressed"),
    (httpx2.ConnectError, _BROKEN, "cannot be reached"),
    (httpx2.ProxyError, _BROKEN, "cannot be reached through the proxy"),
    (httpx2.HTTPError, None, "broke the connection"),
    (httpx2.StreamError, None, "broke the connection"),
    (OSError, None, "broke the connection"),
)

#: Some servers say it in words only. Read on 400, 413 and 422 alone, after every code and type.
_TOO_LONG_WORDS: Final = re.compile(
    r"prompt is too long|maximum context length|context (length|window|size)|exceeds? (the )?context", re.IGNORECASE
)

_SECRETS: Final = re.compile(
    r"""
    \b(?:bearer|basic)\s+[^\s"',;]+                                    # an Authorization header
    | \b(?:sk|pk|rk|lg|xai|gsk|hf|pplx|ghp|r8)[-_][\w\-*.…]{3,}         # keys by prefix, masked ones too
    | \bAIza[\w\-]{10,}
    | \beyJ[\w\-]+\.[\w\-]+\.[\w\-]*                                    # a JSON Web Token
    | (?P<label>(?:api[-_ ]?key|authorization|token|secret|password)(?:\ provided)?["']?\s*[=:]\s*["']?)
      (?:(?:bearer|basic)\s+)?[^\s"',;]+
    | (?<=://)[^\s/@]+@                                                 # user and password of a URL
    | \b(?=[a-z_]*\d)\w{32,}                                            # hex and the like, but no model's name
    | [\w\-+/=]{64,}                                                    # anything very long and opaque
    """,
    re.IGNORECASE | re.VERBOSE,
)


def exception(exc: Exception, *, provider: str, opened: bool) -> ProviderError:
    """What an exception of an SDK or of its transport means. `opened`: the answer's head had arrived."""
    response = getattr(exc, "response", None)
    body = getattr(exc, "body", None)
    if isinstance(response, httpx2.Response):
        return _refused(response.status_code, response.headers, body, provider=provider)
    if isinstance(body, Mapping):
        return error_object(body, provider=provider)
    cause: BaseException | None = exc
    while cause is not None:
        for kind, verdict, words in _TRANSPORT:
            if isinstance(cause, kind):
                broke = _CUT if opened else _BROKEN
                return _failed(verdict or broke, f"{provider} {words} ({type(cause).__name__})")
        cause = cause.__cause__
    return _failed(_BROKEN, f"{provider} could not be asked ({type(exc).__name__})")


def error_object(error: object, *, provider: str) -> ProviderError:
    """What an error inside a stream means: `{message, type, code}`, perhaps under `error`, or only its words."""
    code, kind, message = _read(error)
    status = int(code) if code.isdecimal() and len(code) == 3 else None  # gateways put the HTTP status there
    return _failed(_verdict(status, code, kind, message), _sentence(f"{provider} reported an error", message or kind))


def incomplete(provider: str) -> ProviderError:
    """A stream ended, however politely, without the provider's terminal marker."""
    return _failed(_CUT, f"{provider} ended its stream without its terminal marker")


def malformed(provider: str) -> ProviderError:
    """A stream holds something that is not the provider's protocol."""
    return _failed(_BROKEN, f"{provider} sent something that is not its protocol")


def invalid_request(message: str) -> ProviderError:
    """The request can never be sent; `message` names the field."""
    return _failed(_INVALID, scrub(message))


def no_credentials(provider: str) -> ProviderError:
    """Nothing to authenticate with is configured."""
    return _failed(_AUTH, f"no credentials are configured for provider {provider!r}")


def defect(provider: str, exc: Exception) -> ProviderError:
    """Something of ours raised what it never should."""
    return _failed(_DEFECT, f"a defect in the adapter of {provider} ({type(exc).__name__})")


def scrub(message: str) -> str:
    """`message` without anything that looks like a credential, on one line, at most `MAX_MESSAGE_CHARS` long."""
    text = " ".join(_SECRETS.sub(r"\g<label>[redacted]", message[:_MAX_READ_CHARS]).split())
    return text if len(text) <= MAX_MESSAGE_CHARS else text[: MAX_MESSAGE_CHARS - 1] + "…"


def retry_after_seconds(headers: Mapping[str, str]) -> float | None:
    """`retry-after-ms`, else `retry-after` as seconds or as a date; `None` where neither says something usable."""
    for name, unit in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        try:
            seconds = float(headers.get(name, "")) / unit
        except ValueError:
            continue
        if math.isfinite(seconds):
            return min(max(0.0, seconds), LONGEST_RETRY_AFTER_SECONDS)
    try:
        date = email.utils.parsedate_to_datetime(headers.get("retry-after", ""))
        return min(max(0.0, date.timestamp() - time.time()), LONGEST_RETRY_AFTER_SECONDS)
    except (ValueError, OverflowError):
        return None


def _refused(status: int, headers: Mapping[str, str], body: object, *, provider: str) -> ProviderError:
    code, kind, message = _read(body)
    failure, retry = _verdict(status, code, kind, message)
    if headers.get("x-should-retry") == "false":
        retry = False
    words = _sentence(f"{provider} answered {status}", message)
    return _failed((failure, retry), words, retry_after=retry_after_seconds(headers) if retry else None)


def _verdict(status: int | None, code: str, kind: str, message: str) -> _Verdict:
    exact = _EXACT.get(code) or _EXACT.get(kind)
    if exact is not None:
        return exact
    if status is None or status < 300:
        return _GENERIC.get(kind) or _GENERIC.get(code) or _BROKEN
    if status in {400, 413, 422} and _TOO_LONG_WORDS.search(message):
        return _TOO_LONG
    return _STATUS.get(status) or (_INVALID if 400 <= status < 500 else _BROKEN)


def _read(body: object) -> tuple[str, str, str]:
    """Code, type and message of an error body; empty where it has none."""
    error = (body.get("error") or body) if isinstance(body, Mapping) else body
    if isinstance(error, str):
        return "", "", "" if error.lstrip().startswith("<") else error  # not a proxy's HTML page
    if not isinstance(error, Mapping):
        return "", "", ""
    code, details = error.get("code"), error.get("details")
    if code is None and isinstance(details, Mapping):
        code = details.get("error_code")
    return _text(code), _text(error.get("type")), _text(error.get("message"))


def _text(value: object) -> str:
    return str(value) if isinstance(value, str | int) else ""


def _sentence(what: str, message: str) -> str:
    return scrub(f"{what}: {message}" if message else what)


def _failed(verdict: _Verdict, message: str, *, retry_after: float | None = None) -> ProviderError:
    code, retry = verdict
    return ProviderError(code, message, retryable=retry, retry_after=retry_after)
