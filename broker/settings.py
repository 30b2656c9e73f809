"""Every setting, an environment variable `LEGATO_…` each, checked at start.

Durations end in `_seconds` or `_ms`, sizes in `_bytes`. `docs/settings.md` is generated from this file.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from broker.declared import (
    BUILT_IN_PROVIDERS,
    CompatibleServer,
    HttpToolTarget,
    Price,
    ProviderLimits,
    WebhookEndpoint,
    checked,
    compatible_server,
    http_tool,
    json_object,
    webhook_endpoint,
)

#: Ten years: what Redis is told as a time to live has a millisecond at least, and fits into its numbers.
_LONGEST_SECONDS: Final = 315_360_000


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
        '"NAME_OF_A_VARIABLE"}}`; `null` as `api_key_env` where no key is needed. '
        "[More fields, and entries for well-known servers](how-to/write-a-provider.md#compatible-servers).",
    )
    openai_dialect_models: Annotated[dict[str, str], NoDecode] = Field(
        {},
        description="What the `model` of a request on `/openai/v1` stands for, as JSON; the first pattern that matches "
        'counts: `{"gpt-*": "openai_responses", "fast": "sim/sim-1"}`, a provider (which gets the name as it is) or a '
        "provider and its model. Besides, `provider/model` is always understood.",
    )
    openai_dialect_provider: str | None = Field(
        None,
        description="The provider of every other `model` on `/openai/v1`; the first of `LEGATO_PROVIDERS` where it is "
        "not set.",
    )
    continue_models: Annotated[dict[str, tuple[str, ...]], NoDecode] = Field(
        {},
        description="Models that go on from a text which is given to them as their own, for requests with "
        '`"recovery": "continue"`: patterns by provider, as JSON: `{"anthropic": ["claude-3-*"], "name": ["*"]}`. Only '
        "`anthropic` and servers of `LEGATO_OPENAI_COMPATIBLE` with a `continue_style` can be named.",
    )
    provider_limits: Annotated[dict[str, ProviderLimits], NoDecode] = Field(
        {},
        description="What all workers together ask of a provider at most, as JSON: "
        '`{"openai": {"concurrency": 200, "requests_per_minute": 5000, "tokens_per_minute": 2000000}}`, each part '
        "optional. After a pause a whole minute's worth may go at once, as with the providers' own quotas. "
        'Two providers with one key: `{"openai_responses": {"shared_with": "openai"}}` '
        "counts the calls of both under `openai`.",
    )
    breaker_window_seconds: float = Field(
        30.0, ge=0.1, le=3600, description="A provider's health is the calls that ended within so long."
    )
    breaker_min_calls: int = Field(10, ge=1, description="Fewer ended calls than this say nothing of its health.")
    breaker_failure_ratio: float = Field(
        0.5, gt=0, le=1, description="With this share of failures a provider is left alone for a while."
    )
    breaker_open_seconds: float = Field(
        10.0, ge=0.1, le=3600, description="For how long; doubled each time that it fails again, up to 8 times as long."
    )
    retry_ratio: float = Field(
        0.2, ge=0, description="Retries that a provider gets at most, as a share of its first calls of the last minute."
    )
    retry_floor: int = Field(10, ge=0, description="Retries a minute that it gets beside that.")

    http_tools: Annotated[dict[str, HttpToolTarget], NoDecode] = Field(
        {},
        description="Tools that workers call over HTTP, as JSON: "
        '`{"name": {"url": "https://…", "header_env": {"Authorization": "NAME_OF_A_VARIABLE"}}}`; '
        "[all fields](how-to/run-tools.md#http-tools).",
    )

    webhooks: Annotated[dict[str, WebhookEndpoint], NoDecode] = Field(
        {},
        description="Endpoints that workers tell how generations ended, as JSON: "
        '`{"name": {"url": "https://…", "secret_env": "NAME_OF_A_VARIABLE"}}`; '
        "[all fields](how-to/webhooks.md#endpoints). API and workers need the same.",
    )
    webhook_timeout_seconds: float = Field(15.0, gt=0, le=300, description="Longest wait for an endpoint's answer.")
    webhook_attempts: int = Field(
        14, ge=1, le=100, description="Tries of a delivery, about a day and a half; then it is dead."
    )
    webhook_base_seconds: float = Field(
        5.0, gt=0, description="Delay before the second try, times three for each later one, half of it random."
    )
    webhook_cap_seconds: float = Field(21_600, gt=0, description="Longest delay between tries.")
    webhook_dead_most: int = Field(10_000, ge=1, description="Dead deliveries that are listed; the oldest fall off.")

    lease_seconds: float = Field(
        10.0, ge=1, le=300, description="How long a worker may be silent before its generation is taken over."
    )
    worker_concurrency: int = Field(100, ge=1, le=10_000, description="Generations that one worker runs at once.")
    max_queued: int = Field(100_000, ge=1, description="Jobs that may wait; more are refused with 429.")
    max_thread_queue: int = Field(
        100, ge=1, le=1000, description="Generations of one thread that have not ended; more are refused with 429."
    )
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
    tool_seconds: float = Field(60.0, gt=0, description="Longest run of one tool in a worker.")
    tenant_tokens_per_day: int | None = Field(
        None, ge=1, description="Output tokens that one tenant may have a day (UTC); then `failed/budget_exceeded`."
    )
    prices: Annotated[dict[str, Price], NoDecode] = Field(
        {},
        description="What models cost per million tokens, for the facts of a generation, as JSON; the first pattern "
        'that matches counts: `{"openai/gpt-5*": {"input": 1.25, "cached_input": 0.125, "output": 10}}`.',
    )
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
    max_image_bytes: int = Field(
        5_242_880, ge=1024, description="Largest image inside a request, decoded; the limit of the body counts, too."
    )
    ping_seconds: float = Field(15.0, gt=0, description="Silence after which a stream gets a keepalive.")
    stream_max_age_seconds: float = Field(
        3600.0, gt=0, description="A stream is closed at about this age (jittered); its reader comes back by itself."
    )
    max_multiplexed: int = Field(
        50, ge=1, le=100, description="Generations and threads that one connection to `/v1/events` may carry."
    )
    websocket_window: int = Field(
        256, ge=1, le=1024, description="Events that a WebSocket may have unacknowledged, where it does not say."
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
        3600.0, ge=1, le=_LONGEST_SECONDS, description="Life of a submit whose client and server both died half-way."
    )
    tombstone_seconds: float = Field(
        604_800,
        ge=1,
        le=_LONGEST_SECONDS,
        description="How long an expired or deleted id answers 410 (about 100 B each).",
    )
    idempotency_seconds: float = Field(
        86_400, ge=1, le=_LONGEST_SECONDS, description="How long an Idempotency-Key is remembered."
    )
    ai_sdk_defaults: Annotated[dict[str, Any], NoDecode] = Field(
        {},
        description="Fields of a submit that a chat of the AI SDK has unless its request says something else, and "
        '`system`, as JSON: `{"provider": "openai", "model": "gpt-5-mini", "system": "Be brief."}` '
        "([how-to](how-to/use-ai-sdk.md)).",
    )
    ai_sdk_replay_seconds: float = Field(
        60.0, ge=0, description="How long after its end an answer is still replayed to a chat that resumes."
    )
    ai_sdk_reset: Literal["reset-step", "cut"] = Field(
        "reset-step",
        description="How an AI SDK client is told of a `reset` in mid-stream: by a chunk that version 7 knows, or by a "
        "cut, behind which version 6 and 7 ask for the whole answer again.",
    )
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

    @field_validator("prices", mode="before")
    @classmethod
    def _price_table(cls, value: object) -> object:
        prices = json_object(value, '{"provider/model": {"input": …, "output": …}}')
        return {pattern: checked(Price, pattern, price) for pattern, price in prices.items()}

    @field_validator("openai_compatible", mode="before")
    @classmethod
    def _servers(cls, value: object) -> object:
        servers = json_object(value, '{"name": {"base_url": …, "api_key_env": …}}')
        return {name: compatible_server(name, server) for name, server in servers.items()}

    @field_validator("provider_limits", mode="before")
    @classmethod
    def _limits(cls, value: object, info: ValidationInfo) -> object:
        limits = json_object(value, '{"name": {"concurrency": …, "requests_per_minute": …, "tokens_per_minute": …}}')
        if info.data.keys() >= {
            "openai_compatible",
            "providers",
        }:  # not there when wrong themselves, which is said then
            known = {*BUILT_IN_PROVIDERS, *info.data["openai_compatible"], *info.data["providers"]}
            if unknown := [name for name in limits if name not in known]:
                there_are = ", ".join(sorted(known))
                raise ValueError(f"unknown provider {', '.join(map(repr, unknown))}; there are {there_are}")
        found = {str(name): checked(ProviderLimits, name, limit) for name, limit in limits.items()}
        shared = {name: limit.shared_with for name, limit in found.items() if limit.shared_with is not None}
        for name, other in shared.items():
            if other not in found or other in shared:
                raise ValueError(f"{name}.shared_with: {other!r} has no limits of its own here")
        return found

    @field_validator("ai_sdk_defaults", mode="before")
    @classmethod
    def _defaults(cls, value: object) -> object:
        return json_object(value, '{"provider": …, "model": …}')

    @field_validator("http_tools", mode="before")
    @classmethod
    def _http_tools(cls, value: object) -> object:
        tools = json_object(value, '{"name": {"url": …}}')
        return {name: http_tool(name, target) for name, target in tools.items()}

    @field_validator("openai_dialect_models", mode="before")
    @classmethod
    def _dialect_models(cls, value: object) -> object:
        form = '{"pattern": "provider" or "provider/model", …}'
        models = json_object(value, form)
        if not all(isinstance(target, str) and all(target.split("/", 1)) for target in models.values()):
            raise ValueError(f"not an object {form}")
        return models

    @field_validator("webhooks", mode="before")
    @classmethod
    def _webhooks(cls, value: object) -> object:
        endpoints = json_object(value, '{"name": {"url": …, "secret_env": …}}')
        return {name: webhook_endpoint(name, endpoint) for name, endpoint in endpoints.items()}

    @field_validator("continue_models", mode="before")
    @classmethod
    def _patterns(cls, value: object) -> object:
        form = '{"provider": ["pattern", …]}'
        patterns = json_object(value, form)
        for listed in patterns.values():
            if not isinstance(listed, list | tuple) or not all(isinstance(item, str) and item for item in listed):
                raise ValueError(f"not an object {form}")
        return patterns

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.retry_base_seconds > self.retry_cap_seconds:
            raise ValueError("LEGATO_RETRY_BASE_SECONDS must not exceed LEGATO_RETRY_CAP_SECONDS")
        for variable, provider in [
            ("LEGATO_OPENAI_DIALECT_PROVIDER", self.openai_dialect_provider),
            *(("LEGATO_OPENAI_DIALECT_MODELS", target.split("/")[0]) for target in self.openai_dialect_models.values()),
        ]:
            if provider is not None and provider not in self.providers:
                raise ValueError(f"{variable} names {provider!r}, which LEGATO_PROVIDERS does not list")
        return self

    @property
    def lease_ms(self) -> int:
        return round(self.lease_seconds * 1000)
