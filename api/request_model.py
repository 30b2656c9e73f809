"""The body of a submit, field by field: names, types and bounds. What fields say about one another is in `api.checks`.

It never repeats what a client sent, and it speaks of the request, not of the library that reads it.

Deliberate oddities:
- Where a field may be of two shapes, a function chooses: a union of models would put names of ours into paths.
- Tools, parts of content and calls are checked and kept as they came. What they hold besides is the provider's.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, Self

import orjson
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PlainValidator,
    TypeAdapter,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from broker import generation
from broker.events import Json
from broker.generation import Priority, Recovery, Target, ThreadPolicy, ToolMode

_METADATA_BYTES: Final = 16 * 1024
_DAY_SECONDS: Final = 86_400
_MOST_FALLBACKS: Final = 8
_MOST_FILTERS: Final = 16

#: The type of the errors that are worded here.
WORDED: Final = "worded"


def _wrong(message: str) -> PydanticCustomError:
    return PydanticCustomError(WORDED, "{message}", {"message": message})


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _Open(BaseModel):
    """What a provider may know more fields of."""

    model_config = ConfigDict(extra="allow", strict=True)


# --- messages ---


class TextPart(_Open):
    """A part of content."""

    type: Literal["text"]
    text: str


class ImageUrl(_Open):
    """Where an image is: `https://…`, or the image itself as `data:image/png;base64,…`."""

    url: Annotated[str, Field(min_length=1)]
    detail: Annotated[str, Field(max_length=32)] | None = None


class ImagePart(_Open):
    """A part of content."""

    type: Literal["image_url"]
    image_url: ImageUrl


class OtherPart(_Open):
    """A part of content that is the provider's own."""

    type: str


_PARTS: Final[dict[str, type[BaseModel]]] = {"text": TextPart, "image_url": ImagePart}


def _part(value: Json) -> Json:
    kind = value.get("type")
    (_PARTS.get(kind, OtherPart) if isinstance(kind, str) else OtherPart).model_validate(value)
    return value


_CONTENT: Final = TypeAdapter(list[Annotated[dict[str, Any], AfterValidator(_part)]])


def _content(value: Any) -> Any:
    if value is None or isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise _wrong("it must be a string or a list of parts")
    return _CONTENT.validate_python(value, strict=True)


class CalledFunction(_Open):
    """What an assistant called."""

    name: Annotated[str, Field(min_length=1)]
    arguments: str

    @field_validator("arguments")
    @classmethod
    def _object(cls, value: str) -> str:
        try:
            is_object = isinstance(orjson.loads(value), dict)
        except orjson.JSONDecodeError:
            is_object = False
        if not is_object:
            raise _wrong("it must be a string that holds a JSON object")
        return value


class Call(_Open):
    """A call of a function."""

    id: Annotated[str, Field(min_length=1)]
    type: Literal["function"] = "function"
    function: CalledFunction


class OtherCall(_Open):
    """A call that is the provider's own."""

    id: Annotated[str, Field(min_length=1)]
    type: str


def _call(value: Json) -> Json:
    (Call if value.get("type", "function") == "function" else OtherCall).model_validate(value)
    return value


class Message(_Strict):
    """One message of the conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Annotated[
        str | list[Json] | None,
        PlainValidator(_content, json_schema_input_type=str | list[TextPart | ImagePart | OtherPart] | None),
    ] = None
    name: str | None = None
    tool_calls: list[Annotated[dict[str, Any], AfterValidator(_call)]] | None = None
    tool_call_id: Annotated[str, Field(min_length=1)] | None = None
    is_error: bool | None = None

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.content is None and not self.tool_calls:
            raise _wrong("a message needs content, or tool_calls")
        if self.role == "tool" and self.tool_call_id is None:
            raise _wrong("a tool message needs tool_call_id")
        if self.role != "tool" and self.is_error is not None:
            raise _wrong("only a tool message has is_error")
        if self.role != "assistant" and self.tool_calls:
            raise _wrong("only an assistant message has tool_calls")
        return self


# --- tools ---


class Function(_Strict):
    """A function that the model may call. `parameters` are a JSON Schema, see `api.json_schema`."""

    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class FunctionTool(_Strict):
    """A function, as chat completions say it."""

    type: Literal["function"]
    function: Function


class OtherTool(_Open):
    """A tool that is the provider's own."""

    type: Annotated[str, Field(min_length=1)]


def _tool(value: Json) -> Json:
    (FunctionTool if value.get("type") == "function" else OtherTool).model_validate(value)
    return value


class FunctionName(_Strict):
    """One of the functions in `tools`."""

    name: str


class FunctionChoice(_Strict):
    """The model must call this one."""

    type: Literal["function"]
    function: FunctionName


_CHOICES: Final = ("auto", "none", "required")


def _tool_choice(value: Any) -> Any:
    if value is None or (isinstance(value, str) and value in _CHOICES):
        return value
    if not isinstance(value, dict):
        raise _wrong("it must be auto, none, required, or an object that names a function")
    FunctionChoice.model_validate(value)
    return value


# --- the rest ---


class OnDisconnect(_Strict):
    """What happens when no viewer has been attached for `grace_seconds`, or none ever came."""

    policy: Literal["continue", "cancel"] = "continue"
    grace_seconds: Annotated[float, Field(ge=0, le=_DAY_SECONDS)] = 30.0


class Delivery(_Strict):
    """How text is cut into deltas; `token`: as the provider sends it."""

    unit: Literal["token", "word", "sentence"] = "token"
    max_chars: Annotated[int, Field(ge=1, le=10_000)] | None = None
    flush_ms: Annotated[int, Field(ge=1, le=60_000)] | None = None


