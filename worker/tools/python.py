"""Python tools: what installed packages offer under the entry point group `legato.tools`.

To install a package is to trust it: its code runs inside the worker, with all the worker can reach. What is guarded
against here is being slow or stuck. A plain function runs in a thread, so that it does not hold up the worker's other
generations; a thread cannot be stopped, so one whose function outlives its time-out stays taken until the function
returns. There are only so many threads, and once none is left but stuck ones, calls fail at once. Threads are daemons:
a stuck one does not keep the worker from ending.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import json
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Final

from broker.events import Json
from worker.tools.base import Tool, ToolFailed

#: The entry point group.
GROUP: Final = "legato.tools"

#: Plain functions that run at once in a worker; more wait for a thread.
MAX_THREADS: Final = 32

_Done = asyncio.Future[tuple[Any, BaseException | None]]


class Threads:
    """Runs plain functions in at most `most` threads."""

    def __init__(self, most: int = MAX_THREADS) -> None:
        self._most = most
        self._free = asyncio.Semaphore(most)
        self._stuck = 0

    async def run(self, function: Callable[[], Any]) -> Any:
        """What `function` returns or raises. Waits for a thread; raises `ToolFailed` where all of them are stuck.

        When this is cancelled the function runs on, its outcome is dropped, and its thread counts as stuck till then.
        """
        if self._stuck >= self._most:
            raise ToolFailed("no tool of this kind can run now: too many earlier calls did not end")
        await self._free.acquire()
        loop = asyncio.get_running_loop()
        done: _Done = loop.create_future()
        run = contextvars.copy_context().run

        def work() -> None:
            try:
                outcome: tuple[Any, BaseException | None] = (run(function), None)
            except BaseException as exc:  # noqa: BLE001 -- SystemExit too: it is for the caller to judge
                outcome = (None, exc)
            with suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(self._returned, done, outcome)

        try:
            threading.Thread(target=work, name="legato tool", daemon=True).start()
        except RuntimeError:  # the system gives no more threads
            self._free.release()
            raise
        try:
            value, error = await done
        except asyncio.CancelledError:
            if done.cancelled():  # else the function had returned already
                self._stuck += 1
            raise
        if error is not None:
            raise error
        return value

    def _returned(self, done: _Done, outcome: tuple[Any, BaseException | None]) -> None:
        self._free.release()
        if done.cancelled():
            self._stuck -= 1
        else:
            done.set_result(outcome)


class PythonTool:
    """A function, or an object with `run`, as a tool. The function may be async or plain."""

    def __init__(self, name: str, target: Any, threads: Threads) -> None:
        self.name: str = name
        self.idempotent: bool = getattr(target, "idempotent", False) is True
        self.parameters: Json | None = getattr(target, "parameters", None)
        self._threads = threads
        self._run: Callable[..., Any] | None = getattr(target, "run", None)
        self._function: Callable[..., Any] = target if self._run is None else self._run
        self._is_async = _is_async(self._function)

    async def run(self, arguments: Json, *, call_id: str) -> str:
        """The result, as it is where it is text, else as JSON."""
        if self._run is not None:
            given: tuple[tuple[Any, ...], dict[str, Any]] = ((arguments,), {"call_id": call_id})
        else:
            given = ((), arguments)
            try:
                inspect.signature(self._function).bind(**arguments)
            except TypeError as exc:
                raise ToolFailed(f"the arguments of {self.name} do not fit: {exc}") from None
        positional, named = given
        if self._is_async:
            result = await self._function(*positional, **named)
        else:
            result = await self._threads.run(lambda: self._function(*positional, **named))
            if isinstance(result, Awaitable):  # a plain function around an async one
                result = await result
        return result if isinstance(result, str) else _dumped(self.name, result)


def installed_tools() -> list[Tool]:
    """The tools of all installed packages. Raises `ValueError` that names the one that cannot be used."""
    threads = Threads()
    return [_load(entry, threads) for entry in sorted(entry_points(group=GROUP), key=lambda entry: entry.name)]


def _load(entry: EntryPoint, threads: Threads) -> Tool:
    try:
        target = entry.load()
    except Exception as exc:
        raise ValueError(f"tool {entry.name!r} ({entry.value}) cannot be loaded: {type(exc).__name__}: {exc}") from exc
    if isinstance(target, type):
        raise ValueError(f"tool {entry.name!r} ({entry.value}) is a class; name an instance of it")  # noqa: TRY004
    if hasattr(target, "run"):
        return PythonTool(getattr(target, "name", entry.name), target, threads)
    if not callable(target):
        raise ValueError(f"tool {entry.name!r} ({entry.value}) is no function, and has no `run`")  # noqa: TRY004
    return PythonTool(entry.name, target, threads)


def _is_async(function: Callable[..., Any]) -> bool:
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None))  # noqa: B004


def _dumped(name: str, result: object) -> str:
    try:
        return json.dumps(result, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as exc:
        raise ToolFailed(f"the result of {name} is neither text nor JSON") from exc
