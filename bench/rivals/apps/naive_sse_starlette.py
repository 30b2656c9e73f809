"""FastAPI, sse-starlette's EventSourceResponse, one XREAD a viewer."""

from collections.abc import AsyncIterator

from fastapi import FastAPI, Request
from naive_redis import pages
from sse_starlette import EventSourceResponse, ServerSentEvent

app = FastAPI()


@app.get("/s/{name}")
async def stream(name: str, request: Request) -> EventSourceResponse:
    async def body() -> AsyncIterator[ServerSentEvent]:
        async for page in pages(name, request.headers.get("last-event-id")):
            for place, text in page:
                yield ServerSentEvent(data=text, id=place)

    return EventSourceResponse(body())
