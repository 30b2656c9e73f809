"""The official Python SDK, unmodified, against a deployment behind a proxy that cuts: text whole, nothing twice."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import openai
import pytest
from openai.types.responses import Response

from chaos.proxy import Proxy
from tests.support.sse_client import request
from tests.support.stack import ONE_BY_ONE, Stack
from worker.providers.sim import sim_text

TOKENS = 400
TEXT = sim_text(TOKENS, 5)
PING_SECONDS = 1
USER: Any = [{"role": "user", "content": "Tell me."}]

WEATHER: Any = {
    "type": "function",
    "name": "weather",
    "description": "The weather somewhere",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    "strict": False,
}
#: A turn with two calls at once, then one that answers.
TURNS = [
    {
        "text": "Let me look. ",
        "tool_calls": [
            {"name": "weather", "arguments": {"city": "Bern"}},
            {"name": "weather", "arguments": {"city": "東京"}},
        ],
    },
    {"text": "Rain in both."},
]


@pytest.fixture(scope="module")
def stack(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Two of each, and short pings."""
    environment = {"LEGATO_PING_SECONDS": str(PING_SECONDS)}
    with Stack.start(
        redis_url, tmp_path_factory.mktemp("openai"), apis=2, workers=2, environment=environment
    ) as running:
        yield running


@pytest.fixture
async def proxy(stack: Stack) -> AsyncIterator[Proxy]:
    """In front of the first API."""
    running = await Proxy.start(("127.0.0.1", stack.apis[0].port))
    yield running
    await running.aclose()


def client_of(port: int, **options: Any) -> openai.AsyncOpenAI:
    """The SDK as anybody makes it: a base URL, and some key."""
    return openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{port}/openai/v1", api_key="anything", **options)


@pytest.fixture
async def client(proxy: Proxy) -> AsyncIterator[openai.AsyncOpenAI]:
    """Behind the proxy."""
    async with client_of(proxy.port) as made:
        yield made


def sim(**options: Any) -> dict[str, Any]:
    """What the simulated provider shall do, as `extra_body`."""
    return {"legato": {"provider_options": options}}


#: An event each, however slow the worker is.
SLOW = {"legato": {**sim(tokens=TOKENS, seed=5, tokens_per_second=80)["legato"], "delivery": ONE_BY_ONE}}


@asynccontextmanager
async def cutting(proxy: Proxy, *, first: int) -> AsyncIterator[None]:
    """Cut every connection again and again, each time after some more bytes."""

    async def cut() -> None:
        size = first
        while True:
            if proxy.open_connections:
                proxy.cut_at(size)
                size += 577
            await asyncio.sleep(0.3)

    task = asyncio.create_task(cut())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        proxy.release()


async def read_into(seen: list[Any], stream: AsyncIterator[Any]) -> None:
    """Keep what comes, whatever ends it."""
    async for event in stream:
        seen.append(event)


# --- responses ---


async def test_a_background_stream_is_whole_however_often_it_is_cut(proxy: Proxy, client: openai.AsyncOpenAI) -> None:
    """OpenAI's documented example: create in the background, keep the cursor, go on with `starting_after`."""
    text, numbers, cuts, asked = "", list[int](), 0, 1
    response_id = status = ""
    stream = await client.responses.create(model="sim-1", input="Hello", background=True, stream=True, extra_body=SLOW)
    async with cutting(proxy, first=3000):
        while not status:
            try:
                async for event in stream:
                    numbers.append(event.sequence_number)
                    match event.type:
                        case "response.created":
                            response_id = event.response.id
                        case "response.output_text.delta":
                            text += event.delta
                        case "response.completed":
                            status = str(event.response.status)
                            assert event.response.output_text == text
                        case _:
                            pass
            except openai.APIConnectionError:
                cuts += 1
            while not status:
                asked += 1
                try:
                    stream = await client.responses.retrieve(response_id, stream=True, starting_after=numbers[-1])
                    break
                except openai.APIConnectionError:
                    pass
    assert (text, status) == (TEXT, "completed")
    assert numbers == list(range(len(numbers)))
    assert cuts > 3
    assert proxy.connections <= 3 * asked  # the SDK's own two repetitions, and no loop
    kept = await client.responses.retrieve(response_id)
    assert (kept.status, kept.output_text) == ("completed", TEXT)


