"""Servers that speak OpenAI's chat completions, several of them by name: `LEGATO_OPENAI_COMPATIBLE`.

Only the client differs from `openai`: address and key are the server's own. Nothing that the environment holds for
OpenAI (key, organization, project, `OPENAI_CUSTOM_HEADERS`, which may carry a secret) is sent to any of them.
"""

from __future__ import annotations

import os
from typing import Any, Final

import openai

from broker.settings import CompatibleServer
from worker.providers import classify
from worker.providers.openai import OpenAIProvider

#: Sent to a server that wants no key: the SDK cannot do without one.
NO_KEY: Final = "none"


class CompatibleProvider(OpenAIProvider):
    """`name` is as requests and settings say it."""

    def __init__(self, name: str, server: CompatibleServer) -> None:
        super().__init__(name=name)
        self._server = server

    def _connected(self) -> openai.AsyncOpenAI:
        """Built at the first use: a worker that never asks this server needs no key."""
        if self._client is None:
            variable = self._server.api_key_env
            key = NO_KEY if variable is None else os.environ.get(variable, "").strip()
            if not key:
                raise classify.no_credentials(self.name)
            self._client = self._owned = openai.AsyncOpenAI(
                api_key=key,
                base_url=self._server.base_url,
                max_retries=0,
                default_headers=_withheld() | {"Authorization": f"Bearer {key}"},
            )
        return self._client


def _withheld() -> dict[str, Any]:
    """Headers that the SDK would take from variables meant for OpenAI."""
    lines = os.environ.get("OPENAI_CUSTOM_HEADERS", "").split("\n")
    names = [line.partition(":")[0].strip() for line in lines if ":" in line]
    kept = {"", "authorization"}  # an explicit one replaces it
    omitted = openai.Omit()
    return {name: omitted for name in ("OpenAI-Organization", "OpenAI-Project", *names) if name.lower() not in kept}
