"""A model provider that says what it is told to: the chat completions wire, stamped tokens, nothing else.

    python -m bench.provider --port 9000

The model names the answer: `t100-r50` is 100 tokens at 50 a second, `r0` is all at once. It runs on the core of the
load and is no part of any figure.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import time
from typing import Final, cast

import uvloop

_HEAD: Final = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
_NOTHING: Final = b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n"


class Provider(asyncio.Protocol):
    """One connection: requests one after the other."""

    def __init__(self) -> None:
        self._waiting = b""
        self._answering: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none of asyncio's classes

    def connection_lost(self, exc: Exception | None) -> None:
        if self._answering is not None:
            self._answering.cancel()

    def data_received(self, data: bytes) -> None:
        self._waiting += data
        head, found, body = self._waiting.partition(b"\r\n\r\n")
        length = re.search(rb"content-length: *(\d+)", head, re.IGNORECASE)
        size = int(length[1]) if length else 0
        if not found or len(body) < size:
            return
        self._waiting = body[size:]
        if not head.startswith(b"POST "):
            self._transport.write(_NOTHING)
            return
        tokens, rate = answer_of(json.loads(body[:size])["model"])
        self._answering = asyncio.get_running_loop().create_task(self._answer(tokens, rate))

    async def _answer(self, tokens: int, rate: float) -> None:
        loop = asyncio.get_running_loop()
        self._transport.write(_HEAD + chunk({"role": "assistant", "content": ""}))
        due = loop.time()
        for seq in range(1, tokens + 1):
            if rate:
                due += 1 / rate
                await asyncio.sleep(due - loop.time())
            self._transport.write(chunk({"content": f"~{seq:07d}:{time.monotonic_ns():016x};"}))
        self._transport.write(chunk({}, "stop") + framed(b"data: [DONE]\n\n") + b"0\r\n\r\n")


def answer_of(model: str) -> tuple[int, float]:
    """Tokens, and tokens a second."""
    match = re.fullmatch(r"t(\d+)-r(\d+)", model)
    if match is None:
        raise ValueError(f"{model!r} is no answer: t100-r50 is")
    return int(match[1]), float(match[2])


def chunk(delta: dict[str, str], finish: str | None = None) -> bytes:
    """One piece of an answer, as HTTP sends it."""
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    data = {"id": "c", "object": "chat.completion.chunk", "created": 0, "model": "scripted", "choices": [choice]}
    return framed(b"data: " + json.dumps(data).encode() + b"\n\n")


def framed(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


async def serve(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Provider, "127.0.0.1", port, backlog=1024)
    await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, required=True)
    uvloop.run(serve(parser.parse_args().port))


if __name__ == "__main__":
    main()