async def test_a_background_response_is_polled_as_documented(client: openai.AsyncOpenAI) -> None:
    """Queued or in progress until it has ended; then it is all there."""
    response = await client.responses.create(
        model="sim/sim-1", input="Hello", background=True, extra_body=sim(tokens=50, seed=5, tokens_per_second=15)
    )
    seen = {response.status}
    while response.status in {"queued", "in_progress"}:
        await asyncio.sleep(0.05)
        response = await client.responses.retrieve(response.id)
        seen.add(response.status)
    assert seen >= {"in_progress", "completed"}
    assert (response.output_text, response.model) == (sim_text(50, 5), "sim/sim-1")
    assert response.usage is not None
    assert response.usage.total_tokens == response.usage.input_tokens + 50
    assert response.completed_at is not None


async def test_the_stream_helper_makes_the_final_response(client: openai.AsyncOpenAI) -> None:
    """`responses.stream()` and `get_final_response`; and once more by id, behind an event, from a full replay."""
    numbers = []
    async with client.responses.stream(model="sim-1", input="Hello", extra_body=SLOW) as stream:
        async for event in stream:
            numbers.append(event.sequence_number)
        final = await stream.get_final_response()
    assert (final.output_text, final.status) == (TEXT, "completed")
    async with client.responses.stream(response_id=final.id, starting_after=numbers[100]) as again:
        rest = [event.sequence_number async for event in again]
        assert (await again.get_final_response()).output_text == TEXT
    assert rest == numbers[101:]


async def test_the_helper_goes_on_by_id_after_a_cut(proxy: Proxy, client: openai.AsyncOpenAI) -> None:
    """What it had shown is not shown again."""
    text, last, response_id = "", -1, ""

    async def watch() -> None:
        nonlocal text, last, response_id
        async with client.responses.stream(model="sim-1", input="Hello", background=True, extra_body=SLOW) as stream:
            async for event in stream:
                last = event.sequence_number
                if event.type == "response.created":
                    response_id = event.response.id
                if event.type == "response.output_text.delta":
                    text += event.delta
                    if len(text) > 300:
                        proxy.cut()

    with pytest.raises(openai.APIConnectionError):
        await watch()
    async with client.responses.stream(response_id=response_id, starting_after=last) as stream:
        async for event in stream:
            if event.type == "response.output_text.delta":
                text += event.delta
        final = await stream.get_final_response()
    assert text == final.output_text == TEXT


async def test_tools_are_called_and_answered(client: openai.AsyncOpenAI) -> None:
    """Two calls at once, streamed; the documented loop gives the whole output back, and the answer follows."""
    conversation: list[Any] = [{"role": "user", "content": "Weather in Bern and 東京?"}]
    extra = sim(turns=TURNS)
    arguments: dict[str, str] = {}
    async with client.responses.stream(
        model="sim-1", input=conversation, tools=[WEATHER], instructions="Look it up.", extra_body=extra
    ) as stream:
        async for event in stream:
            if event.type == "response.function_call_arguments.delta":
                arguments[event.item_id] = arguments.get(event.item_id, "") + event.delta
        first = await stream.get_final_response()
    calls = [item for item in first.output if item.type == "function_call"]
    assert [call.arguments for call in calls] == list(arguments.values()) == ['{"city":"Bern"}', '{"city":"東京"}']
    assert (first.output_text, first.instructions, first.tools[0].type) == ("Let me look. ", "Look it up.", "function")
    conversation += first.output
    conversation += [{"type": "function_call_output", "call_id": call.call_id, "output": "rain"} for call in calls]
    second = await client.responses.create(model="sim-1", input=conversation, tools=[WEATHER], extra_body=extra)
    assert second.output_text == "Rain in both."
    items = [item async for item in client.responses.input_items.list(second.id, order="asc", limit=2)]
    assert [item.type for item in items] == [
        "message",
        "message",
        *["function_call"] * 2,
        *["function_call_output"] * 2,
    ]


