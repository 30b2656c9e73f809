"""Ways to the APIs: each API is reached directly and through a proxy of ours. Clients roam between all of them."""

from __future__ import annotations

import random
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from chaos.processes import Api
from chaos.proxy import Proxy

_LOOPBACK: Final = "127.0.0.1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """Where one connection goes to, and what it asks for there."""

    host: str
    port: int
    authority: str  # the Host header
    tls: ssl.SSLContext | None
    server_name: str | None  # of TLS
    path: str  # in front of every path
    headers: Mapping[str, str]

    @property
    def url(self) -> str:
        """What paths are put behind."""
        return f"{'https' if self.tls else 'http'}://{self.host}:{self.port}{self.path}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Door:
    """One API, and the proxy in front of it."""

    proxy: Proxy
    port: int
    host: str = _LOOPBACK
    authority: str = "chaos"
    tls: ssl.SSLContext | None = None
    path: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)  # of every request
    api: Api | None = None  # where it is a process of ours

    @property
    def died_lately(self) -> bool:
        """Whether its process is known to be dead, or to have been a moment ago."""
        return self.api is not None and self.api.died_lately

    def route(self, *, proxied: bool) -> Route:
        """The way through the proxy, or around it."""
        return Route(
            host=_LOOPBACK if proxied else self.host,
            port=self.proxy.port if proxied else self.port,
            authority=self.authority,
            tls=self.tls,
            server_name=self.host if self.tls else None,
            path=self.path,
            headers=self.headers,
        )


def pick(doors: list[Door], draw: random.Random, *, proxied: float) -> Route:
    """A way to any API, through its proxy with that probability."""
    return draw.choice(doors).route(proxied=draw.random() < proxied)
