"""Which providers there are. The only place that knows them all; each is imported when it is asked for.

The SDKs cost half a second of import time, which `legato dev` with nothing but `sim` does not pay. A name that is
neither built in nor a compatible server is looked for among installed packages, as an entry point of `GROUP`: a
function that takes nothing and gives a `Provider`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Final

from broker.declared import CompatibleServer
from worker.providers.base import Provider

#: The group of entry points in which packages offer providers.
GROUP: Final = "legato.providers"

#: What every provider has besides its name; see `Provider`.
_METHODS: Final = ("can_continue", "stream", "abandon", "aclose")


def _sim() -> Provider:
    from worker.providers.sim import SimProvider  # noqa: PLC0415

    return SimProvider()


def _openai() -> Provider:
    from worker.providers.openai import OpenAIProvider  # noqa: PLC0415

    return OpenAIProvider()


def _anthropic(continue_models: Sequence[str] = ()) -> Provider:
    from worker.providers.anthropic import AnthropicProvider  # noqa: PLC0415

    return AnthropicProvider(continue_models=continue_models)


def _openai_responses() -> Provider:
    from worker.providers.openai_responses import OpenAIResponsesProvider  # noqa: PLC0415

    return OpenAIResponsesProvider()


def _compatible(name: str, server: CompatibleServer, continue_models: Sequence[str] = ()) -> Provider:
    from worker.providers.compatible import CompatibleProvider  # noqa: PLC0415

    return CompatibleProvider(name, server, continue_models=continue_models)


_BUILDERS: Final[dict[str, Callable[[], Provider]]] = {
    "sim": _sim,
    "openai": _openai,
    "anthropic": _anthropic,
    "openai_responses": _openai_responses,
}

#: Names that `LEGATO_PROVIDERS` and a request's `provider` may hold, besides those of `LEGATO_OPENAI_COMPATIBLE` and
#: of installed packages.
KNOWN: Final = tuple(_BUILDERS)


def build_providers(
    names: Sequence[str],
    *,
    compatible: Mapping[str, CompatibleServer] | None = None,
    continue_models: Mapping[str, Sequence[str]] | None = None,
) -> dict[str, Provider]:
    """The named providers, without any I/O; keys are looked at only when one is used.

    `compatible` are the OpenAI-compatible servers of the settings, by name; `continue_models` says which models can go
    on from a text, by provider. Raises `ValueError` for an unknown name, a provider that cannot do what
    `continue_models` says, and an entry point that does not give a provider. The caller closes each with `aclose`.
    """
    builders: dict[str, Callable[[], Provider]] = dict(_BUILDERS)
    for name, server in (compatible or {}).items():
        builders.setdefault(name, partial(_compatible, name, server))
    for name, patterns in (continue_models or {}).items():
        builders[name] = _continuing(name, patterns, compatible or {})
    installed: dict[str, list[EntryPoint]] = {}
    if any(name not in builders for name in names):
        for found in entry_points(group=GROUP):
            installed.setdefault(found.name, []).append(found)
    if unknown := [name for name in names if name not in builders and name not in installed]:
        there_are = ", ".join([*builders, *sorted(installed.keys() - builders.keys())])
        raise ValueError(f"unknown provider {', '.join(map(repr, unknown))}; there are {there_are}")
    return {name: builders[name]() if name in builders else _installed(name, installed[name]) for name in names}


def _continuing(
    name: str, patterns: Sequence[str], compatible: Mapping[str, CompatibleServer]
) -> Callable[[], Provider]:
    if name == "anthropic":
        return partial(_anthropic, patterns)
    if name not in compatible:
        raise ValueError(f"LEGATO_CONTINUE_MODELS: provider {name!r} cannot be told to go on from a text")
    if compatible[name].continue_style is None:
        raise ValueError(f"LEGATO_CONTINUE_MODELS: {name!r} has no continue_style in LEGATO_OPENAI_COMPATIBLE")
    return partial(_compatible, name, compatible[name], patterns)


def _installed(name: str, offers: Sequence[EntryPoint]) -> Provider:
    """The provider of a package. Whatever goes wrong with it is told with its entry point's name."""
    places = sorted({offer.value for offer in offers})
    if len(places) > 1:
        raise ValueError(f"provider {name!r} is offered by more than one package: {', '.join(places)}")
    where = f"provider {name!r} (entry point {places[0]} of {GROUP})"
    try:
        provider: Any = offers[0].load()()
    except Exception as exc:
        raise ValueError(f"{where} cannot be built: {type(exc).__name__}: {exc}") from exc
    if missing := [method for method in _METHODS if not callable(getattr(provider, method, None))]:
        raise ValueError(f"{where} is no provider: it has no {', '.join(missing)}")
    if getattr(provider, "name", None) != name:
        raise ValueError(f"{where} calls itself {getattr(provider, 'name', None)!r}")
    built: Provider = provider
    return built
