"""HTTP tools: services that the operator lists in `LEGATO_HTTP_TOOLS`.

That list is the allow-list: a request names a tool, and neither a model nor a client ever says a URL, a path or a
header. `POST` sends the arguments as a JSON body; `GET` adds them to the query, where they cannot replace what the
operator's URL says already. The operator's headers, which may be credentials, go to the tool's own origin and nowhere
else; once a redirect has left it they are not sent again. No cookie is kept, no proxy or password file of the
environment is used.
"""

from __future__ import annotations

import asyncio
import os
import re
import ssl
from collections.abc import Mapping
from typing import Final

import httpx2
import orjson

from broker.declared import HttpToolTarget
from broker.events import Json
from worker.tools.base import ToolFailed
from worker.tools.guard import AddressRefused, GuardedTransport, Resolve, resolve

#: Redirects that are followed in one call.
MAX_REDIRECTS: Final = 3

#: Longest wait for one address of a name, before the next one is tried.
_CONNECT_SECONDS: Final = 5.0

#: What of a call's id is replaced: ids come from providers, and header values are printable ASCII.
_NOT_IN_A_HEADER: Final = re.compile(r"[^\x21-\x7e]")

#: Statuses that say "elsewhere", and those of them that keep method and body.
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_KEEPING: Final = frozenset({307, 308})

_PORTS: Final = {"http": 80, "https": 443}


