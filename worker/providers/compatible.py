"""Servers that speak OpenAI's chat completions, several of them by name: `LEGATO_OPENAI_COMPATIBLE`.

Only the client and the quirks differ from `openai`: address, key and headers are the server's own. Nothing that the
environment holds for OpenAI (key, organization, project, `OPENAI_CUSTOM_HEADERS`, which may carry a secret) is sent to
any of them.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Final

import openai

from broker.declared import CompatibleServer
from worker.providers import classify
from worker.providers.openai import OpenAIProvider, Quirks

#: Sent to a server that wants no key: the SDK cannot do without one.
NO_KEY: Final = "none"

#: Headers that the SDK leaves out where the environment says nothing of them; only under this spelling can they be set.
_OF_OPENAI: Final = ("OpenAI-Organization", "OpenAI-Project")


class _Client(openai.AsyncOpenAI):
    """Authenticates by its default headers, or not at all."""

    @property
    def auth_headers(self) -> dict[str, str]:
        return {}

    def _validate_headers(self, headers: object, custom_headers: object) -> None:
        """The SDK's would insist on `Authorization`."""


class CompatibleProvider(OpenAIProvider):
    """`name` is as requests and settings say it."""

    def __init__(self, name: str, server: CompatibleServer, *, continue_models: Sequence[str] = ()) -> None:
        quirks = Quirks(
            max_tokens_field=server.max_tokens_field,
            stream_usage=server.stream_usage,
            continue_style=server.continue_style,
        )
        super().__init__(name=name, continue_models=continue_models, quirks=quirks)
        self._server = server

    def _build(self) -> openai.AsyncOpenAI:
        server = self._server
        key = NO_KEY if server.api_key_env is None else self._secret(server.api_key_env)
        headers: dict[str, Any] = dict(server.headers)
        headers |= {name: self._secret(variable) for name, variable in server.header_env.items()}
        spelling = {name.lower(): name for name in _OF_OPENAI}
        headers = {spelling.get(name.lower(), name): value for name, value in headers.items()}
        match server.auth:
            case "bearer":
                headers["Authorization"] = f"Bearer {key}"
            case "api-key":
                headers["api-key"] = key
        return _Client(
            api_key=key,
            base_url=server.base_url,
            max_retries=0,
            default_headers=_withheld(headers) | headers,
            default_query=dict(server.query),
        )

    def _secret(self, variable: str) -> str:
        if value := os.environ.get(variable, "").strip():
            return value
        raise classify.no_credentials(self.name)


def _withheld(headers: dict[str, Any]) -> dict[str, Any]:
    """Headers that the SDK would send of itself, or take from variables meant for OpenAI, except for `headers`."""
    lines = os.environ.get("OPENAI_CUSTOM_HEADERS", "").split("\n")
    named = [line.partition(":")[0].strip() for line in lines if ":" in line]
    given = {"", *(name.lower() for name in headers)}
    omitted = openai.Omit()
    return {name: omitted for name in ("Authorization", *_OF_OPENAI, *named) if name.lower() not in given}
