"""No broker at all: FastAPI passes on to one viewer what it makes, or what the provider says. Who loses the connection
has lost the rest."""

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator

import openai
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse

app = FastAPI()

#: Tokens a second that `/s` makes for each viewer.
RATE = float(os.environ.get("BENCH_RATE", "50"))
provider = openai.AsyncOpenAI(base_url=os.environ.get("BENCH_PROVIDER", "http://127.0.0.1:1/v1"), api_key="none")


@app.get("/s/{number}")
async def make(number: int) -> StreamingResponse:
    async def body() -> AsyncIterator[str]:
        loop = asyncio.get_running_loop()
        due = loop.time() + (number % 97) / 97 / RATE
        seq = 0
        while True:
            await asyncio.sleep(due - loop.time())
            due += 1 / RATE
            seq += 1
            yield f"data: ~{seq:07d}:{time.monotonic_ns():016x};\n\n"

    return StreamingResponse(body(), media_type="text/event-stream")


@app.post("/answer")
async def answer(request: Request) -> StreamingResponse:
    asked = await request.json()

    async def body() -> AsyncIterator[str]:
        stream = await provider.chat.completions.create(model=asked["model"], messages=asked["messages"], stream=True)
        async for chunk in stream:
            if chunk.choices and chunk.choices[0].delta.content:
                yield f"event: delta\ndata: {json.dumps({'text': chunk.choices[0].delta.content})}\n\n"
        yield "event: completed\ndata: {}\n\n"

    return StreamingResponse(body(), media_type="text/event-stream")
