"""Which providers there are. The only place that knows them all; each is imported when it is asked for.

The SDKs cost half a second of import time, which `legato dev` with nothing but `sim` does not pay.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Final

from broker.settings import CompatibleServer
from worker.providers.base import Provider


def _sim() -> Provider:
    from worker.providers.sim import SimProvider  # noqa: PLC0415

    return SimProvider()


def _openai() -> Provider:
    from worker.providers.openai import OpenAIProvider  # noqa: PLC0415

    return OpenAIProvider()


def _anthropic() -> Provider:
    from worker.providers.anthropic import AnthropicProvider  # noqa: PLC0415

    return AnthropicProvider()


def _openai_responses() -> Provider:
    from worker.providers.openai_responses import OpenAIResponsesProvider  # noqa: PLC0415

    return OpenAIResponsesProvider()


def _compatible(name: str, server: CompatibleServer) -> Provider:
    from worker.providers.compatible import CompatibleProvider  # noqa: PLC0415

    return CompatibleProvider(name, server)


_BUILDERS: Final[dict[str, Callable[[], Provider]]] = {
    "sim": _sim,
    "openai": _openai,
    "anthropic": _anthropic,
    "openai_responses": _openai_responses,
}

#: Names that `LEGATO_PROVIDERS` and a request's `provider` may hold, besides those of `LEGATO_OPENAI_COMPATIBLE`.
KNOWN: Final = tuple(_BUILDERS)


def build_providers(
    names: Sequence[str], *, compatible: Mapping[str, CompatibleServer] | None = None
) -> dict[str, Provider]:
    """The named providers, without any I/O; keys are looked at only when one is used.

    `compatible` are the OpenAI-compatible servers of the settings, by name. Raises `ValueError` for an unknown name.
    The caller closes each with `aclose`.
    """
    servers = {name: partial(_compatible, name, server) for name, server in (compatible or {}).items()}
    builders: dict[str, Callable[[], Provider]] = {**servers, **_BUILDERS}
    if unknown := [name for name in names if name not in builders]:
        there_are = ", ".join((*KNOWN, *servers))
        raise ValueError(f"unknown provider {', '.join(map(repr, unknown))}; there are {there_are}")
    return {name: builders[name]() for name in names}
