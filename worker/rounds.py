"""Between two turns of a model: its tools run here, or their results come from the client.

What is about to run is stored before it does, and what it gave back is stored before the model hears of it. So a tool
that has finished never runs again, and of one that may have run and whose result nobody knows the next worker can tell.
"""

from __future__ import annotations

import asyncio
import time

from broker.calls import CallResult
from broker.errors import ProviderError
from broker.events import FailureCode, ToolCallDone, ToolResult
from broker.lease import Lease
from worker import turns
from worker.tools.registry import Tools
from worker.turns import Turn
from worker.writer import PENDING, Writer


async def run_tools(turn: Turn, writer: Writer, tools: Tools, *, tool_seconds: float, end: float) -> None:
    """Run what the turn called and has no result yet, all at once, and log the results.

    A tool's failure is a result, for the model to see. Raises `ProviderError`: `tool_error` where a tool was started
    by a worker that was lost and may not run twice, `timeout` at `end` (of the generation, by `time.monotonic`).
    """
    calls = turn.open_calls
    for call in calls:
        tool = tools.get(call.name)
        if call.id in turn.started and tool is not None and not tool.idempotent:
            lost = f"the worker was lost while the tool {call.name} ran, and it may not run twice"
            raise ProviderError(FailureCode.TOOL_ERROR, lost)
    for call in calls:
        writer.add(turns.running(call))
    await writer.flushed()

    async def run(call: ToolCallDone) -> None:
        named = f"{writer.lease.generation}:{call.id}"  # unique: some servers count the calls of each answer anew
        outcome = await tools.run(call.name, call.arguments, call_id=named, timeout_seconds=tool_seconds)
        writer.add(ToolResult(id=call.id, name=call.name, content=outcome.content, is_error=outcome.is_error))

    try:
        async with asyncio.timeout(max(0.0, end - time.monotonic())), asyncio.TaskGroup() as group:
            for call in calls:
                group.create_task(run(call), name=f"tool {call.name} {writer.lease.generation}")
    except TimeoutError as exc:
        raise ProviderError(FailureCode.TIMEOUT, "the generation took longer than it may") from exc


def take_results(turn: Turn, writer: Writer, lease: Lease, *, seconds: float) -> bool:
    """Log what the client's tools gave back, and return True; where something is owed, ask the client for it, who
    has `seconds`.

    Raises `ProviderError` (`tool_error`) once the client's time is over.
    """
    calls = turn.open_calls
    given = {call.id: result for call in calls if (result := lease.owed.get(call.id)) is not None}
    if len(given) == len(calls):
        for call in calls:
            said = CallResult.decode(call.id, given[call.id])
            writer.add(ToolResult(id=call.id, name=call.name, content=said.content, is_error=said.is_error))
        return True
    if lease.overdue and any(call.id in lease.owed for call in calls):
        late = f"the client gave no results for its tools within {lease.request.tool_timeout_seconds:g} s"
        raise ProviderError(FailureCode.TOOL_ERROR, late)
    writer.add(turns.waiting(calls, seconds=seconds))
    writer.note(PENDING, turns.pending(calls))
    return False
