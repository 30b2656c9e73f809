"""Which providers there are. The only place that knows them all; each is imported when it is asked for.

The SDKs cost half a second of import time, which `legato dev` with nothing but `sim` does not pay.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

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


_BUILDERS: Final[dict[str, Callable[[], Provider]]] = {"sim": _sim, "openai": _openai, "anthropic": _anthropic}

#: Names that `LEGATO_PROVIDERS` and a request's `provider` may hold.
KNOWN: Final = tuple(_BUILDERS)


def build_providers(names: Sequence[str]) -> dict[str, Provider]:
    """The named providers, without any I/O; keys are looked at only when one is used.

    Raises `ValueError` for an unknown name. The caller closes each with `aclose`.
    """
    if unknown := [name for name in names if name not in _BUILDERS]:
        raise ValueError(f"unknown provider {', '.join(map(repr, unknown))}; there are {', '.join(KNOWN)}")
    return {name: _BUILDERS[name]() for name in names}