class Fallback(_Strict):
    """A model that is asked where the one before it fails. Without options of its own it gets those of the request if
    it is at the same provider, and none if not: they are the provider's."""

    provider: Annotated[str, Field(min_length=1, max_length=64)]
    model: Annotated[str, Field(min_length=1, max_length=256)]
    provider_options: dict[str, Any] | None = None

    def target(self, provider: str, options: dict[str, Any]) -> Target:
        """What the store keeps; `provider` and `options` are the request's."""
        own = self.provider_options
        if own is None:
            own = options if self.provider == provider else {}
        return Target(provider=self.provider, model=self.model, provider_options=own)


class Webhook(_Strict):
    """Who is told of the end, besides the operator's own endpoints: a URL that the operator allows."""

    url: Annotated[str, Field(min_length=1, max_length=2048)]


class Filter(_Strict):
    """A transform or a validator of the text, and what it is told. Which there are, only the workers know."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9_.-]{1,64}$")]
    options: dict[str, Any] = {}


def _filter(value: Any) -> Filter:
    if not isinstance(value, str | dict):
        raise _wrong("it must be a name, or an object with a name")
    return Filter.model_validate({"name": value} if isinstance(value, str) else value)


_Filters = Annotated[
    list[Annotated[Filter, PlainValidator(_filter, json_schema_input_type=str | Filter)]],
    Field(max_length=_MOST_FILTERS),
]


def _stop(value: Any) -> list[str] | None:
    if value is None or isinstance(value, str):
        return None if value is None else [value]
    if not isinstance(value, list):
        raise _wrong("it must be a string or a list of strings")
    return _STRINGS.validate_python(value, strict=True)


_STRINGS: Final = TypeAdapter(list[str])


class Submit(_Strict):
    """A job."""

    provider: Annotated[str, Field(min_length=1, max_length=64)]
    model: Annotated[str, Field(min_length=1, max_length=256)]
    messages: Annotated[list[Message], Field(min_length=1)]
    max_output_tokens: Annotated[int, Field(ge=1)] | None = None
    max_output_characters: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    stop: Annotated[list[str] | None, PlainValidator(_stop, json_schema_input_type=str | list[str] | None)] = None
    tools: list[Annotated[dict[str, Any], AfterValidator(_tool)]] | None = None
    tool_choice: Annotated[
        str | Json | None,
        PlainValidator(
            _tool_choice, json_schema_input_type=Literal["auto", "none", "required"] | FunctionChoice | None
        ),
    ] = None
    tool_mode: Literal["return", "server", "interactive"] = "return"
    max_tool_rounds: Annotated[int, Field(ge=1, le=64)] = 8
    tool_timeout_seconds: Annotated[float, Field(gt=0, le=_DAY_SECONDS)] = 300.0
    provider_options: dict[str, Any] = {}
    fallbacks: Annotated[list[Fallback], Field(max_length=_MOST_FALLBACKS)] = []
    transforms: _Filters = []
    validators: _Filters = []
    delivery: Delivery = Delivery()
    thread: Annotated[str, Field(min_length=1, max_length=128)] | None = None
    thread_policy: Literal["enqueue", "reject", "interrupt"] | None = None
    recovery: Literal["restart", "continue", "fail"] = "restart"
    max_attempts: Annotated[int, Field(ge=1, le=20)] = 3
    on_disconnect: OnDisconnect = OnDisconnect()
    timeout_seconds: Annotated[float, Field(gt=0, le=_DAY_SECONDS)] | None = None
    stall_seconds: Annotated[float, Field(gt=0, le=_DAY_SECONDS)] | None = None
    priority: Literal["interactive", "batch"] = "interactive"
    ttl_seconds: Annotated[int, Field(ge=1, le=30 * _DAY_SECONDS)] = 3600
    webhook: Webhook | None = None
    metadata: dict[str, Any] = {}

    @field_validator("metadata")
    @classmethod
    def _small(cls, value: dict[str, Any]) -> dict[str, Any]:
        if len(orjson.dumps(value)) > _METADATA_BYTES:
            raise _wrong("it is larger than 16 KiB")
        return value

    def job(self) -> generation.Request:
        """What the store keeps."""
        return generation.Request(
            provider=self.provider,
            model=self.model,
            messages=[message.model_dump(exclude_none=True) for message in self.messages],
            max_output_tokens=self.max_output_tokens,
            max_output_characters=self.max_output_characters,
            temperature=self.temperature,
            top_p=self.top_p,
            stop=self.stop,
            tools=self.tools or None,
            tool_choice=self.tool_choice,
            tool_mode=ToolMode(self.tool_mode),
            max_tool_rounds=self.max_tool_rounds,
            tool_timeout_seconds=self.tool_timeout_seconds,
            provider_options=self.provider_options,
            fallbacks=[item.target(self.provider, self.provider_options) for item in self.fallbacks],
            transforms=[generation.Filter(name=item.name, options=item.options) for item in self.transforms],
            validators=[generation.Filter(name=item.name, options=item.options) for item in self.validators],
            delivery=generation.Delivery(
                unit=self.delivery.unit, max_chars=self.delivery.max_chars, flush_ms=self.delivery.flush_ms
            ),
            thread=self.thread,
            thread_policy=ThreadPolicy(self.thread_policy or "enqueue"),
            recovery=Recovery(self.recovery),
            max_attempts=self.max_attempts,
            timeout_seconds=self.timeout_seconds,
            stall_seconds=self.stall_seconds,
            priority=Priority(self.priority),
            ttl_seconds=self.ttl_seconds,
            grace_seconds=self.on_disconnect.grace_seconds if self.on_disconnect.policy == "cancel" else None,
            metadata=self.metadata,
            webhook_url=self.webhook.url if self.webhook else None,
        )
