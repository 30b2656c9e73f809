"""Tools by name: what a model's call becomes, whatever the tool does. And Python tools, found as installed packages."""

from __future__ import annotations

import asyncio
import json
import re
import sys
import threading
import tomllib
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import structlog

from broker.declared import MAX_TOOL_RESULT_BYTES, HttpToolTarget
from broker.settings import Settings
from worker.tools import registry
from worker.tools.base import ToolFailed, ToolOutcome
from worker.tools.python import PythonTool, Threads, installed_tools
from worker.tools.registry import Tools, build_tools

GUIDE: Final = Path(__file__).parents[2] / "docs/how-to/run-tools.md"

#: A time-out that no test waits for.
LONG_SECONDS: Final = 60.0

#: A time-out that a test waits for in full.
SHORT_SECONDS: Final = 0.05


def tools(target: Any, *, threads: Threads | None = None, **options: Any) -> Tools:
    """One Python tool, named `it`."""
    return Tools([PythonTool("it", target, threads or Threads())], **options)


async def call(
    given: Tools, arguments: object = None, *, name: str = "it", seconds: float = LONG_SECONDS
) -> ToolOutcome:
    text = arguments if isinstance(arguments, str) else json.dumps(arguments or {})
    return await given.run(name, text, call_id="call_1", timeout_seconds=seconds)


def failed(sentence: str) -> ToolOutcome:
    return ToolOutcome(content=sentence, is_error=True)


@pytest.fixture
def logged() -> Iterator[list[Any]]:
    with structlog.testing.capture_logs() as lines:
        yield lines


# --- any tool ---


async def test_an_unknown_tool_is_an_error_that_names_it() -> None:
    outcome = await call(tools(lambda: "x"), name="nothing")
    assert outcome == failed("there is no tool named 'nothing'")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "not valid JSON"),
        ('{"a": ', "not valid JSON"),
        ('{"a": NaN}', "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("[1]", "no JSON object"),
        ("null", "no JSON object"),
        ('"text"', "no JSON object"),
    ],
)
async def test_arguments_that_are_no_json_object_never_reach_the_tool(text: str, sentence: str) -> None:
    reached: list[object] = []

    async def it(**arguments: object) -> str:
        reached.append(arguments)
        return "x"

    outcome = await call(tools(it), text)
    assert outcome.is_error
    assert sentence in outcome.content
    assert not reached


class Weather:
    """A tool as an object, with a schema."""

    name = "weather"
    idempotent = True
    parameters: Final = {
        "type": "object",
        "properties": {"city": {"type": "string"}, "days": {"$ref": "#/$defs/days"}},
        "required": ["city"],
        "additionalProperties": False,
        "$defs": {"days": {"type": "integer", "maximum": 7}},
    }

    async def run(self, arguments: dict[str, Any], *, call_id: str) -> str:
        return f"{arguments['city']}: sun ({call_id})"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({}, "'city' is a required property"),
        ({"city": 7}, "$.city: 7 is not of type 'string'"),
        ({"city": "Rome", "days": 8}, "$.days: 8 is greater than the maximum of 7"),
        ({"city": "Rome", "planet": "Mars"}, "'planet' was unexpected"),
    ],
)
async def test_arguments_that_do_not_fit_the_schema_are_told_why(arguments: object, sentence: str) -> None:
    given = Tools([Weather()])
    outcome = await call(given, arguments, name="weather")
    assert outcome.is_error
    assert sentence in outcome.content
    fitting = await call(given, {"city": "Rome", "days": 7}, name="weather")
    assert fitting == ToolOutcome(content="Rome: sun (call_1)", is_error=False)


def test_a_schema_that_is_none_is_refused_at_the_start() -> None:
    def it() -> str:
        return ""

    it.parameters = {"type": "text"}  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="parameters of tool 'it' are no JSON Schema"):
        tools(it)


