"""What the two OpenAI dialects have in common on the way in: from a body in OpenAI's words to the job of a submit.

Pure. The job is written as a body of `POST /v1/generations` and checked like one, so nothing gets past the native
checks; what those say is told with the names that the client used. Every field is taken, or refused by its name. What
only Legato knows stands in `legato`, an object of fields of the native submit (`extra_body={"legato": {…}}`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any, Final

from api.dialects.openai_errors import in_brackets
from api.problem import FieldError, Problem
from api.request_model import Submit
from api.submit import validate
from broker.events import Json
from broker.generation import Request
from broker.options import did_you_mean
from broker.settings import Settings


def names(text: str) -> frozenset[str]:
    """Names of fields, separated by spaces."""
    return frozenset(text.split())


#: Fields of a native submit that a dialect says in its own words, or has no words for what comes of them.
_NOT_OURS: Final = names(
    "provider model messages max_output_tokens temperature top_p stop tools tool_choice metadata tool_mode "
    "max_tool_rounds tool_timeout_seconds"
)

#: What `legato` may hold.
EXTRAS: Final = frozenset(Submit.model_fields) - _NOT_OURS


def wire_of(provider: str, settings: Settings) -> str:
    """Which of OpenAI's two wires a provider speaks: `responses`, `chat`, or neither (``)."""
    if provider == "openai_responses":
        return "responses"
    return "chat" if provider == "openai" or provider in settings.openai_compatible else ""


def resolve(model: str, settings: Settings) -> tuple[str, str]:
    """The provider of a `model` as a client of OpenAI names it, and the model there."""
    for pattern, target in settings.openai_dialect_models.items():
        if fnmatchcase(model, pattern):
            provider, _, own = target.partition("/")
            return provider, own or model
    provider, slash, own = model.partition("/")
    if slash and own and provider in settings.providers:
        return provider, own
    return settings.openai_dialect_provider or next(iter(settings.providers), ""), model


@dataclass(slots=True)
class Draft:
    """A native body in the making, and everything that is wrong so far."""

    body: Json
    settings: Settings
    native: Json = field(default_factory=dict)
    wrong: list[FieldError] = field(default_factory=list)
    said_as: dict[str, str] = field(default_factory=dict)  # path in `native` -> path in `body`, both with dots
    provider: str = ""

    def refuse(self, path: str, message: str) -> None:
        """Note what is wrong with a field; `path` with dots."""
        self.wrong.append(FieldError(in_brackets(path), message))

    def take(self, name: str, *, native: str | None = None, option: str | None = None, value: Any = None) -> None:
        """Copy a field, if it is there and not null: to a native field, or to an option of the provider. `value`: in
        place of its own."""
        given = self.body.get(name) if value is None else value
        if given is None:
            return
        if option is None:
            self.native[native or name] = given
            self.said_as[native or name] = name
        else:
            self.native.setdefault("provider_options", {})[option] = given
            self.said_as[f"provider_options.{option}"] = name

    def model(self) -> None:
        """`model`, which names the provider too."""
        match self.body.get("model"):
            case str(model) if model:
                self.provider, self.native["model"] = resolve(model, self.settings)
                self.native["provider"] = self.provider
            case None:
                self.refuse("model", "it is required")
            case _:
                self.refuse("model", "it must be a string, and not empty")

    def extras(self) -> None:
        """The fields of `legato`."""
        match self.body.get("legato"):
            case None:
                return
            case dict(extras):
                pass
            case _:
                self.refuse("legato", "it must be an object")
                return
        for name, value in extras.items():
            if name not in EXTRAS:
                self.refuse(f"legato.{name}", f"there is no such field{did_you_mean(str(name), EXTRAS)}")
                continue
            made = self.native.get(name)
            if isinstance(made, dict) and isinstance(value, dict):  # provider_options that fields have become
                for twice in made.keys() & value.keys():
                    said = self.said_as[f"{name}.{twice}"]
                    self.refuse(f"legato.{name}.{twice}", f"it does not go with {said}: both say the same")
                value = made | value  # noqa: PLW2901
            self.native[name] = value
            self.said_as[name] = f"legato.{name}"

    def only(self, known: Iterable[str]) -> None:
        """Refuse every field that the dialect does not know."""
        known = frozenset(known)
        for name in self.body:
            if name not in known:
                self.refuse(name, f"there is no such field here{did_you_mean(name, known)}")

    def accept(self, name: str, *values: object, why: str) -> bool:
        """Whether a field has one of the values that need nothing done, or is not there; else it is refused."""
        given = self.body.get(name)
        if given is None or any(type(given) is type(value) and given == value for value in values):
            return True
        self.refuse(name, why)
        return False

    def job(self, dialect: Json) -> Request:
        """The job. Raises one `Problem` that names everything that is wrong."""
        found: list[FieldError] = []
        try:
            request = validate(self.native, self.settings).job()
        except Problem as problem:
            # What is wrong with the body already would be said twice of what could not be made of it.
            told = {item.field.split(".")[0].split("[")[0] for item in self.wrong}
            found = [replace(item, field=self._said(item.field)) for item in problem.fields]
            found = [item for item in found if item.field.split(".")[0].split("[")[0] not in told]
        if self.wrong or found:
            raise Problem(422, "invalid_request", "these fields are not right", fields=(*self.wrong, *found))
        return replace(request, dialect=dialect)

    def _said(self, path: str) -> str:
        """A path in the native body, in the words of the client's."""
        known = max((name for name in self.said_as if f"{path}.".startswith(f"{name}.")), key=len, default=None)
        if known is not None:
            path = self.said_as[known] + path[len(known) :]
        elif path == "provider":
            path = "model"
        return in_brackets(path)


def passed(draft: Draft, options: Collection[str], given: Iterable[str]) -> None:
    """Hand fields on to the provider as its options; refuse those that it has no option for."""
    for name in given:
        if draft.body.get(name) is None:
            continue
        if name in options:
            draft.take(name, option=name)
        else:
            draft.refuse(name, f"the provider {draft.provider} has no such option")


def stream_options(draft: Draft, *flags: str) -> None:
    """`stream_options`, which may hold `flags`, and say that nothing shall be obfuscated."""
    match draft.body.get("stream_options"):
        case None:
            return
        case dict(options):
            pass
        case _:
            draft.refuse("stream_options", "it must be an object")
            return
    if draft.body.get("stream") is not True:
        draft.refuse("stream_options", "it goes with stream: true only")
    for name, value in options.items():
        if name == "include_obfuscation":
            if value not in (None, False):
                draft.refuse(f"stream_options.{name}", "streams are not obfuscated here; leave it out or say false")
        elif name not in flags:
            draft.refuse(f"stream_options.{name}", "there is no such option here")
        elif not isinstance(value, bool | None):
            draft.refuse(f"stream_options.{name}", "it must be true or false")
