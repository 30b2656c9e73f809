"""FastAPI's own server-sent events, one XREAD a viewer."""

from collections.abc import AsyncIterable

from fastapi import FastAPI, Request
from fastapi.sse import EventSourceResponse, ServerSentEvent
from naive_redis import pages

app = FastAPI()


@app.get("/s/{name}", response_class=EventSourceResponse)
async def stream(name: str, request: Request) -> AsyncIterable[ServerSentEvent]:
    async for page in pages(name, request.headers.get("last-event-id")):
        for place, text in page:
            yield ServerSentEvent(raw_data=text, id=place)
