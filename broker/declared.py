"""What an operator declares as JSON inside a setting: servers, tools, limits, prices. Values, and how they are read.

None of them holds a secret: keys and secret headers are named by the variables that hold them. What is wrong is named
by its place, and no value is repeated.
"""

from __future__ import annotations

import json
import re
from typing import Annotated, Final, Literal, Self, TypeVar
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

#: Names of providers that are not to be taken by a server of `LEGATO_OPENAI_COMPATIBLE`.
BUILT_IN_PROVIDERS: Final = frozenset({"sim", "openai", "openai_responses", "anthropic"})

#: Largest result of a tool that a model is given.
MAX_TOOL_RESULT_BYTES: Final = 262_144

_SERVER_NAME: Final = re.compile(r"[a-z0-9_-]{1,32}")
_TOOL_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
_PLAIN_URL: Final = re.compile(r"https?://[A-Za-z0-9.:\[\]-]+(?:/[A-Za-z0-9._~!$&'()*+,;=:@-]*)*(?:\?[!-\"$-~]*)?")
_ENDPOINT_NAME: Final = re.compile(r"[a-z0-9_-]{1,32}")
_HOST_AND_PORT: Final = re.compile(r"(?:[a-z0-9._-]+|\[[0-9a-f:.]+\])(?::[0-9]{1,5})?")

#: Headers of a call of a tool that the worker, or HTTP itself, sets.
_NOT_FOR_TOOLS: Final = frozenset(
    {
        "accept-encoding",
        "connection",
        "content-length",
        "content-type",
        "cookie",
        "expect",
        "host",
        "idempotency-key",
        "keep-alive",
        "proxy-authorization",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "x-legato-tool",
    }
)

Part = TypeVar("Part", bound=BaseModel)


_Variable = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
_Header = Annotated[str, Field(pattern=r"^[A-Za-z0-9!#$%&'*+.^_`|~-]{1,64}$")]
_Text = Annotated[str, Field(pattern=r"^[ -~]*$")]

#: Headers whose values are secrets wherever they are sent.
_SECRET_HEADERS: Final = frozenset({"authorization", "proxy-authorization", "api-key", "x-api-key", "cookie"})


class CompatibleServer(BaseModel):
    """A server that speaks OpenAI's chat completions: where it is, how it is asked, and where it differs.

    It holds no secret: keys, and headers that are secret, are named by their variables.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    base_url: str
    api_key_env: _Variable | None = None
    #: How the key is sent: `Authorization: Bearer`, an `api-key` header, or not at all.
    auth: Literal["bearer", "api-key", "none"] = "bearer"
    headers: dict[_Header, _Text] = {}
    #: Headers whose values are in variables.
    header_env: dict[_Header, _Variable] = {}
    query: dict[Annotated[str, Field(pattern=r"^[ -~]{1,64}$")], _Text] = {}
    #: What it calls the longest answer; left out: `max_tokens` (OpenAI's own hosts: `max_completion_tokens`).
    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] | None = None
    #: Whether it takes `stream_options`, which ask for usage.
    stream_usage: bool = True
    #: How it is made to go on from a text, for models of `continue_models`: as vLLM is; by a last message of the
    #: assistant; by one that says `prefix`.
    continue_style: Literal["vllm", "prefill", "prefix"] | None = None

    @field_validator("base_url")
    @classmethod
    def _http(cls, value: str) -> str:
        return _http_url(value, secrets="api_key_env")

    @model_validator(mode="after")
    def _one_of_each(self) -> Self:
        if self.auth == "none" and self.api_key_env is not None:
            raise ValueError("auth is none, so there can be no api_key_env")
        if self.auth == "api-key" and self.api_key_env is None:
            raise ValueError("auth is api-key, so api_key_env must name the key's variable")
        literal, secret = ([name.lower() for name in names] for names in (self.headers, self.header_env))
        if wrong := _SECRET_HEADERS & set(literal):
            raise ValueError(f"headers: {min(wrong)} is a secret; name its variable in header_env")
        if {"bearer": "authorization", "api-key": "api-key"}.get(self.auth) in secret:
            raise ValueError(f"header_env: auth is {self.auth}, which sends that header already")
        if len({*literal, *secret}) < len(literal) + len(secret):
            raise ValueError("headers and header_env: a header is there twice")
        return self


class HttpToolTarget(BaseModel):
    """A tool that workers call over HTTP: where it is, what it is sent, how long and how large its answer may be.

    It holds no secret, as a `CompatibleServer` does not.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    url: str
    method: Literal["GET", "POST"] = "POST"
    timeout_seconds: float = Field(10.0, gt=0, le=600)
    max_bytes: int = Field(65_536, ge=1, le=MAX_TOOL_RESULT_BYTES)
    idempotent: bool = False
    headers: dict[_Header, _Text] = {}
    #: Headers whose values are in variables.
    header_env: dict[_Header, _Variable] = {}
    #: It may have a loopback or private address.
    private: bool = False
    #: `host` or `host:port` that it may redirect to, besides the URL's own.
    redirect_hosts: tuple[str, ...] = Field((), strict=False)

    @field_validator("url")
    @classmethod
    def _http(cls, value: str) -> str:
        return _http_url(value, secrets="header_env")

    @field_validator("redirect_hosts")
    @classmethod
    def _hosts(cls, hosts: tuple[str, ...]) -> tuple[str, ...]:
        if wrong := [host for host in hosts if not _HOST_AND_PORT.fullmatch(host.lower())]:
            raise ValueError(f"{wrong[0]!r} is neither host nor host:port")
        return tuple(host.lower() for host in hosts)

    @model_validator(mode="after")
    def _one_of_each(self) -> Self:
        literal, secret = ([name.lower() for name in names] for names in (self.headers, self.header_env))
        if ours := _NOT_FOR_TOOLS & {*literal, *secret}:
            raise ValueError(f"{min(ours)} is a header that cannot be set")
        if wrong := _SECRET_HEADERS & set(literal):
            raise ValueError(f"headers: {min(wrong)} is a secret; name its variable in header_env")
        if len({*literal, *secret}) < len(literal) + len(secret):
            raise ValueError("headers and header_env: a header is there twice")
        return self


