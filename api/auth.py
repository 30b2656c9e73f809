"""Who is asking. With no keys configured there is one tenant, `dev`, and the API listens on loopback only.

Every route asks `authenticate` first, and everything below it takes the tenant as an argument: keys, scopes and stream
tokens come here and change nothing else.
"""

from __future__ import annotations

from ipaddress import ip_address
from typing import Final

from starlette.types import Scope

from broker.errors import LegatoError

#: The one tenant of an open API.
DEV_TENANT: Final = "dev"


def authenticate(scope: Scope) -> str:
    """The tenant of a request."""
    return DEV_TENANT


class OpenToTheWorld(LegatoError):
    """The API has no keys and was told to listen where others can reach it. Cure: listen on 127.0.0.1, behind a
    proxy that knows who may come in."""

    code = "open_to_the_world"


def check_bind(host: str) -> None:
    """Refuse to serve without keys on an address that is not loopback."""
    try:
        loopback = host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        loopback = False
    if not loopback:
        raise OpenToTheWorld(
            f"this version has no API keys, so it listens on loopback only; {host} is not loopback "
            "(use --host 127.0.0.1, and put a proxy that authenticates in front)"
        )
