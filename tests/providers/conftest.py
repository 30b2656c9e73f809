"""Fixtures of the provider tests: a scripted server, and each wire in turn."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.providers.wires import WIRES, Wire
from tests.support.wire_provider import WireProvider


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """No key, base URL or profile of the machine reaches an SDK."""
    for name in ("API_KEY", "BASE_URL", "AUTH_TOKEN", "ADMIN_KEY", "PROFILE", "IDENTITY_TOKEN", "CUSTOM_HEADERS"):
        monkeypatch.delenv(f"OPENAI_{name}", raising=False)
        monkeypatch.delenv(f"ANTHROPIC_{name}", raising=False)
    monkeypatch.setenv("ANTHROPIC_CONFIG_DIR", str(tmp_path_factory.mktemp("anthropic")))


@pytest.fixture
async def server() -> AsyncIterator[WireProvider]:
    async with WireProvider() as running:
        yield running


@pytest.fixture(params=WIRES, ids=lambda wire: wire.name)
def wire(request: pytest.FixtureRequest) -> Wire:
    param: Wire = request.param
    return param
