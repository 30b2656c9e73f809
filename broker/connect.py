"""From `LEGATO_REDIS_URL` to where commands go: one server, a Sentinel group or a cluster.

    redis://[user:password@]host:port/db     rediss://… (TLS)     unix:///path/to/socket?db=0
    sentinel://[user:password@]host:port,host:port/service?db=0      sentinels://… (TLS)
    cluster://[user:password@]host:port,host:port                    clusters://… (TLS)

Two profiles, said here because redis-py's defaults are wrong for us in both directions:

* *pipelines* (all scripts, subscriptions, blocking pops): `broker.wire`, which never sends anything twice by itself.
* *commands* (listings, counters, scans): redis-py, a pool that makes callers wait instead of failing when all of its
  connections are busy, a time-out of our own, and one retry. Every one of these calls may be repeated.

redis-py's own defaults would re-send a write up to ten times, give up blocking reads after 5 s and run dry at 100
connections. `legacy_responses=False` gives one reply shape whatever the protocol version.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from typing import Any, Protocol
from urllib.parse import SplitResult, parse_qs, unquote, urlsplit

from redis.asyncio import (
    BlockingConnectionPool,
    Redis,
    RedisCluster,
    Sentinel,
    SSLConnection,
    UnixDomainSocketConnection,
)
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff
from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    RedisClusterException,
    RedisError,
    ResponseError,
)

from broker.errors import StoreError, StoreUnavailable, StoreUnusable
from broker.settings import Settings
from broker.wire import TRANSIENT, Address, Credentials, StoreReplyError

_TLS_OPTIONS = ("ssl_ca_certs", "ssl_cert_reqs", "ssl_certfile", "ssl_keyfile")
_SCHEMES = ("redis", "rediss", "unix", "sentinel", "sentinels", "cluster", "clusters")


#: What redis-py raises when a server is away: not all of it is a `RedisError`, and on a connection that is being reset
#: the loop's own errors come through (`RuntimeError`: the handler is closed; `AttributeError`: the stream is None).
FAILURES = (RedisError, RedisClusterException, OSError, TimeoutError, RuntimeError, AttributeError)


class Topology(Protocol):
    """Which server serves a key, and a client for commands."""

    credentials: Credentials
    commands: Redis | RedisCluster

    async def locate(self, key: str) -> Address:
        """The primary that serves `key`, as far as is known."""
        ...

    async def refresh(self) -> None:
        """Ask anew where things are: an answer showed that what is known is wrong."""
        ...

    def forget(self) -> None:
        """A connection broke: what is known of the primary may be wrong."""
        ...

    async def primaries(self) -> list[Address]:
        """Every server that holds data of its own."""
        ...

    def scan(self, pattern: str) -> AsyncIterator[bytes]:
        """Every key that matches, on every primary, in small steps."""
        ...

    async def aclose(self) -> None: ...


def connect(url: str, settings: Settings) -> Topology:
    """The topology that a URL names; nothing is contacted yet. Raises `StoreUnusable` for a URL that is none."""
    parts = checked(url)
    query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
    number = parts.path.strip("/") if parts.scheme in ("redis", "rediss") else ""
    try:
        database = int(number or query.get("db", "0"))
    except ValueError as exc:
        raise StoreUnusable("LEGATO_REDIS_URL names a database that is no number") from exc
    userinfo, _, hosts = parts.netloc.rpartition("@")
    username, _, password = userinfo.partition(":")
    if userinfo and ":" not in userinfo:
        username, password = "", userinfo
    credentials = Credentials(
        username=unquote(username) or None,
        password=unquote(password) if password else None,
        database=database,
        tls=_tls(query) if parts.scheme in ("rediss", "sentinels", "clusters") else None,
    )
    tls = {name: query[name] for name in _TLS_OPTIONS if name in query}
    match parts.scheme:
        case "unix":
            return _Single(Address(path=unquote(parts.path)), credentials, settings, tls)
        case "redis" | "rediss":
            return _Single(_addresses(hosts)[0], credentials, settings, tls)
        case "sentinel" | "sentinels":
            service = parts.path.strip("/") or "mymaster"
            return _Sentinels(_addresses(hosts, default_port=26379), service, credentials, settings, tls)
        case _:
            return _Cluster(_addresses(hosts), credentials, settings, tls)


def checked(url: str) -> SplitResult:
    """The parts of a URL. Raises `StoreUnusable` for one of an unknown scheme."""
    parts = urlsplit(url)
    if parts.scheme not in _SCHEMES:
        said = f"it starts with {parts.scheme}://" if "://" in url else "it has no scheme"
        raise StoreUnusable(f"LEGATO_REDIS_URL must start with one of {', '.join(s + '://' for s in _SCHEMES)}; {said}")
    return parts


def without_secrets(url: str) -> str:
    """A URL as it may be logged: scheme and hosts, no credentials, no query."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def translate(exc: Exception) -> StoreError:
    """The exception of ours for one of redis-py's."""
    match exc:
        case AuthenticationError() | AuthorizationError():
            return StoreUnusable("Redis refuses our credentials")
        case ResponseError() if type(exc) is ResponseError and str(exc).partition(" ")[0] not in TRANSIENT:
            return StoreReplyError(str(exc))
        case _:  # connection and time-out errors, and the error replies that redis-py has classes for, all pass
            return StoreUnavailable(f"Redis is not available ({type(exc).__name__})")