async def test_a_response_goes_on_from_the_one_before(client: openai.AsyncOpenAI) -> None:
    """By its id alone; one that runs, or is not there any more, is refused."""
    extra = sim(turns=TURNS)
    first = await client.responses.create(model="sim-1", input="Weather?", tools=[WEATHER], extra_body=extra)
    results: Any = [
        {"type": "function_call_output", "call_id": item.call_id, "output": "rain"}
        for item in first.output
        if item.type == "function_call"
    ]
    second = await client.responses.create(
        model="sim-1", input=results, tools=[WEATHER], previous_response_id=first.id, extra_body=extra
    )
    assert (second.output_text, second.previous_response_id) == ("Rain in both.", first.id)
    third = await client.responses.create(
        model="sim-1",
        input="And?",
        previous_response_id=second.id,
        background=True,
        extra_body=sim(tokens=900, tokens_per_second=20),
    )
    items = [item async for item in client.responses.input_items.list(third.id)]
    assert [item.type for item in items] == ["message"]
    with pytest.raises(openai.BadRequestError, match="not ended"):
        await client.responses.create(model="sim-1", input="x", previous_response_id=third.id)
    await client.responses.delete(third.id)
    with pytest.raises(openai.BadRequestError) as refused:
        await client.responses.create(model="sim-1", input="x", previous_response_id=third.id)
    assert refused.value.code == "previous_response_not_found"


async def test_a_cancel_ends_the_stream_and_stays(client: openai.AsyncOpenAI) -> None:
    """In flight: the text so far stays, the stream ends with the status; again it says the same."""
    extra = sim(tokens=5000, seed=5, tokens_per_second=100)
    stream = await client.responses.create(model="sim-1", input="Hello", background=True, stream=True, extra_body=extra)
    seen: list[Any] = []
    text = ""
    async for event in stream:
        seen.append(event)
        if event.type == "response.output_text.delta":
            text += event.delta
            if len(seen) == 20:
                cancelled = await client.responses.cancel(seen[0].response.id)
                assert cancelled.status == "cancelled"
    end = seen[-1]
    assert (end.type, end.response.status) == ("response.incomplete", "cancelled")
    assert end.response.output_text == text
    for again in (client.responses.cancel, client.responses.retrieve):
        found = await again(end.response.id)
        assert (found.status, found.output_text) == ("cancelled", text)


async def test_a_failed_answer_says_why(client: openai.AsyncOpenAI) -> None:
    """In the stream, and looked up."""
    extra = sim(tokens=20, faults=[{"at_token": 5, "kind": "error"}])
    extra["legato"]["max_attempts"] = 1
    stream = await client.responses.create(model="sim-1", input="Hello", stream=True, extra_body=extra)
    *_, last = [event async for event in stream]
    assert last.type == "response.failed"
    assert last.response.error is not None
    assert last.response.error.code == "server_error"
    assert last.response.error.message.startswith("upstream_error: ")
    whole = await client.responses.create(model="sim-1", input="Hello", extra_body=extra)
    assert (whole.status, whole.output_text) == ("failed", sim_text(5, 0))
    with pytest.raises(openai.APIStatusError) as failed:
        await client.chat.completions.create(model="sim-1", messages=USER, extra_body=extra)
    assert (failed.value.status_code, failed.value.code) == (502, "upstream_error")