class WebhookEndpoint(BaseModel):
    """An endpoint that is told how generations ended: where it is, and of what.

    It holds no secret: the keys it is signed with are named by their variables.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    url: str
    secret_env: _Variable
    #: While a secret is changed: the one before, which signs as well.
    old_secret_env: _Variable | None = None
    events: tuple[Literal["completed", "failed", "cancelled"], ...] = Field(
        ("completed", "failed", "cancelled"), strict=False, min_length=1
    )
    #: It gets the text, too.
    text: bool = False
    #: Only generations whose submit asks for it, by `webhook.url`: this URL, or one below it.
    asked: bool = False
    #: It may have a loopback or private address.
    private: bool = False

    @field_validator("url")
    @classmethod
    def _http(cls, value: str) -> str:
        if "#" in value:
            raise ValueError("must not have a fragment")
        return _http_url(value, secrets="secret_env")

    @model_validator(mode="after")
    def _below(self) -> Self:
        if self.asked and urlsplit(self.url).query:
            raise ValueError("url: an endpoint that is asked for has no query, for URLs below it are meant as well")
        return self

    def covers(self, url: str) -> bool:
        """Whether a submit may ask for this URL. Compared in parts, and nothing that a server might resolve (`..`,
        escapes, backslashes, credentials) is taken."""
        if not self.asked or not _PLAIN_URL.fullmatch(url):
            return False
        own, other = urlsplit(self.url), urlsplit(url)
        if (own.scheme, own.netloc.lower()) != (other.scheme, other.netloc.lower()):
            return False
        below = own.path if own.path.endswith("/") else own.path + "/"
        dots = {".", ".."} & set(other.path.split("/"))
        return not dots and (other.path == own.path or other.path.startswith(below))


class Price(BaseModel):
    """What a model costs, per million tokens, in whatever currency the table is in."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    input: float = Field(ge=0)
    output: float = Field(ge=0)
    cached_input: float | None = Field(None, ge=0)


class ProviderLimits(BaseModel):
    """What a provider may be asked, by all workers together; None: as much as there is."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    concurrency: int | None = Field(None, ge=1)
    requests_per_minute: int | None = Field(None, ge=1)
    tokens_per_minute: int | None = Field(None, ge=1)
    #: Another provider, with the same key: its limits are for both together, and its circuit and retries too.
    shared_with: str | None = None

    @model_validator(mode="after")
    def _of_one(self) -> Self:
        if self.shared_with is not None and self.model_fields_set != {"shared_with"}:
            raise ValueError("shared_with stands alone: the limits are those of the provider that it names")
        return self


def _http_url(value: str, *, secrets: str) -> str:
    """`value`, if it is a URL that can be asked. Raises `ValueError` that says to put credentials into `secrets`."""
    try:
        url = urlsplit(value)
        host = url.hostname if url.port != 0 else None
    except ValueError:
        host = None
    if not host or url.scheme not in {"http", "https"} or any(char.isspace() for char in value):
        raise ValueError("not an http:// or https:// URL")
    if "@" in url.netloc:
        raise ValueError(f"must not hold credentials; name the variable of the key in {secrets}")
    return value


def http_tool(name: object, target: object) -> HttpToolTarget:
    """One tool of `LEGATO_HTTP_TOOLS`. Raises `ValueError` that names what is wrong."""
    if not isinstance(name, str) or not _TOOL_NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no name: 1 to 64 of A-Z, a-z, 0-9, _ and -")
    return checked(HttpToolTarget, name, target)


def webhook_endpoint(name: object, endpoint: object) -> WebhookEndpoint:
    """One endpoint of `LEGATO_WEBHOOKS`. Raises `ValueError` that names what is wrong."""
    if not isinstance(name, str) or not _ENDPOINT_NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no name: 1 to 32 of a-z, 0-9, _ and -")
    return checked(WebhookEndpoint, name, endpoint)


def json_object(value: object, form: str) -> dict[object, object]:
    """A variable that holds a JSON object. Raises `ValueError` that shows its form."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            raise ValueError("not JSON") from None
    if not isinstance(value, dict):
        raise ValueError(f"not an object {form}")  # noqa: TRY004
    return value


def compatible_server(name: object, server: object) -> CompatibleServer:
    """One server of `LEGATO_OPENAI_COMPATIBLE`. Raises `ValueError` that names what is wrong."""
    if not isinstance(name, str) or not _SERVER_NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no name: 1 to 32 of a-z, 0-9, _ and -")
    if name in BUILT_IN_PROVIDERS:
        raise ValueError(f"{name!r} is the name of a provider that is built in")
    return checked(CompatibleServer, name, server)


def checked(model: type[Part], name: object, value: object) -> Part:
    """What is configured for one name. Raises `ValueError` that names what is wrong, and repeats no value."""
    try:
        return model.model_validate(value)
    except ValidationError as exc:
        raise ValueError(_complaint(name, exc)) from None


def _complaint(name: object, exc: ValidationError) -> str:
    """What is wrong with what is configured for a name, without any value."""
    wrong = exc.errors(include_url=False, include_input=False)
    return "; ".join(f"{'.'.join(map(str, [name, *item['loc']]))}: {item['msg']}" for item in wrong)