async def test_a_schema_that_lies_elsewhere_is_not_fetched(logged: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    fetched: list[object] = []
    monkeypatch.setattr(urllib.request, "urlopen", lambda *request, **_: fetched.append(request))

    def it(**_: object) -> str:
        return "x"

    it.parameters = {"$ref": "http://schemas.test/schema.json"}  # type: ignore[attr-defined]
    outcome = await call(tools(it))
    assert outcome == failed("the arguments of it could not be checked")
    assert [line["event"] for line in logged] == ["tool_schema_defect"]
    assert not fetched


async def test_an_exceptions_words_are_logged_scrubbed_and_not_told_to_the_model(logged: list[Any]) -> None:
    async def it() -> str:
        raise RuntimeError("password=hunter2 is wrong for 10.0.0.7")

    outcome = await call(tools(it))
    assert outcome == failed("it failed")
    [line] = logged
    assert line["tool"] == "it"
    assert line["error"] == "RuntimeError: password=[redacted] is wrong for 10.0.0.7"


async def test_a_failure_that_the_tool_means_for_the_model_is_told_and_its_cause_is_not(logged: list[Any]) -> None:
    async def it() -> str:
        try:
            raise KeyError("internal")
        except KeyError as exc:
            raise ToolFailed("no such city; the key is sk-abcdefghijk") from exc

    outcome = await call(tools(it))
    assert outcome == failed("no such city; the key is [redacted]")
    assert [line["cause"] for line in logged] == ["KeyError: 'internal'"]


@pytest.mark.parametrize(
    "ending", [SystemExit(3), asyncio.CancelledError(), StopIteration(), ExceptionGroup("g", [OSError()])]
)
@pytest.mark.parametrize("plain", [False, True], ids=["async", "plain"])
async def test_a_tool_cannot_end_the_worker(ending: BaseException, plain: bool, logged: list[Any]) -> None:
    def plain_it() -> str:
        raise ending

    async def async_it() -> str:
        raise ending

    outcome = await call(tools(plain_it if plain else async_it))
    assert outcome == failed("it failed")
    assert [line["event"] for line in logged] == ["tool_defect"]


async def test_a_result_that_is_too_large_is_an_error() -> None:
    given = tools(lambda length: "é" * length, max_result_bytes=20)
    assert await call(given, {"length": 10}) == ToolOutcome(content="é" * 10, is_error=False)
    outcome = await call(given, {"length": 11})
    assert outcome == failed("the result of it is too large: more than 20 bytes")


async def test_half_characters_never_leave() -> None:
    outcome = await call(tools(lambda: "a\ud83d\ude00b\ud83dc"))
    assert outcome == ToolOutcome(content="a😀b\ufffdc", is_error=False)


async def test_a_tool_that_hangs_is_cancelled_at_its_timeout() -> None:
    ended = asyncio.Event()

    async def it() -> str:
        try:
            return await asyncio.Future()
        finally:
            ended.set()

    outcome = await call(tools(it), seconds=SHORT_SECONDS)
    assert outcome == failed("it did not answer within 0.05 s")
    await asyncio.wait_for(ended.wait(), LONG_SECONDS)


async def test_a_tool_that_ignores_its_cancellation_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """And there are only so many of them."""
    monkeypatch.setattr(registry, "MAX_LATE", 1)
    go = asyncio.Event()

    async def it() -> str:
        while not go.is_set():
            try:
                await go.wait()
            except asyncio.CancelledError:
                continue
        return "late"

    given = tools(it)
    assert await call(given, seconds=SHORT_SECONDS) == failed("it did not answer within 0.05 s")
    assert await call(given) == failed("no tool can run now: too many earlier calls did not end")
    go.set()
    await given.aclose()
    assert await call(given) == ToolOutcome(content="late", is_error=False)


async def test_cancelling_the_caller_cancels_the_tool() -> None:
    begun, ended = asyncio.Event(), asyncio.Event()

    async def it() -> str:
        begun.set()
        try:
            return await asyncio.Future()
        finally:
            ended.set()

    running = asyncio.create_task(call(tools(it)))
    await begun.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    await asyncio.wait_for(ended.wait(), LONG_SECONDS)


def test_two_tools_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="two tools named 'weather'"):
        Tools([Weather(), Weather()])


@pytest.mark.parametrize("name", ["", "with space", "x" * 65, "ä", None])
def test_a_name_that_providers_would_refuse_is_refused_at_the_start(name: Any) -> None:
    with pytest.raises(ValueError, match="is no name of a tool"):
        Tools([PythonTool(name, lambda: "", Threads())])


# --- Python tools ---


def plain(city: str, days: int = 1) -> str:
    return f"{city} {days}"