async def test_an_answer_that_is_cut_short_is_incomplete(client: openai.AsyncOpenAI) -> None:
    """With the reason."""
    extra = sim(tokens=20, seed=5)
    extra["legato"]["max_output_characters"] = 30
    stream = await client.responses.create(model="sim-1", input="Hello", stream=True, extra_body=extra)
    *_, last = [event async for event in stream]
    assert last.type == "response.incomplete"
    assert last.response.incomplete_details is not None
    assert last.response.incomplete_details.reason == "max_output_tokens"
    assert last.response.output_text == sim_text(20, 5)[:30]
    completion = await client.chat.completions.create(model="sim-1", messages=USER, extra_body=extra)
    assert completion.choices[0].finish_reason == "length"


async def test_a_reset_ends_an_open_stream_and_refuses_what_was_before_it(
    stack: Stack, proxy: Proxy, client: openai.AsyncOpenAI
) -> None:
    """The text that was shown is not the answer any more: the stream breaks off, `starting_after` is 409 at once and
    not tried again, a replay has the new text only."""
    fault = {"at_token": 40, "kind": "error", "attempt": 1}
    extra = sim(tokens=80, seed=5, tokens_per_second=25, faults=[fault])
    stream = await client.responses.create(model="sim-1", input="Hello", background=True, stream=True, extra_body=extra)
    seen: list[Any] = []
    with pytest.raises(openai.APIConnectionError):
        await read_into(seen, stream)
    last, response_id = seen[-1].sequence_number, seen[0].response.id
    before = proxy.connections
    with pytest.raises(openai.ConflictError) as refused:
        await client.responses.retrieve(response_id, stream=True, starting_after=last)
    assert refused.value.code == "stream_reset"
    assert refused.value.param == "starting_after"
    assert proxy.connections - before <= 1
    async with client.responses.stream(response_id=response_id) as whole:
        numbers = [event.sequence_number async for event in whole]
        final = await whole.get_final_response()
    assert final.output_text == sim_text(80, 5)
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    assert numbers[0] > last


async def test_a_lost_worker_is_not_noticed_where_the_answer_is_read_on(
    stack: Stack, client: openai.AsyncOpenAI
) -> None:
    """The same stream goes on, under the next numbers."""
    extra = sim(tokens=300, seed=5, tokens_per_second=60, resumable=True)
    seen: list[Any] = []
    stream = await client.responses.create(model="sim-1", input="Hello", background=True, stream=True, extra_body=extra)
    reading = asyncio.create_task(read_into(seen, stream))
    while len(seen) < 30:
        await asyncio.sleep(0.01)
    holder = await asyncio.to_thread(stack.holder, f"gen_{seen[0].response.id.removeprefix('resp_')}")
    holder.kill()
    stack.workers.remove(holder)
    stack.add_worker()
    await reading
    assert (seen[-1].type, seen[-1].response.output_text) == ("response.completed", sim_text(300, 5))
    assert [event.sequence_number for event in seen] == list(range(len(seen)))


async def test_a_response_that_is_deleted_is_gone(client: openai.AsyncOpenAI) -> None:
    """404 for everything; whoever reads it is told that it was cancelled."""
    extra = sim(tokens=5000, tokens_per_second=50)
    stream = await client.responses.create(model="sim-1", input="Hello", background=True, stream=True, extra_body=extra)
    seen: list[Any] = []
    async for event in stream:
        seen.append(event)
        if len(seen) == 8:
            await client.responses.delete(seen[0].response.id)
    assert (seen[-1].type, seen[-1].response.status) == ("response.incomplete", "cancelled")
    for asked in (client.responses.retrieve, client.responses.cancel, client.responses.delete):
        with pytest.raises(openai.NotFoundError):
            await asked(seen[0].response.id)


# --- waiting ---


