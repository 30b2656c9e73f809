"""Tools for workers to call over HTTP: `echo`, which may run twice, and `once`, which may not. Counts what was run."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from contextlib import suppress
from typing import Final, Self

_HEAD: Final = b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\nconnection: close\r\n"

_IDEMPOTENT: Final = {"echo": True, "once": False}


def said_by(tool: str, say: str) -> str:
    """What a tool gives back for its argument `say`."""
    return f"{tool} said {say}"


class Toolbox:
    """The server of both tools."""

    def __init__(self) -> None:
        self.runs: Counter[tuple[str, str, str]] = Counter()  # tool, generation, call
        self._port = 0
        self._server: asyncio.Server | None = None

    @classmethod
    async def start(cls) -> Self:
        """Listen on a loopback port; the caller closes it."""
        box = cls()
        box._server = await asyncio.start_server(box._serve, "127.0.0.1", 0)
        box._port = box._server.sockets[0].getsockname()[1]
        return box

    @property
    def declared(self) -> str:
        """For LEGATO_HTTP_TOOLS."""
        url = f"http://127.0.0.1:{self._port}/"
        return json.dumps(
            {name: {"url": url + name, "private": True, "idempotent": may} for name, may in _IDEMPOTENT.items()}
        )

    def ran_twice(self) -> list[tuple[str, str]]:
        """Generation and call of what may not run twice, and did."""
        return [
            (generation, call)
            for (tool, generation, call), count in self.runs.items()
            if count > 1 and not _IDEMPOTENT[tool]
        ]

    async def aclose(self) -> None:
        """Stop listening."""
        if self._server is not None:
            self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.IncompleteReadError):
            first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
            arguments = json.loads(await reader.readexactly(int(headers["content-length"])))
            tool = first.split(" ")[1].removeprefix("/")
            generation, _, call = headers["idempotency-key"].partition(":")
            self.runs[tool, generation, call] += 1
            await asyncio.sleep(arguments["seconds"])
            body = said_by(tool, arguments["say"]).encode()
            writer.write(_HEAD + f"content-length: {len(body)}\r\n\r\n".encode() + body)
            await writer.drain()
        writer.close()