class _Single:
    """One server, or one address that always leads to the primary."""

    def __init__(self, address: Address, credentials: Credentials, settings: Settings, options: dict[str, str]) -> None:
        self.credentials = credentials
        self._address = address
        kwargs = _profile(credentials, settings)
        if address.path:
            kwargs |= {"connection_class": UnixDomainSocketConnection, "path": address.path}
        else:
            kwargs |= {"host": address.host, "port": address.port}
        if credentials.tls is not None:
            kwargs |= {"connection_class": SSLConnection} | options
        pool = BlockingConnectionPool(
            max_connections=settings.store_connections, timeout=settings.store_timeout_seconds, **kwargs
        )
        self.commands: Redis | RedisCluster = Redis.from_pool(pool)

    async def locate(self, key: str) -> Address:
        return self._address

    async def refresh(self) -> None:
        return None

    def forget(self) -> None:
        return None

    async def primaries(self) -> list[Address]:
        return [self._address]

    def scan(self, pattern: str) -> AsyncIterator[bytes]:
        return self.commands.scan_iter(match=pattern, count=200)

    async def aclose(self) -> None:
        await self.commands.aclose()


class _Sentinels:
    """A primary that Sentinels name; it changes at a failover."""

    def __init__(
        self,
        sentinels: list[Address],
        service: str,
        credentials: Credentials,
        settings: Settings,
        options: dict[str, str],
    ) -> None:
        self.credentials = credentials
        self._service = service
        self._primary: Address | None = None
        kwargs = _profile(credentials, settings)
        if credentials.tls is not None:
            kwargs |= {"ssl": True} | options
        self._sentinel = Sentinel(  # type: ignore[no-untyped-call]
            [(address.host, address.port) for address in sentinels],
            sentinel_kwargs={"socket_timeout": settings.store_timeout_seconds, "legacy_responses": False},
        )
        self.commands: Redis | RedisCluster = self._sentinel.master_for(service, **kwargs)

    async def locate(self, key: str) -> Address:
        if self._primary is None:
            try:
                host, port = await self._sentinel.discover_master(self._service)
            except FAILURES as exc:
                raise StoreUnavailable("no Sentinel names a primary") from exc
            self._primary = Address(host=host, port=port)
        return self._primary

    async def refresh(self) -> None:
        self._primary = None

    def forget(self) -> None:
        self._primary = None

    async def primaries(self) -> list[Address]:
        return [await self.locate("")]

    def scan(self, pattern: str) -> AsyncIterator[bytes]:
        return self.commands.scan_iter(match=pattern, count=200)

    async def aclose(self) -> None:
        await self.commands.aclose()
        for sentinel in self._sentinel.sentinels:
            await sentinel.aclose()


class _Cluster:
    """Slots over several primaries."""

    def __init__(
        self, nodes: list[Address], credentials: Credentials, settings: Settings, options: dict[str, str]
    ) -> None:
        self.credentials = credentials
        kwargs = _profile(credentials, settings)
        del kwargs["db"]
        if credentials.tls is not None:
            kwargs |= {"ssl": True} | options
        self._cluster = RedisCluster(
            startup_nodes=[ClusterNode(node.host, node.port) for node in nodes], require_full_coverage=False, **kwargs
        )
        self.commands: Redis | RedisCluster = self._cluster

    async def locate(self, key: str) -> Address:
        try:
            await self._cluster.initialize()
            node = self._cluster.get_node_from_key(key)
        except FAILURES as exc:
            raise StoreUnavailable("the cluster does not say who serves the key") from exc
        if node is None:
            raise StoreUnavailable("no node of the cluster serves the key")
        return Address(host=node.host, port=int(node.port))

    async def refresh(self) -> None:
        try:
            await self._cluster.nodes_manager.initialize()
        except FAILURES as exc:
            raise StoreUnavailable("no node of the cluster answers") from exc

    def forget(self) -> None:
        return None

    async def primaries(self) -> list[Address]:
        try:
            await self._cluster.initialize()
            return [Address(host=node.host, port=int(node.port)) for node in self._cluster.get_primaries()]
        except FAILURES as exc:
            raise StoreUnavailable("no node of the cluster answers") from exc

    def scan(self, pattern: str) -> AsyncIterator[bytes]:
        return self._cluster.scan_iter(match=pattern, count=200, target_nodes=RedisCluster.PRIMARIES)

    async def aclose(self) -> None:
        await self._cluster.aclose()


def _profile(credentials: Credentials, settings: Settings) -> dict[str, Any]:
    return {
        "username": credentials.username,
        "password": credentials.password,
        "db": credentials.database,
        "socket_timeout": settings.store_timeout_seconds,
        "socket_connect_timeout": min(2.0, settings.store_timeout_seconds),
        "retry": Retry(ExponentialBackoff(cap=0.2, base=0.02), 1),
        "legacy_responses": False,
        "client_name": "legato",
    }


def _tls(query: dict[str, str]) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=query.get("ssl_ca_certs"))
    if query.get("ssl_cert_reqs") == "none":
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if "ssl_certfile" in query:
        context.load_cert_chain(query["ssl_certfile"], query.get("ssl_keyfile"))
    return context


def _addresses(hosts: str, *, default_port: int = 6379) -> list[Address]:
    found = []
    for item in hosts.split(","):
        parts = urlsplit(f"//{item}")
        try:
            found.append(Address(host=parts.hostname or "localhost", port=parts.port or default_port))
        except ValueError as exc:
            raise StoreUnusable(
                f"LEGATO_REDIS_URL names a port that is no number: {item.rpartition('@')[2]!r}"
            ) from exc
    return found
