"""Which tools there are, and how a model's call becomes an outcome.

The model decides what is called and with what, so nothing here believes it: names are looked up, arguments are parsed
and checked. And nothing here believes a tool: whatever it does (raise, hang, swallow its cancellation, end the process,
return a gigabyte), the run loop gets an outcome, in time. Only what a tool says on purpose (`ToolFailed`) reaches the
model; the words of any other exception may hold secrets, and are logged, scrubbed.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable
from typing import Any, Final

import orjson
import structlog
from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError, best_match
from referencing import Registry

from broker.declared import MAX_TOOL_RESULT_BYTES
from broker.events import Json
from broker.settings import Settings
from worker.providers.classify import scrub
from worker.tools.base import Tool, ToolFailed, ToolOutcome
from worker.tools.http import http_tools
from worker.tools.python import installed_tools

#: Calls that were given up and did not end: past this many no call is begun.
MAX_LATE: Final = 1000

#: How long `aclose` waits for calls that were given up.
_CLOSE_SECONDS: Final = 1.0

#: What all providers take as the name of a function.
_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")

_log = structlog.get_logger("legato.tools")


class Tools:
    """The tools of a worker, by name. Raises `ValueError` for a name or a schema that cannot be used."""

    def __init__(self, tools: Iterable[Tool], *, max_result_bytes: int = MAX_TOOL_RESULT_BYTES) -> None:
        self._max_result_bytes = max_result_bytes
        self._tools: dict[str, Tool] = {}
        self._schemas: dict[str, Draft202012Validator] = {}
        self._late: set[asyncio.Task[ToolOutcome]] = set()
        for tool in tools:
            if not isinstance(tool.name, str) or not _NAME.fullmatch(tool.name):
                raise ValueError(f"{tool.name!r} is no name of a tool: 1 to 64 of A-Z, a-z, 0-9, _ and -")
            if tool.name in self._tools:
                raise ValueError(f"there are two tools named {tool.name!r}")
            self._tools[tool.name] = tool
            if (schema := getattr(tool, "parameters", None)) is not None:
                self._schemas[tool.name] = _validator(tool.name, schema)

    def get(self, name: str) -> Tool | None:
        """The tool of this name, if there is one."""
        return self._tools.get(name)

    def names(self) -> tuple[str, ...]:
        """All names, sorted."""
        return tuple(sorted(self._tools))

    async def run(self, name: str, arguments: str, *, call_id: str, timeout_seconds: float) -> ToolOutcome:
        """Run a tool with the JSON text that the model sent. Raises nothing but `CancelledError`, when the caller is.

        Every failure is an outcome with a sentence for the model. A call that does not end at its time-out (or when
        the caller is cancelled) is cancelled and not waited for.
        """
        tool = self._tools.get(name)
        if tool is None:
            return _error(f"there is no tool named {name!r}")
        try:
            parsed = self._arguments(name, arguments)
        except ToolFailed as exc:
            return _error(str(exc))
        if len(self._late) >= MAX_LATE:
            _log.error("tools_exhausted", tool=name, late=len(self._late))
            return _error("no tool can run now: too many earlier calls did not end")
        task = asyncio.create_task(self._outcome(tool, parsed, call_id), name=f"tool {name}")
        try:
            done, _ = await asyncio.wait({task}, timeout=timeout_seconds)
        except asyncio.CancelledError:
            self._give_up(task)
            raise
        if not done:
            self._give_up(task)
            _log.warning("tool_timeout", tool=name, call=call_id, seconds=timeout_seconds)
            return _error(f"{name} did not answer within {timeout_seconds:g} s")
        if task.cancelled():  # by the tool's own doing
            _log.error("tool_defect", tool=name, call=call_id, error="CancelledError")
            return _error(f"{name} failed")
        return task.result()

    async def aclose(self) -> None:
        """End what was given up and still runs; waits a moment for it. No call may be under way."""
        if self._late:
            for task in self._late:
                task.cancel()
            await asyncio.wait(self._late, timeout=_CLOSE_SECONDS)

    def _arguments(self, name: str, text: str) -> Json:
        try:
            arguments: Any = orjson.loads(text)
        except (orjson.JSONDecodeError, TypeError):
            raise ToolFailed(f"the arguments of {name} are not valid JSON") from None
        if not isinstance(arguments, dict):
            raise ToolFailed(f"the arguments of {name} are no JSON object")
        if name in self._schemas:
            try:
                wrong = best_match(self._schemas[name].iter_errors(arguments))
            except Exception as exc:  # noqa: BLE001 -- a schema can be wrong in ways that only use shows
                _log.error("tool_schema_defect", tool=name, error=_described(exc))
                raise ToolFailed(f"the arguments of {name} could not be checked") from None
            if wrong is not None:
                raise ToolFailed(f"the arguments of {name} do not fit: {wrong.json_path}: {wrong.message}")
        return arguments

    async def _outcome(self, tool: Tool, arguments: Json, call_id: str) -> ToolOutcome:
        try:
            content = await tool.run(arguments, call_id=call_id)
            if not isinstance(content, str):
                raise TypeError(f"run returned {type(content).__name__}, not str")
        except ToolFailed as exc:
            cause = exc.__cause__
            _log.warning(
                "tool_failed",
                tool=tool.name,
                call=call_id,
                error=scrub(str(exc)),
                cause=None if cause is None else _described(cause),
            )
            return _error(str(exc))
        except (Exception, SystemExit) as exc:  # noqa: BLE001 -- a tool must not end the worker
            _log.error("tool_defect", tool=tool.name, call=call_id, error=_described(exc))
            return _error(f"{tool.name} failed")
        content = content.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")  # no half characters
        size = len(content.encode())
        if size > self._max_result_bytes:
            _log.warning("tool_result_too_large", tool=tool.name, call=call_id, bytes=size)
            return _error(f"the result of {tool.name} is too large: more than {self._max_result_bytes:,} bytes")
        return ToolOutcome(content=content, is_error=False)

    def _give_up(self, task: asyncio.Task[ToolOutcome]) -> None:
        """Cancel a call, and hold on to it until it has ended."""
        task.cancel()
        self._late.add(task)
        task.add_done_callback(self._late.discard)


def build_tools(settings: Settings) -> Tools:
    """The Python tools that are installed, and the HTTP tools of the settings, without any I/O but their import.

    Raises `ValueError` that names the tool, for one that cannot be loaded or whose key is not in the environment.
    """
    return Tools([*installed_tools(), *http_tools(settings.http_tools)])


def _validator(name: str, schema: object) -> Draft202012Validator:
    try:
        Draft202012Validator.check_schema(schema)  # type: ignore[arg-type]
    except SchemaError as exc:
        raise ValueError(f"the parameters of tool {name!r} are no JSON Schema: {exc.message}") from None
    return Draft202012Validator(schema, registry=Registry())  # type: ignore[arg-type]  # an empty one fetches nothing


def _described(exc: BaseException) -> str:
    return scrub(f"{type(exc).__name__}: {exc}" if str(exc) else type(exc).__name__)


def _error(sentence: str) -> ToolOutcome:
    return ToolOutcome(content=scrub(sentence), is_error=True)
