"""Several processes of one command, behind one port: `legato api --workers N`, `legato worker --processes N`.

The parent serves nothing and talks to no store. It starts the children, starts anew what ends unasked, and passes on
what it is told: SIGTERM and SIGINT stop all in good order (a second one at once), SIGHUP replaces them one after the
other, each new one before its predecessor is asked to stop. The listening socket is the parent's, so connections that
wait in it are lost by no restart. Children do not outlive it: where the kernel can tell them of its death, they stop in
good order.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Final

import structlog

from broker.backoff import Backoff
from broker.lifeline import bound_to_us

_log = structlog.get_logger("legato.supervisor")

#: A child that ends with this has found its settings wrong: another one would, too.
REFUSED: Final = 2

#: How a command ends that was told to stop twice.
AT_ONCE: Final = 130

#: A child that lived for so long was well: its successor is started at once.
_WELL_SECONDS: Final = 10.0

#: Pauses between starts of children that do not stay.
_FIRST_PAUSE_SECONDS: Final = 0.1
_LONGEST_PAUSE_SECONDS: Final = 10.0


class _Child:
    """One process, and its number."""

    def __init__(self, process: asyncio.subprocess.Process, number: int) -> None:
        self.number = number
        self._process = process

    async def end(self) -> int:
        """Wait for its end; the exit status."""
        return await self._process.wait()

    def tell(self, number: signal.Signals) -> None:
        """Send a signal, if it is there."""
        if self._process.returncode is None:
            self._process.send_signal(number)


class Supervisor:
    """Keeps `count` children running. `command` gives the arguments of the command for a child, by its number: below
    twice the count, and no other child's while it runs. `descriptors` are inherited; `ended` is told of each child's
    end."""

    def __init__(
        self,
        count: int,
        command: Callable[[int], Sequence[str]],
        *,
        descriptors: Sequence[int] = (),
        ended: Callable[[int], None] = lambda number: None,
    ) -> None:
        self._count = count
        self._command = command
        self._descriptors = tuple(descriptors)
        self._ended = ended
        self._stopping = asyncio.Event()
        self._children: dict[int, _Child] = {}  # by place
        self._replaced: set[_Child] = set()
        self._status = 0

    async def run(self) -> int:
        """Until all children have ended after they were told to; the exit status of the command."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop)
        async with asyncio.TaskGroup() as group:
            places = [group.create_task(self._keep(place), name=f"place {place}") for place in range(self._count)]
            replacing = group.create_task(self._replace_when_told())
            await asyncio.wait(places)
            replacing.cancel()
        return self._status

    def _stop(self) -> None:
        again = self._stopping.is_set()
        self._stopping.set()
        if again:
            self._status = AT_ONCE
        for child in {*self._children.values(), *self._replaced}:
            child.tell(signal.SIGKILL if again else signal.SIGTERM)

    async def _keep(self, place: int) -> None:
        """One child after the other in this place, until all are to stop."""
        backoff = Backoff(first=_FIRST_PAUSE_SECONDS, most=_LONGEST_PAUSE_SECONDS)
        clock = asyncio.get_running_loop().time
        while not self._stopping.is_set():
            child, began = await self._start(place), clock()
            status = await child.end()
            while (successor := self._children[place]) is not child:
                child, began = successor, clock()  # it was replaced, and its end is no news
                status = await child.end()
            self._ended(child.number)
            if self._stopping.is_set():
                return
            if status == REFUSED:
                self._status = REFUSED
                self._stop()
                return
            _log.error("child_ended", place=place, status=status)
            if clock() - began >= _WELL_SECONDS:
                backoff.reset()
            await self._pause(backoff.next())

    async def _start(self, place: int) -> _Child:
        number = place
        if place in self._children and self._children[place].number == place:
            number += self._count
        arguments = [sys.executable, "-m", "cli.main", *self._command(number)]
        process = await asyncio.create_subprocess_exec(
            *bound_to_us(arguments, by=signal.SIGTERM),
            pass_fds=self._descriptors,
            start_new_session=True,  # the terminal's Ctrl-C is for the parent
        )
        child = self._children[place] = _Child(process, number)
        if self._stopping.is_set():
            child.tell(signal.SIGTERM)
        return child

    async def _replace_when_told(self) -> None:
        """SIGHUP: a new child in each place, then the old one stops."""
        told = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, told.set)
        while True:
            await told.wait()
            told.clear()
            for place in range(self._count):
                if self._stopping.is_set() or (old := self._children.get(place)) is None:
                    continue
                await self._start(place)
                self._replaced.add(old)
                old.tell(signal.SIGTERM)
                await old.end()
                self._replaced.discard(old)
                self._ended(old.number)

    async def _pause(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
        except TimeoutError:
            pass
