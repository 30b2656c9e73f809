"""Providers by name."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
import tomllib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Final

import pytest

from broker.declared import CompatibleServer
from broker.events import Delta, FailureCode, FinishReason, Usage
from tests.providers.wires import API_KEY, collect, request
from tests.support.wire_provider import Cut, Pause, Reply, Send, WireProvider, sse
from worker.providers.base import Call, Finish, Provider
from worker.providers.registry import GROUP, KNOWN, build_providers
from worker.providers.sim import SimProvider

GUIDE: Final = Path(__file__).parents[2] / "docs/how-to/write-a-provider.md"


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


# --- packages ---


class Package:
    """A package installed for one test: a module and its entry point."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def install(self, module: str, code: str, *, entries: dict[str, str], name: str = "it") -> None:
        (self.place / f"{module}.py").write_text(code)
        info = self.place / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        lines = [f"{entry} = {value}" for entry, value in entries.items()]
        (info / "entry_points.txt").write_text("\n".join([f"[{GROUP}]", *lines, ""]))


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Package]:
    before = set(sys.modules)
    monkeypatch.syspath_prepend(tmp_path)
    yield Package(tmp_path)
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "__file__", None) == str(tmp_path / f"{name}.py"):
            del sys.modules[name]


def blocks(language: str) -> list[str]:
    """The guide's code in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", GUIDE.read_text(), re.MULTILINE | re.DOTALL)


@pytest.fixture
async def nimbus(package: Package, monkeypatch: pytest.MonkeyPatch, server: WireProvider) -> AsyncIterator[Provider]:
    """The guide's provider, installed as the guide says."""
    (code,) = blocks("python")
    (project,) = [tomllib.loads(text)["project"] for text in blocks("toml")]
    package.install("legato_nimbus", code, entries=project["entry-points"][GROUP], name=project["name"])
    monkeypatch.setenv("NIMBUS_URL", server.url)
    monkeypatch.setenv("NIMBUS_KEY", API_KEY)
    provider = build_providers(["sim", "nimbus"])["nimbus"]
    yield provider
    await provider.aclose()


async def test_the_guides_provider_streams(nimbus: Provider, server: WireProvider) -> None:
    stream = sse({"text": "Hel"}) + sse({"text": "lo"}) + sse({"end": "limit", "tokens": [3, 2]})
    server.script(Reply.events(stream))
    events, error = await collect(nimbus.stream(Call(request(max_output_tokens=2))))
    assert error is None
    usage = Usage(input_tokens=3, output_tokens=2)
    finish = Finish(finish_reason=FinishReason.LENGTH, usage=usage)
    assert events == [Delta(text="Hel"), Delta(text="lo"), finish]
    (sent,) = server.requests
    assert (sent.path, sent.headers["authorization"]) == ("/generate", f"Bearer {API_KEY}")
    assert sent.body == {"model": "m", "messages": [{"role": "user", "content": "hi"}], "limit": 2}
    assert not nimbus.can_continue(request())
    await nimbus.abandon({})


@pytest.mark.parametrize(
    ("reply", "code", "retryable"),
    [
        (Reply.events(sse({"text": "Hel"})), FailureCode.UPSTREAM_INCOMPLETE, True),
        (Reply.events(sse({"text": "Hel"}), end=Cut()), FailureCode.UPSTREAM_INCOMPLETE, True),
        (Reply.events(sse({"text": "Hel"}) + sse({"txt": "lo"})), FailureCode.UPSTREAM_ERROR, True),
        (Reply.events(sse({"text": "Hel"}) + sse("nonsense")), FailureCode.UPSTREAM_ERROR, True),
        (Reply.events(sse({"error": {"type": "rate_limit_error"}})), FailureCode.RATE_LIMITED, True),
        (Reply.error(401, {"error": "no"}), FailureCode.UPSTREAM_AUTH, False),
        (Reply.error(400, {"error": "no"}), FailureCode.INVALID_REQUEST, False),
        (Reply.error(503, {"error": "no"}), FailureCode.UPSTREAM_ERROR, True),
    ],
)
async def test_what_goes_wrong_in_the_guides_provider_has_a_name(
    nimbus: Provider, server: WireProvider, reply: Reply, code: FailureCode, retryable: bool
) -> None:
    """`wire` and `classify` do for it what they do for those that are built in."""
    server.script(reply)
    events, error = await collect(nimbus.stream(Call(request())))
    assert not any(isinstance(event, Finish) for event in events)
    assert error is not None
    assert (error.failure, error.retryable) == (code, retryable)
    assert API_KEY not in error.message


async def test_the_guides_provider_needs_its_key(nimbus: Provider, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NIMBUS_KEY")
    events, error = await collect(nimbus.stream(Call(request())))
    assert events == []
    assert error is not None
    assert error.failure is FailureCode.UPSTREAM_AUTH


async def test_the_guides_provider_closes_its_connection(nimbus: Provider, server: WireProvider) -> None:
    server.script(Reply(actions=(Send(sse({"text": "Hel"})), Pause(asyncio.Event()))))
    stream = nimbus.stream(Call(request()))
    assert await anext(stream) == Delta(text="Hel")
    await stream.aclose()
    await asyncio.wait_for(server.requests[0].gone.wait(), 10)


WHOLE = """
class It:
    name = "it"
    def can_continue(self, request): return False
    def stream(self, call): ...
    async def abandon(self, token): ...
    async def aclose(self): ...
"""


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import nothing_of_that_name", "cannot be built: ModuleNotFoundError: No module named 'nothing_of_that_name'"),
        ("", "cannot be built: AttributeError"),
        ("It = None", "cannot be built: TypeError"),
        ("def It(): raise OSError('no disk')", "cannot be built: OSError: no disk"),
        ("class It: name = 'it'", "is no provider: it has no can_continue, stream, abandon, aclose"),
        (WHOLE + "    stream = None", "is no provider: it has no stream"),
        (WHOLE.replace('"it"', '"other"'), "calls itself 'other'"),
        (WHOLE.replace('name = "it"', "pass"), "calls itself None"),
    ],
)
def test_a_broken_package_is_named_with_its_entry_point(package: Package, code: str, said: str) -> None:
    package.install("broken", code, entries={"it": "broken:It"})
    with pytest.raises(
        ValueError, match=re.escape("provider 'it' (entry point broken:It of legato.providers) " + said)
    ):
        build_providers(["it"])


async def test_a_package_is_loaded_only_if_it_is_asked_for(package: Package) -> None:
    package.install("broken", "raise SystemError", entries={"it": "broken:It"})
    for provider in build_providers(["sim"]).values():
        await provider.aclose()
    with pytest.raises(ValueError, match=r"unknown provider 'x'; there are sim, .*, it$"):
        build_providers(["x"])
    assert "broken" not in sys.modules


async def test_what_is_built_in_or_configured_wins(package: Package) -> None:
    package.install("broken", "raise SystemError", entries={"sim": "broken:It", "local": "broken:It"})
    servers = {"local": CompatibleServer(base_url="http://127.0.0.1:1/v1")}
    built = build_providers(["sim", "local"], compatible=servers)
    assert isinstance(built["sim"], SimProvider)
    for provider in built.values():
        await provider.aclose()


def test_two_packages_cannot_have_one_name(package: Package) -> None:
    package.install("one", WHOLE, entries={"it": "one:It"}, name="one")
    package.install("two", WHOLE, entries={"it": "two:It"}, name="two")
    with pytest.raises(ValueError, match="'it' is offered by more than one package: one:It, two:It"):
        build_providers(["it"])