async def test_who_waits_for_the_whole_answer_counts_as_a_viewer(stack: Stack, client: openai.AsyncOpenAI) -> None:
    """`on_disconnect: cancel` ends what nobody waits for, not what somebody does."""
    policy = {"on_disconnect": {"policy": "cancel", "grace_seconds": 1}}
    extra = {"legato": {"provider_options": {"tokens": 120, "seed": 5, "tokens_per_second": 30}, **policy}}
    response = await client.responses.create(model="sim-1", input="Hello", extra_body=extra)
    assert (response.status, response.output_text) == ("completed", sim_text(120, 5))
    extra["legato"]["provider_options"]["tokens"] = 3000
    waiting = asyncio.create_task(
        client.responses.create(model="sim-1", input="Hello", metadata={"who": "left"}, extra_body=extra)
    )
    while not (ids := listed(stack, "left")):
        await asyncio.sleep(0.05)
    waiting.cancel()
    await asyncio.to_thread(stack.wait_status, ids[0], "cancelled")


async def test_an_api_that_stops_lets_go_of_who_waits_and_starts_nothing_twice(stack: Stack) -> None:
    """503 that names the response, and the SDK does not repeat the POST; the answer goes on."""
    api = stack.add_api()
    async with client_of(api.port) as client:
        extra = sim(tokens=100, seed=5, tokens_per_second=15)
        waiting = asyncio.create_task(
            client.responses.create(model="sim-1", input="Hello", metadata={"who": "waits"}, extra_body=extra)
        )
        while not (ids := listed(stack, "waits")):
            await asyncio.sleep(0.05)
        api.terminate()
        with pytest.raises(openai.InternalServerError) as stopped:
            await waiting
    await asyncio.to_thread(stack.remove, api)
    assert stopped.value.status_code == 503
    assert stopped.value.code == "interrupted"
    assert listed(stack, "waits") == ids
    response_id = f"resp_{ids[0].removeprefix('gen_')}"
    assert response_id in stopped.value.message
    async with client_of(stack.apis[1].port) as client, client.responses.stream(response_id=response_id) as stream:
        assert (await stream.get_final_response()).output_text == sim_text(100, 5)


async def test_a_stream_goes_on_at_another_api_when_one_stops(stack: Stack) -> None:
    """Its body ends incompletely, which the SDK raises; the same response is read on elsewhere."""
    api = stack.add_api()
    seen: list[Any] = []
    async with client_of(api.port) as client:
        stream = await client.responses.create(
            model="sim-1", input="Hello", background=True, stream=True, extra_body=SLOW
        )
        reading = asyncio.create_task(read_into(seen, stream))
        while len(seen) < 20:
            await asyncio.sleep(0.01)
        api.terminate()
        with pytest.raises(openai.APIConnectionError):
            await reading
    await asyncio.to_thread(stack.remove, api)
    async with client_of(stack.apis[1].port) as client:
        last = seen[-1].sequence_number
        rest = await client.responses.retrieve(seen[0].response.id, stream=True, starting_after=last)
        await read_into(seen, rest)
    assert [event.sequence_number for event in seen] == list(range(len(seen)))
    assert "".join(event.delta for event in seen if event.type == "response.output_text.delta") == TEXT


def listed(stack: Stack, who: str) -> list[str]:
    """Generations with that metadata."""
    page = request(stack.urls[0], "GET", "/v1/generations?limit=100").json()
    return [item["id"] for item in page["data"] if item["metadata"] == {"who": who}]


# --- chat completions ---


async def test_a_completion_is_streamed_and_whole(client: openai.AsyncOpenAI) -> None:
    """The same text either way, with usage where it is asked for."""
    extra = sim(tokens=60, seed=5)
    whole = await client.chat.completions.create(model="sim-1", messages=USER, extra_body=extra)
    assert whole.choices[0].message.content == sim_text(60, 5)
    assert whole.usage is not None
    assert whole.usage.completion_tokens == 60
    async with client.chat.completions.stream(
        model="sim-1", messages=USER, stream_options={"include_usage": True}, extra_body=extra
    ) as stream:
        final = await stream.get_final_completion()
    assert final.choices[0].message.content == sim_text(60, 5)
    assert (final.usage, final.choices[0].finish_reason) == (whole.usage, "stop")


