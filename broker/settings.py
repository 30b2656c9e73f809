"""Every setting, an environment variable `LEGATO_…` each, checked at start.

Durations end in `_seconds` or `_ms`, sizes in `_bytes`. `docs/settings.md` is generated from this file.
"""

from __future__ import annotations

import json
import re
from typing import Annotated, Final, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

#: Names of providers that are not to be taken by a server of `LEGATO_OPENAI_COMPATIBLE`.
BUILT_IN_PROVIDERS: Final = frozenset({"sim", "openai", "openai_responses", "anthropic"})

_SERVER_NAME: Final = re.compile(r"[a-z0-9_-]{1,32}")


class CompatibleServer(BaseModel):
    """A server that speaks OpenAI's chat completions: where it is, and which variable holds its key."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    base_url: str
    api_key_env: str | None = Field(None, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")

    @field_validator("base_url")
    @classmethod
    def _http(cls, value: str) -> str:
        try:
            url = urlsplit(value)
            host = url.hostname if url.port != 0 else None
        except ValueError:
            host = None
        if not host or url.scheme not in {"http", "https"} or any(char.isspace() for char in value):
            raise ValueError("not an http:// or https:// URL")
        if "@" in url.netloc:
            raise ValueError("must not hold credentials; name the variable of the key in api_key_env")
        return value


class Settings(BaseSettings):
    """Settings of all processes; each reads the ones it needs."""

    model_config = SettingsConfigDict(env_prefix="LEGATO_", extra="ignore", frozen=True)

    redis_url: str | None = Field(
        None,
        description="Where the store is: redis://, rediss://, unix://, sentinel://host:port,…/service, "
        "cluster://host:port,…. `legato dev` and `legato demo` start an embedded server when it is not set.",
    )
    prefix: str = Field("lg", pattern=r"^[A-Za-z0-9_.-]{1,32}$", description="First part of every key in Redis.")
    providers: Annotated[tuple[str, ...], NoDecode] = Field(
        ("openai", "anthropic"),
        description="Names of the providers that requests may use, separated by commas. `legato dev` adds `sim`.",
    )
    openai_compatible: Annotated[dict[str, CompatibleServer], NoDecode] = Field(
        {},
        description="More servers that speak OpenAI's chat completions, each a provider by its name (which "
        '`LEGATO_PROVIDERS` must list, too), as JSON: `{"name": {"base_url": "https://…/v1", "api_key_env": '
        '"NAME_OF_A_VARIABLE"}}`; `null` as `api_key_env` where no key is needed.',
    )

    lease_seconds: float = Field(
        10.0, ge=1, le=300, description="How long a worker may be silent before its generation is taken over."
    )
    worker_concurrency: int = Field(100, ge=1, le=10_000, description="Generations that one worker runs at once.")
    max_queued: int = Field(100_000, ge=1, description="Jobs that may wait; more are refused with 429.")
    max_queue_seconds: float = Field(
        86_400, gt=0, description="A job that waited longer fails with `timeout` when its turn comes."
    )
    timeout_seconds: float = Field(
        3600, gt=0, description="Longest generation, from its first claim; a request may ask for less or more."
    )
    stall_seconds: float = Field(
        120, gt=0, description="Longest silence of a provider; a request may ask for less or more."
    )
    retry_base_seconds: float = Field(
        0.5, gt=0, description="Delay before the second attempt, doubled for each later one, with full jitter."
    )
    retry_cap_seconds: float = Field(30.0, gt=0, description="Longest delay between attempts, but for Retry-After.")
    heal_seconds: float = Field(
        300.0, gt=0, description="How long a worker keeps an ended log, to put back what the store forgets of it."
    )
    heal_bytes: int = Field(
        134_217_728, ge=0, description="Memory that a worker spends on ended logs; the oldest are forgotten first."
    )
    sweep_seconds: float = Field(
        60.0, gt=0, description="A worker looks through all records about this often for jobs the queue has lost."
    )

    store_timeout_seconds: float = Field(5.0, gt=0, description="Longest wait for one answer of Redis.")
    wait_replicas: int = Field(
        0, ge=0, description="Replicas that must have a job before it is accepted (WAIT); 0 does not wait."
    )
    wait_aof: bool = Field(False, description="Wait until the append-only file is synced, too (WAITAOF, Redis 7.2).")
    wait_ms: int = Field(1000, ge=1, description="Longest wait for replicas and the file; then 503, and try again.")
    store_connections: int = Field(64, ge=2, description="Connections a process keeps for commands.")

    max_body_bytes: int = Field(1_048_576, ge=1024, description="Largest request body; larger ones get 413.")
    ping_seconds: float = Field(15.0, gt=0, description="Silence after which a stream gets a keepalive.")
    stream_max_age_seconds: float = Field(
        3600.0, gt=0, description="A stream is closed at about this age (jittered); its reader comes back by itself."
    )
    send_timeout_seconds: float = Field(
        60.0, gt=0, description="A viewer that takes nothing for this long is cut; it may come back."
    )
    drain_seconds: float = Field(
        10.0,
        ge=0,
        description="At SIGTERM a worker lets running generations go on this long, then hands them over; an API "
        "spreads the ends of its streams over as much of it as 3 s.",
    )
    unconfirmed_seconds: float = Field(
        3600.0, gt=0, description="Life of a submit whose client and server both died half-way."
    )
    tombstone_seconds: float = Field(
        604_800, gt=0, description="How long an expired or deleted id answers 410 (about 100 B each)."
    )
    idempotency_seconds: float = Field(86_400, gt=0, description="How long an Idempotency-Key is remembered.")
    cors_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        ("*",), description="Origins that browsers may call from, separated by commas; * for any."
    )
    log_level: str = Field("info", pattern="^(debug|info|warning|error)$", description="Least severity that is logged.")

    @field_validator("providers", "cors_origins", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(name.strip() for name in value.split(",") if name.strip())
        return value

    @field_validator("openai_compatible", mode="before")
    @classmethod
    def _servers(cls, value: object) -> object:
        if isinstance(value, str):
            try:
                value = json.loads(value)
            except ValueError:
                raise ValueError("not JSON") from None
        if not isinstance(value, dict):
            raise ValueError('not an object {"name": {"base_url": …, "api_key_env": …}}')  # noqa: TRY004
        return {name: _server(name, server) for name, server in value.items()}

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.retry_base_seconds > self.retry_cap_seconds:
            raise ValueError("LEGATO_RETRY_BASE_SECONDS must not exceed LEGATO_RETRY_CAP_SECONDS")
        return self

    @property
    def lease_ms(self) -> int:
        return round(self.lease_seconds * 1000)


def _server(name: object, server: object) -> CompatibleServer:
    """One server of `LEGATO_OPENAI_COMPATIBLE`. Raises `ValueError` that names what is wrong, and repeats no value."""
    if not isinstance(name, str) or not _SERVER_NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no name: 1 to 32 of a-z, 0-9, _ and -")
    if name in BUILT_IN_PROVIDERS:
        raise ValueError(f"{name!r} is the name of a provider that is built in")
    try:
        return CompatibleServer.model_validate(server)
    except ValidationError as exc:
        wrong = exc.errors(include_url=False, include_input=False)
        where = ((".".join([name, *map(str, item["loc"])]), item["msg"]) for item in wrong)
        raise ValueError("; ".join(f"{path}: {message}" for path, message in where)) from None
