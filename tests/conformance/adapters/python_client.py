"""The adapter of `legato-client`: the contract of docs/how-to/write-a-client.md, and nothing of its own."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Mapping
from typing import Any

import legato_client as legato

OPS = ["hello", "stream", "stream_thread", "collect", "submit", "get", "list", "cancel", "delete", "stop"]
NAMES: dict[type[legato.LegatoError], str] = {
    legato.InvalidRequest: "invalid_request",
    legato.NotAllowed: "not_allowed",
    legato.NotFound: "not_found",
    legato.Gone: "gone",
    legato.Conflict: "conflict",
    legato.Unavailable: "unavailable",
    legato.UnexpectedAnswer: "unexpected_answer",
}
EVENTS: dict[type, str] = {
    legato.Started: "started",
    legato.Delta: "delta",
    legato.ToolCall: "tool_call",
    legato.ToolCallDone: "tool_call_done",
    legato.ToolResult: "tool_result",
    legato.Part: "part",
    legato.Status: "status",
    legato.Reset: "reset",
    legato.Usage: "usage",
    legato.Snapshot: "snapshot",
    legato.Completed: "completed",
    legato.Failed: "failed",
    legato.Cancelled: "cancelled",
}


def say(number: str, **fields: Any) -> None:
    sys.stdout.write(json.dumps({"id": number, **fields}) + "\n")
    sys.stdout.flush()


def client_of(command: Mapping[str, Any]) -> legato.AsyncClient:
    options = command.get("options") or {}
    patience = legato.Patience(
        first_delay_seconds=options.get("first_delay_ms", 500) / 1000,
        max_delay_seconds=options.get("max_delay_ms", 15_000) / 1000,
        give_up_seconds=options.get("give_up_ms", 120_000) / 1000,
    )
    silence_seconds = options.get("silence_ms", 45_000) / 1000
    return legato.AsyncClient(command["url"], patience=patience, silence_seconds=silence_seconds)


def outcome_of(answer: legato.Answer) -> str:
    return "ended" if answer.end is None else EVENTS[type(answer.end)]


class Adapter:
    def __init__(self) -> None:
        self.running: dict[str, asyncio.Task[None]] = {}

    async def run(self, number: str, command: Mapping[str, Any]) -> None:
        try:
            async with client_of(command) as client:
                await self.work(number, command, client)
        except legato.LegatoError as problem:
            say(number, outcome="error", error=NAMES[type(problem)], message=str(problem))

    async def work(self, number: str, command: Mapping[str, Any], client: legato.AsyncClient) -> None:
        generation = command.get("generation", "")
        match command["op"]:
            case "stream":
                snapshot = bool(command.get("snapshot", False))
                await self.stream(number, client.stream(generation, after=command.get("from"), snapshot=snapshot))
            case "stream_thread":
                stream = client.stream_thread(command["thread"], after=command.get("from"))
                await self.stream(number, stream, outcome="ended")
            case "collect":
                try:
                    answer = await client.collect(generation)
                except legato.GenerationEnded as ended:
                    answer = ended.answer
                say(number, outcome=outcome_of(answer), text=answer.text)
            case "submit":
                key = command.get("idempotency_key")
                job = await client.submit(**command["request"], idempotency_key=key)
                say(number, outcome="ok", generation=job.id, replayed=job.replayed)
            case "get":
                say(number, outcome="ok", state=dict((await client.get(generation)).raw))
            case "list":
                page = await client.list(**command.get("query", {}))
                ids = [each.id for each in page.data]
                say(number, outcome="ok", generations=ids, next_cursor=page.next_cursor)
            case "cancel":
                say(number, outcome="ok", status=await client.cancel(generation))
            case "delete":
                await client.delete(generation)
                say(number, outcome="ok")
            case _:
                say(number, outcome="unsupported")

    async def stream(self, number: str, stream: legato.Stream, *, outcome: str | None = None) -> None:
        try:
            async with stream:
                async for event in stream:
                    say(number, event=EVENTS[type(event)], position=event.position, data=data_of(event))
            outcome = outcome or outcome_of(stream.answer)
        except asyncio.CancelledError:
            outcome = "stopped"  # the command `stop`
        say(number, outcome=outcome, text=stream.answer.text, position=stream.position)


def data_of(event: legato.Event) -> Mapping[str, Any]:
    """As it came; of the snapshot that the client makes itself, its text."""
    return event.raw or ({"text": event.text} if isinstance(event, legato.Snapshot) else {})


async def main() -> None:
    adapter = Adapter()
    lines = asyncio.StreamReader(limit=2**24)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    async with asyncio.TaskGroup() as group:
        while line := await lines.readline():
            command = json.loads(line)
            number = command["id"]
            match command["op"]:
                case "hello":
                    say(number, outcome="ok", client="legato-client for Python", ops=OPS)
                case "stop":
                    if (task := adapter.running.get(command["target"])) is not None:
                        task.cancel()
                    say(number, outcome="ok")
                case _:
                    task = group.create_task(adapter.run(number, command))
                    adapter.running[number] = task
                    task.add_done_callback(lambda _, number=number: adapter.running.pop(number))


if __name__ == "__main__":
    asyncio.run(main())