async def test_pings_between_ids_do_no_harm(client: openai.AsyncOpenAI) -> None:
    """The SDK's decoder fails at an empty block behind an id; ours are no blocks."""
    fault_free = sim(text="ab", chunk_chars=1, tokens_per_second=0.4)
    stream = await client.chat.completions.create(model="sim-1", messages=USER, stream=True, extra_body=fault_free)
    text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
    assert text == "ab"


async def test_a_completion_goes_on_by_the_same_post(proxy: Proxy, client: openai.AsyncOpenAI) -> None:
    """With its `Idempotency-Key`: from the beginning, or behind the position that a raw reader has kept."""
    headers = {"Idempotency-Key": "chat-1"}
    asked: Any = {"model": "sim-1", "messages": USER, "stream": True, "extra_body": SLOW}
    cursor, text = "", ""

    async def watch() -> None:
        nonlocal cursor
        async with client.chat.completions.with_streaming_response.create(**asked, extra_headers=headers) as raw:
            async for line in raw.iter_lines():
                if line.startswith("id: "):
                    cursor = line[4:]
                    if int(cursor.split("-")[0]) > 60:
                        proxy.cut()

    with pytest.raises(httpx2.TransportError):  # raw bytes: the transport's own error
        await watch()
    stream = await client.chat.completions.create(**asked, extra_headers=headers)
    async for chunk in stream:
        text += chunk.choices[0].delta.content or ""
    assert text == TEXT
    resumed = await client.chat.completions.create(**asked, extra_headers={**headers, "Last-Event-ID": cursor})
    rest = "".join([chunk.choices[0].delta.content or "" async for chunk in resumed])
    assert TEXT.endswith(rest)
    assert 0 < len(rest) < len(TEXT)
    with pytest.raises(openai.ConflictError):
        await client.chat.completions.create(**asked, extra_headers={"Last-Event-ID": cursor})


async def test_tools_of_a_completion(client: openai.AsyncOpenAI) -> None:
    """Two calls at once, by the helper; the answer follows on their results."""
    tool: Any = {"type": "function", "function": {key: WEATHER[key] for key in ("name", "description", "parameters")}}
    messages: list[Any] = [{"role": "user", "content": "Weather?"}]
    extra = sim(turns=TURNS)
    async with client.chat.completions.stream(
        model="sim-1", messages=messages, tools=[tool], extra_body=extra
    ) as stream:
        first = (await stream.get_final_completion()).choices[0]
    assert first.finish_reason == "tool_calls"
    calls = first.message.tool_calls or []
    assert [call.function.arguments for call in calls] == ['{"city":"Bern"}', '{"city":"東京"}']
    messages.append(first.message.to_dict())
    messages += [{"role": "tool", "tool_call_id": call.id, "content": "rain"} for call in calls]
    second = await client.chat.completions.create(model="sim-1", messages=messages, tools=[tool], extra_body=extra)
    assert second.choices[0].message.content == "Rain in both."


async def test_a_completion_that_fails_in_mid_stream_is_an_error(client: openai.AsyncOpenAI) -> None:
    """Raised by the SDK, behind the text so far."""
    extra = sim(tokens=20, faults=[{"at_token": 5, "kind": "error"}])
    extra["legato"]["max_attempts"] = 1
    stream = await client.chat.completions.create(model="sim-1", messages=USER, stream=True, extra_body=extra)
    seen: list[Any] = []
    with pytest.raises(openai.APIError) as failed:
        await read_into(seen, stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in seen)
    assert (text, failed.value.code) == (sim_text(5, 0), "upstream_error")


async def test_models_have_the_names_that_work(client: openai.AsyncOpenAI) -> None:
    """What is listed can be asked."""
    names = [model.id async for model in client.models.list()]
    assert names == ["sim/sim-1"]


def test_a_response_object_is_one_of_theirs(stack: Stack) -> None:
    """Their own model takes it, strictly."""
    body = {"model": "sim-1", "input": "x", **sim(tokens=3)}
    answer = stack.post("/openai/v1/responses", body, headers={"Content-Type": "application/json"})
    assert Response.model_validate(answer.json(), strict=False).output_text