async def asynchronous(city: str, days: int = 1) -> str:
    return f"{city} {days}"


def wrapped(*args: Any, **named: Any) -> Any:
    return asynchronous(*args, **named)


class Called:
    async def __call__(self, city: str, days: int = 1) -> str:
        return f"{city} {days}"


@pytest.mark.parametrize("target", [plain, asynchronous, wrapped, Called()])
async def test_functions_of_every_kind_take_the_arguments_by_name(target: Callable[..., Any]) -> None:
    assert await call(tools(target), {"days": 3, "city": "Rome"}) == ToolOutcome(content="Rome 3", is_error=False)


@pytest.mark.parametrize("target", [plain, asynchronous])
async def test_arguments_that_do_not_fit_the_signature_are_told_why(target: Callable[..., Any]) -> None:
    missing = await call(tools(target), {"days": 3})
    assert missing.is_error
    assert "missing a required argument: 'city'" in missing.content
    more = await call(tools(target), {"city": "Rome", "planet": "Mars"})
    assert "unexpected keyword argument 'planet'" in more.content


async def test_a_plain_function_runs_beside_the_event_loop_with_its_context() -> None:
    inside = await call(tools(lambda: threading.current_thread() is threading.main_thread()))
    assert inside.content == "false"
    with structlog.contextvars.bound_contextvars(generation="gen_1"):
        bound = await call(tools(lambda: structlog.contextvars.get_contextvars()["generation"]))
    assert bound.content == "gen_1"


@pytest.mark.parametrize(
    ("result", "content"),
    [("text", "text"), ({"é": [1, None]}, '{"é": [1, null]}'), (None, "null"), (2**70, str(2**70)), ("", "")],
)
async def test_what_is_no_text_is_given_as_json(result: object, content: str) -> None:
    assert await call(tools(lambda: result)) == ToolOutcome(content=content, is_error=False)


@pytest.mark.parametrize("result", [object(), b"bytes", float("nan"), {1, 2}])
async def test_a_result_that_json_cannot_say_is_an_error(result: object) -> None:
    outcome = await call(tools(lambda: result))
    assert outcome == failed("the result of it is neither text nor JSON")


async def test_an_object_that_returns_no_text_is_a_defect(logged: list[Any]) -> None:
    """Only functions found as packages are helped; a tool of ours has to keep to its interface."""

    class Bad(Weather):
        async def run(self, arguments: dict[str, Any], *, call_id: str) -> Any:
            return 7

    outcome = await call(Tools([Bad()]), {"city": "Rome"}, name="weather")
    assert outcome == failed("weather failed")
    assert logged[0]["error"] == "TypeError: run returned int, not str"


async def test_a_plain_function_past_its_timeout_keeps_its_thread_until_it_returns() -> None:
    """An error at the time-out; further calls fail at once while every thread is stuck, and go on once one is free."""
    go, returned = threading.Event(), threading.Event()

    def it(wait: bool) -> str:
        if wait:
            go.wait(LONG_SECONDS)
            returned.set()
        return "done"

    given = tools(it, threads=Threads(2))
    outcomes = await asyncio.gather(*(call(given, {"wait": True}, seconds=SHORT_SECONDS) for _ in range(2)))
    assert [outcome.content for outcome in outcomes] == ["it did not answer within 0.05 s"] * 2
    refused = await call(given, {"wait": False})
    assert refused.is_error
    assert "too many earlier calls did not end" in refused.content
    go.set()
    while (outcome := await call(given, {"wait": False})).is_error:
        await asyncio.sleep(0)
    assert outcome.content == "done"
    assert returned.is_set()


async def test_more_calls_than_threads_wait_for_one() -> None:
    busy: list[int] = []
    most: list[int] = []
    lock = threading.Lock()

    def it() -> str:
        with lock:
            busy.append(1)
            most.append(len(busy))
        with lock:
            busy.pop()
        return "done"

    given = tools(it, threads=Threads(2))
    outcomes = await asyncio.gather(*(call(given) for _ in range(50)))
    assert [outcome.content for outcome in outcomes] == ["done"] * 50
    assert max(most) <= 2


# --- installed packages ---


