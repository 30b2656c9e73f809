"""The clock of the running loop, moved on: a time-out is not waited for, and none is over before its time."""

from __future__ import annotations

import asyncio

import pytest


async def move_on(seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let what can happen now happen, and then so much time pass at once, for all that waits in this loop."""
    for _ in range(100):
        await asyncio.sleep(0)
    loop = asyncio.get_running_loop()
    now = loop.time
    monkeypatch.setattr(loop, "time", lambda: now() + seconds)