class HttpTool:
    """A service as a tool. Raises `ValueError` where a variable of `header_env` is not set or no header's value."""

    def __init__(
        self,
        name: str,
        target: HttpToolTarget,
        *,
        verify: ssl.SSLContext,
        environment: Mapping[str, str] = os.environ,
        resolve: Resolve = resolve,
    ) -> None:
        self.name = name
        self.idempotent = target.idempotent
        self._target = target
        self._url = httpx2.URL(target.url)
        self._headers = dict(target.headers)
        self._verify = verify
        self._resolve = resolve
        for header, variable in target.header_env.items():
            value = environment.get(variable, "").strip()
            if not value or not value.isascii() or not value.isprintable():
                raise ValueError(f"HTTP tool {name!r}: {variable} is not set, or is no value of a header")
            self._headers[header] = value

    async def run(self, arguments: Json, *, call_id: str) -> str:
        """The body of a 2xx answer, as UTF-8. The time-out counts from here to its last byte."""
        seconds = self._target.timeout_seconds
        try:
            async with asyncio.timeout(seconds):
                return await self._ask(self._request(arguments, call_id))
        except TimeoutError as exc:
            raise ToolFailed(f"{self.name} did not answer within {seconds:g} s") from exc
        except AddressRefused as exc:
            raise ToolFailed(f"{self.name} has an address that it must not have") from exc
        except (httpx2.ConnectError, httpx2.ConnectTimeout) as exc:
            raise ToolFailed(f"{self.name} cannot be reached") from exc
        except httpx2.DecodingError as exc:
            raise ToolFailed(f"{self.name} sent a body that cannot be decompressed") from exc
        except httpx2.TransportError as exc:
            raise ToolFailed(f"{self.name} broke the connection") from exc

    def _request(self, arguments: Json, call_id: str) -> httpx2.Request:
        headers = {
            "Accept": "application/json, text/*;q=0.9, */*;q=0.1",
            "Accept-Encoding": "gzip, deflate",
            "User-Agent": "legato",
            "Idempotency-Key": _NOT_IN_A_HEADER.sub("_", call_id),
            "X-Legato-Tool": self.name,
        }
        if self._target.method == "GET":
            return httpx2.Request("GET", self._with_query(arguments), headers=_merged(headers, self._headers))
        headers["Content-Type"] = "application/json"
        body = orjson.dumps(arguments)
        return httpx2.Request("POST", self._url, headers=_merged(headers, self._headers), content=body)

    def _with_query(self, arguments: Json) -> httpx2.URL:
        params = self._url.params
        for name, value in arguments.items():
            if name in self._url.params:
                raise ToolFailed(f"{self.name} takes no argument {name!r}")
            match value:
                case None:
                    continue
                case bool():
                    params = params.set(name, "true" if value else "false")
                case str() | int() | float():
                    params = params.set(name, value)
                case _:
                    raise ToolFailed(f"{self.name} takes text, numbers and booleans only; {name!r} is none")
        try:
            return self._url.copy_with(params=params)
        except httpx2.InvalidURL:
            raise ToolFailed(f"the arguments of {self.name} are too long for a query") from None

    async def _ask(self, request: httpx2.Request) -> str:
        transport = GuardedTransport(private=self._target.private, verify=self._verify, resolve=self._resolve)
        timeout = httpx2.Timeout(None, connect=_CONNECT_SECONDS)
        async with httpx2.AsyncClient(transport=transport, trust_env=False, timeout=timeout) as client:
            for _ in range(MAX_REDIRECTS + 1):
                response = await client.send(request, stream=True)
                try:
                    if response.status_code not in _REDIRECTS:
                        return await self._content(response)
                    request = self._redirected(request, response)
                finally:
                    await response.aclose()
        raise ToolFailed(f"{self.name} redirected more than {MAX_REDIRECTS} times")

    async def _content(self, response: httpx2.Response) -> str:
        """The body, counted as it comes, decompressed: what is too large is never held."""
        if not response.is_success:
            raise ToolFailed(f"{self.name} answered {response.status_code}")
        body = bytearray()
        async for chunk in response.aiter_bytes():
            body += chunk
            if len(body) > self._target.max_bytes:
                raise ToolFailed(f"the answer of {self.name} is larger than {self._target.max_bytes:,} bytes")
        return body.decode("utf-8", "replace")

    def _redirected(self, request: httpx2.Request, response: httpx2.Response) -> httpx2.Request:
        """The next request, if the operator lets it go there. 301, 302 and 303 make it a GET, as in browsers."""
        try:
            url = request.url.join(response.headers.get("location", "")).copy_with(fragment=None)
        except (httpx2.InvalidURL, ValueError):
            url = httpx2.URL()
        if "location" not in response.headers or not self._may_go(request.url, url):
            raise ToolFailed(f"{self.name} redirected to where it must not ({response.status_code})")
        headers = httpx2.Headers(request.headers)
        for name in ("Host", *(self._headers if not self._is_own(url) else ())):
            headers.pop(name, None)
        if response.status_code in _KEEPING:
            return httpx2.Request(request.method, url, headers=headers, content=request.content)
        for name in ("Content-Length", "Content-Type"):
            headers.pop(name, None)
        return httpx2.Request("GET", url, headers=headers)

    def _may_go(self, before: httpx2.URL, url: httpx2.URL) -> bool:
        if url.scheme not in _PORTS or url.userinfo or (before.scheme == "https" and url.scheme == "http"):
            return False
        return self._is_own(url) or url.netloc.decode("ascii") in self._target.redirect_hosts

    def _is_own(self, url: httpx2.URL) -> bool:
        """Whether this is the tool's own origin; the same host on `https` instead of `http` is, too."""
        own = self._url
        if url.host != own.host:
            return False
        to_tls = own.scheme == "http" and own.port is None and url.scheme == "https" and url.port is None
        return to_tls or (url.scheme, _port(url)) == (own.scheme, _port(own))


def http_tools(targets: Mapping[str, HttpToolTarget]) -> list[HttpTool]:
    """The tools of the settings. Raises `ValueError` that names one whose credentials are missing."""
    if not targets:
        return []
    verify = httpx2.create_ssl_context()
    return [HttpTool(name, target, verify=verify) for name, target in targets.items()]


def _merged(headers: Mapping[str, str], own: Mapping[str, str]) -> httpx2.Headers:
    """The operator's replace ours of the same name, whatever its case."""
    merged = httpx2.Headers(headers)
    merged.update(own)
    return merged


def _port(url: httpx2.URL) -> int:
    return url.port or _PORTS[url.scheme]