class Package:
    """Writes a distribution with entry points into a directory of the path."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.modules: list[str] = []

    def write(self, name: str, code: str, points: dict[str, str]) -> None:
        self.modules.append(name)
        (self.path / f"{name}.py").write_text(code)
        info = self.path / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        lines = "".join(f"{point} = {value}\n" for point, value in points.items())
        (info / "entry_points.txt").write_text(f"[legato.tools]\n{lines}")


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Package]:
    monkeypatch.syspath_prepend(tmp_path)
    made = Package(tmp_path)
    yield made
    for name in made.modules:
        sys.modules.pop(name, None)


async def test_tools_of_installed_packages_are_found(package: Package) -> None:
    code = """
class Clock:
    name = "clock"
    idempotent = True
    parameters = {"type": "object", "required": ["zone"]}

    def run(self, arguments, *, call_id):
        return [arguments["zone"], call_id]

clock = Clock()

async def add(a, b):
    return a + b

add.idempotent = True

def mail(to):
    return f"sent to {to}"
"""
    points = {"ticking": "some_tools:clock", "add": "some_tools:add", "mail": "some_tools:mail"}
    package.write("some_tools", code, points)
    given = build_tools(Settings())
    assert {"add", "clock", "mail"} <= set(given.names())
    assert given.get("ticking") is None
    idempotent = {tool.name: tool.idempotent for tool in installed_tools()}
    assert idempotent == {"add": True, "clock": True, "mail": False}
    assert (await call(given, {"a": 1, "b": 2}, name="add")).content == "3"
    assert (await call(given, {"zone": "UTC"}, name="clock")).content == '["UTC", "call_1"]'
    assert (await call(given, {}, name="clock")).is_error
    assert (await call(given, {"to": "x"}, name="mail")).content == "sent to x"
    await given.aclose()


@pytest.mark.parametrize(
    ("code", "sentence"),
    [
        ("import nothing_of_that_name", "cannot be loaded: ModuleNotFoundError"),
        ("class it:\n    def run(self, arguments, *, call_id): ...", "is a class; name an instance"),
        ("it = 7", "is no function"),
        ("", "cannot be loaded: AttributeError"),
    ],
)
def test_a_package_that_cannot_be_used_stops_the_worker_and_is_named(
    package: Package, code: str, sentence: str
) -> None:
    package.write("broken_tools", code, {"it": "broken_tools:it"})
    with pytest.raises(ValueError, match=rf"tool 'it' \(broken_tools:it\) {re.escape(sentence)}"):
        build_tools(Settings())


# --- the guide ---


def blocks(language: str) -> list[str]:
    """The guide's code in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", GUIDE.read_text(), re.MULTILINE | re.DOTALL)


async def test_the_guides_python_tools_work(package: Package) -> None:
    [code] = blocks("python")
    [project] = [tomllib.loads(text) for text in blocks("toml")]
    package.write("acme_tools", code, project["project"]["entry-points"]["legato.tools"])
    given = build_tools(Settings())
    assert given.names() == ("convert", "order_status")
    outcome = await call(given, {"amount": 10, "rate": 1.5}, name="convert")
    assert outcome == ToolOutcome(content='{"amount": 15.0}', is_error=False)
    outcome = await call(given, {"order": "A-17"}, name="order_status")
    assert outcome == ToolOutcome(content="A-17 is on its way", is_error=False)
    outcome = await call(given, {"order": "B-1"}, name="order_status")
    assert outcome == failed("there is no order B-1")
    outcome = await call(given, {"order": 17}, name="order_status")
    assert "17 is not of type 'string'" in outcome.content


def test_the_guides_http_tools_are_what_the_setting_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    [text] = blocks("json")
    with pytest.raises(ValueError, match="HTTP tool 'weather': WEATHER_KEY is not set"):
        build_tools(Settings(http_tools=json.loads(text)))
    monkeypatch.setenv("LEGATO_HTTP_TOOLS", text)
    monkeypatch.setenv("WEATHER_KEY", "Bearer abc")
    given = build_tools(Settings())
    assert given.names() == ("stock", "weather")
    [weather] = [tool for tool in [given.get("weather")] if tool]
    assert weather.idempotent


def test_the_guide_says_every_field_and_every_limit() -> None:
    text = GUIDE.read_text()
    for name in HttpToolTarget.model_fields:
        assert f"| `{name}` |" in text, name
    assert f"{MAX_TOOL_RESULT_BYTES:,} bytes" in text
