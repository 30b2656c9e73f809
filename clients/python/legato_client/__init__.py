"""Reads text that Legato generates, over as many connections as it takes.

    async with AsyncClient("http://127.0.0.1:8700") as client:
        job = await client.submit(provider="sim", model="sim-1", messages=[{"role": "user", "content": "Hello"}])
        async with client.stream(job.id) as stream:
            async for event in stream:
                if isinstance(event, Delta):
                    print(event.text, end="", flush=True)

Knows the protocol, and nothing of the server. `frames`, `events`, `state`, `patience` and `answer` do no I/O.
"""

from legato_client.answer import Answer, Fold
from legato_client.client import AsyncClient
from legato_client.errors import (
    Conflict,
    FieldError,
    GenerationCancelled,
    GenerationEnded,
    GenerationFailed,
    Gone,
    InvalidRequest,
    LegatoError,
    NotAllowed,
    NotFound,
    Refused,
    Unavailable,
    UnexpectedAnswer,
)
from legato_client.events import (
    Cancelled,
    Completed,
    Delta,
    Event,
    Failed,
    Part,
    Reset,
    Snapshot,
    Started,
    Status,
    Terminal,
    ToolCall,
    ToolCallDone,
    ToolResult,
    Usage,
)
from legato_client.patience import Patience
from legato_client.records import Generation, Options, Page, Submitted, Thread, ToolOutput
from legato_client.stream import Reconnect, Stream
from legato_client.sync import Client, SyncStream

__all__ = [
    "Answer",
    "AsyncClient",
    "Cancelled",
    "Client",
    "Completed",
    "Conflict",
    "Delta",
    "Event",
    "Failed",
    "FieldError",
    "Fold",
    "Generation",
    "GenerationCancelled",
    "GenerationEnded",
    "GenerationFailed",
    "Gone",
    "InvalidRequest",
    "LegatoError",
    "NotAllowed",
    "NotFound",
    "Options",
    "Page",
    "Part",
    "Patience",
    "Reconnect",
    "Refused",
    "Reset",
    "Snapshot",
    "Started",
    "Status",
    "Stream",
    "Submitted",
    "SyncStream",
    "Terminal",
    "Thread",
    "ToolCall",
    "ToolCallDone",
    "ToolOutput",
    "ToolResult",
    "Unavailable",
    "UnexpectedAnswer",
    "Usage",
]
