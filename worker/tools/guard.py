"""Where an HTTP tool may connect to: not into the worker's own network, unless the operator says so.

A name is looked up once, all its addresses are checked, and the connection goes to exactly one of those: a name that
answers a public address to the check and 127.0.0.1 to the connection (DNS rebinding) gains nothing. TLS still checks
the certificate against the name, and `Host` still says it.

The ranges stand here rather than in `ipaddress`, whose lists differ between patch releases of Python. Addresses inside
addresses (IPv4-mapped, NAT64, 6to4) are judged by what they hold.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable, Sequence
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final

import httpx2

#: From a host and a port to addresses, best first. Raises `OSError` where there is none.
Resolve = Callable[[str, int], Awaitable[Sequence[str]]]

#: Reached only by tools with `private: true`.
_PRIVATE: Final = {
    ip_network(network): kind
    for network, kind in {
        "127.0.0.0/8": "loopback",
        "::1/128": "loopback",
        "10.0.0.0/8": "private",
        "172.16.0.0/12": "private",
        "192.168.0.0/16": "private",
        "fc00::/7": "private",
        "100.64.0.0/10": "shared (carrier-grade NAT)",
    }.items()
}

#: Reached by no tool. The single addresses are where clouds keep the credentials of a machine.
_NEVER: Final = {
    ip_network(network): kind
    for network, kind in {
        "169.254.0.0/16": "link-local",
        "fe80::/10": "link-local",
        "100.100.100.200/32": "metadata",
        "168.63.129.16/32": "metadata",
        "fd00:ec2::/32": "metadata",
        "fd20:ce::/32": "metadata",
        "0.0.0.0/8": "unspecified",
        "::/128": "unspecified",
        "192.0.0.0/24": "reserved",
        "192.0.2.0/24": "documentation",
        "192.88.99.0/24": "reserved",
        "198.18.0.0/15": "benchmarking",
        "198.51.100.0/24": "documentation",
        "203.0.113.0/24": "documentation",
        "224.0.0.0/4": "multicast",
        "240.0.0.0/4": "reserved",
        "ff00::/8": "multicast",
        "fec0::/10": "site-local",
        "64:ff9b:1::/48": "reserved",  # NAT64 of a site: where the IPv4 address stands is the site's choice
        "2001::/23": "reserved",  # Teredo and the like
        "2001:db8::/32": "documentation",
        "3fff::/20": "documentation",
    }.items()
}

#: IPv6 networks whose addresses hold an IPv4 address, and how many bits stand behind it.
_HOLDING_IPV4: Final = {
    IPv6Network("::ffff:0:0/96"): 0,  # IPv4-mapped
    IPv6Network("::ffff:0:0:0/96"): 0,  # IPv4-translated
    IPv6Network("64:ff9b::/96"): 0,  # NAT64
    IPv6Network("2002::/16"): 80,  # 6to4
}

#: All of IPv6 that is handed out to the public.
_PUBLIC_IPV6: Final = IPv6Network("2000::/3")


class AddressRefused(Exception):
    """A host is, or may be, something that this tool must not reach. `str()` names host, address and kind."""


def refused(address: str, *, private: bool) -> str | None:
    """What kind of address this is, if a tool must not connect to it; `None` if it may."""
    ip = _held(ip_address(address))
    for network, kind in _NEVER.items():
        if ip in network:
            return kind
    for network, kind in _PRIVATE.items():
        if ip in network:
            return None if private else kind
    if isinstance(ip, IPv6Address) and ip not in _PUBLIC_IPV6:
        return "reserved"
    return None


async def resolve(host: str, port: int) -> list[str]:
    """What the system's resolver says."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


class GuardedTransport(httpx2.AsyncBaseTransport):
    """Connects to checked addresses only, one connection a request.

    A connection that was kept could be closed by the server in the very moment it is used again, and nobody would know
    whether the call was made; and its certificate was that of the first name at this address, not of every one. Proxies
    of the environment are not used: they would do the look-up, unchecked.

    Raises `AddressRefused`, else what httpx2 raises.
    """

    def __init__(
        self,
        *,
        private: bool,
        verify: ssl.SSLContext,
        resolve: Resolve = resolve,
        inner: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        self._private = private
        self._resolve = resolve
        self._inner = inner or httpx2.AsyncHTTPTransport(
            verify=verify, limits=httpx2.Limits(max_keepalive_connections=0)
        )

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        host = request.url.raw_host.decode("ascii")
        port = request.url.port or (443 if request.url.scheme == "https" else 80)
        failure: httpx2.TransportError | None = None
        for address in await self._addresses(host, port):
            pinned = httpx2.Request(
                request.method,
                request.url.copy_with(host=address),
                headers=request.headers,  # holds `Host` already
                stream=request.stream,
                extensions=request.extensions | {"sni_hostname": host},
            )
            try:
                return await self._inner.handle_async_request(pinned)
            except (httpx2.ConnectError, httpx2.ConnectTimeout) as exc:  # nothing was sent yet
                failure = exc
        raise failure or httpx2.ConnectError("the name has no address")

    async def aclose(self) -> None:
        await self._inner.aclose()

    async def _addresses(self, host: str, port: int) -> Sequence[str]:
        """All addresses of the host, once each of them has been checked: one bad one, and the name is not trusted."""
        name = host.rstrip(".").lower()
        if not self._private and (name == "localhost" or name.endswith(".localhost")):
            raise AddressRefused(f"{host} is loopback")
        try:
            addresses = await self._resolve(host, port)
        except (OSError, UnicodeError) as exc:
            raise httpx2.ConnectError(f"the name cannot be looked up ({type(exc).__name__})") from exc
        for address in addresses:
            if (kind := refused(address, private=self._private)) is not None:
                raise AddressRefused(f"{host} is {address}, which is {kind}")
        return addresses


def _held(ip: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    """The IPv4 address inside, where there is one."""
    if isinstance(ip, IPv6Address):
        for network, behind_bits in _HOLDING_IPV4.items():
            if ip in network:
                return IPv4Address((int(ip) >> behind_bits) & 0xFFFF_FFFF)
    return ip
