"""Ways to the APIs: each API has a direct port and one through a proxy of ours. Clients roam between all of them."""

from __future__ import annotations

import random
from dataclasses import dataclass

from chaos.processes import Api
from chaos.proxy import Proxy


@dataclass(frozen=True, slots=True)
class Door:
    """One API, and the proxy in front of it."""

    api: Api
    proxy: Proxy

    def port(self, *, proxied: bool) -> int:
        return self.proxy.port if proxied else self.api.port


def pick(doors: list[Door], draw: random.Random, *, proxied: float) -> int:
    """The port of any API, through its proxy with that probability."""
    return draw.choice(doors).port(proxied=draw.random() < proxied)
