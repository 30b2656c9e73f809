"""FastAPI, StreamingResponse, one XREAD a viewer."""

from collections.abc import AsyncIterator

from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse
from naive_redis import pages

app = FastAPI()


@app.get("/s/{name}")
async def stream(name: str, request: Request) -> StreamingResponse:
    async def body() -> AsyncIterator[str]:
        async for page in pages(name, request.headers.get("last-event-id")):
            yield "".join(f"id: {place}\ndata: {text}\n\n" for place, text in page)

    return StreamingResponse(body(), media_type="text/event-stream")
