"""Providers by name."""

from __future__ import annotations

import subprocess
import sys

import pytest

from worker.providers.registry import KNOWN, build_providers


async def test_every_known_provider_is_built_without_a_key() -> None:
    """In the order asked, each under the name requests use."""
    built = build_providers(KNOWN)
    assert list(built) == list(KNOWN)
    assert {name: provider.name for name, provider in built.items()} == {name: name for name in KNOWN}
    for provider in built.values():
        await provider.aclose()


def test_an_unknown_provider_is_named_with_those_that_exist() -> None:
    with pytest.raises(ValueError, match=r"'opnai', 'x'; there are sim, openai, anthropic"):
        build_providers(["sim", "opnai", "x"])


def test_sim_alone_loads_no_sdk() -> None:
    """They cost half a second, and `legato dev` may need neither."""
    code = (
        "import sys; from worker.providers.registry import build_providers; build_providers(['sim']);"
        "sys.exit(' '.join({'openai', 'anthropic'} & set(sys.modules)) or None)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
