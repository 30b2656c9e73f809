"""The Python client against real processes, through a proxy that breaks, and as a package of its own."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
import tarfile
import venv
import zipfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from legato_client import (
    AsyncClient,
    Client,
    Completed,
    Conflict,
    Delta,
    Generation,
    GenerationCancelled,
    GenerationFailed,
    Gone,
    InvalidRequest,
    NotFound,
    Patience,
    Reconnect,
    Reset,
    Snapshot,
    Submitted,
    Unavailable,
)

from chaos.proxy import Proxy, Way
from tests.support.stack import ROOT, Stack
from worker.providers.sim import sim_text

PACKAGE = ROOT / "clients/python"
MESSAGES = [{"role": "user", "content": "Say something."}]
#: Waits that cost a test nothing.
QUICK = Patience(first_delay_seconds=0.01, max_delay_seconds=0.2, give_up_seconds=60)


@pytest.fixture(scope="module")
def stack(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with Stack.start(redis_url, tmp_path_factory.mktemp("client"), apis=2, workers=2) as stack:
        yield stack


@pytest.fixture
async def client(stack: Stack) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(stack.urls[0], patience=QUICK) as client:
        yield client


async def submit(client: AsyncClient, **options: object) -> str:
    return (await client.submit(provider="sim", model="sim-1", messages=MESSAGES, provider_options=options)).id


@asynccontextmanager
async def through_a_proxy(stack: Stack, silence_seconds: float = 20) -> AsyncIterator[tuple[AsyncClient, Proxy]]:
    proxy = await Proxy.start(("127.0.0.1", stack.apis[0].port))
    try:
        url = f"http://127.0.0.1:{proxy.port}"
        async with AsyncClient(url, patience=QUICK, silence_seconds=silence_seconds) as client:
            yield client, proxy
        async with asyncio.timeout(20):
            while proxy.open_connections:  # it notices a little later that its client is gone
                await asyncio.sleep(0.01)
    finally:
        await proxy.aclose()


async def test_a_text_is_read_and_folded(client: AsyncClient) -> None:
    generation = await submit(client, tokens=50, seed=3)
    async with client.stream(generation) as stream:
        events = [event async for event in stream]
    assert "".join(event.text for event in events if isinstance(event, Delta)) == sim_text(50, 3)
    assert stream.answer.text == sim_text(50, 3)
    assert isinstance(events[-1], Completed)
    assert stream.position == events[-1].position
    state = await client.get(generation)
    assert state.ended
    assert state.answer is not None
    assert (state.answer.text, state.answer.position) == (stream.answer.text, stream.position)
    assert await client.collect(generation) == stream.answer


async def test_a_text_is_whole_through_a_proxy_that_cuts_at_every_few_hundred_bytes(stack: Stack) -> None:
    cuts: list[Reconnect] = []  # a client waits for up to 3 s behind each: the text takes 12
    async with through_a_proxy(stack) as (client, proxy):

        async def cut_each() -> None:
            seen = 0
            while True:
                await asyncio.sleep(0.01)
                if proxy.connections > seen and proxy.open_connections:
                    seen = proxy.connections
                    proxy.cut_at(700)

        generation = await submit(client, tokens=120, seed=4, tokens_per_second=10)
        cutting = asyncio.create_task(cut_each())
        async with client.stream(generation, on_reconnect=cuts.append) as stream:
            positions = [event.position async for event in stream]
        cutting.cancel()
    assert stream.answer.text == sim_text(120, 4)
    assert len(positions) == len(set(positions))
    assert len(cuts) >= 2
    assert all(cut.seconds > 0 and "127.0.0.1" in cut.reason for cut in cuts)


async def test_a_connection_that_is_silently_dead_is_left(stack: Stack) -> None:
    """Nothing comes through, and nothing says so: only the missing keepalives do."""
    async with through_a_proxy(stack, silence_seconds=0.5) as (client, proxy):
        generation = await submit(client, tokens=100, seed=5, tokens_per_second=20)
        reasons: list[str] = []

        def heard(cut: Reconnect) -> None:
            reasons.append(cut.reason)
            proxy.release()

        async with client.stream(generation, on_reconnect=heard) as stream:
            await anext(stream)
            proxy.hold(Way.DOWN)
            async for _ in stream:
                pass
    assert stream.answer.text == sim_text(100, 5)
    assert any("silence" in reason for reason in reasons)


async def test_a_worker_that_is_killed_gives_a_reset_and_the_whole_text(stack: Stack, client: AsyncClient) -> None:
    stall = {"at_token": 30, "kind": "stall", "attempt": 1}  # it does not end before its worker is killed
    generation = await submit(client, tokens=60, seed=6, tokens_per_second=20, faults=[stall])
    async with client.stream(generation) as stream:
        async for event in stream:
            if isinstance(event, Delta):
                break
        holder = stack.holder(generation)
        holder.kill()
        stack.workers.remove(holder)
        stack.add_worker()
        rest = [event async for event in stream]
    assert any(isinstance(event, Reset) for event in rest)
    assert stream.answer.text == sim_text(60, 6)
    assert stream.answer.attempt == 2


async def test_another_process_goes_on_from_a_stored_position_at_another_replica(stack: Stack) -> None:
    async with AsyncClient(stack.urls[0], patience=QUICK) as first:
        generation = await submit(first, tokens=30, seed=7, tokens_per_second=60)
        async with first.stream(generation) as stream:
            while len(stream.answer.text) < 20:
                await anext(stream)
        head, stored = stream.answer.text, stream.position
    code = (
        "import sys; from legato_client import Client\n"
        "with Client(sys.argv[1]) as client, client.stream(sys.argv[2], after=sys.argv[3]) as stream:\n"
        "    for _ in stream: pass\n"
        "    sys.stdout.buffer.write(stream.answer.text.encode())"
    )
    assert stored is not None
    run = [sys.executable, "-W", "error", "-c", code, stack.urls[1], generation, stored]
    tail = await asyncio.to_thread(subprocess.run, run, capture_output=True, check=True, timeout=60)
    assert head + tail.stdout.decode() == sim_text(30, 7)


async def test_there_is_nothing_behind_the_end(client: AsyncClient) -> None:
    generation = await submit(client, text="x")
    await client.collect(generation)
    end = (await client.get(generation)).raw["position"]
    async with client.stream(generation, after=end) as stream:
        assert [event async for event in stream] == []
    assert stream.position == end


async def test_a_position_that_the_log_does_not_hold_gives_a_snapshot(client: AsyncClient) -> None:
    generation = await submit(client, tokens=10, seed=8)
    await client.collect(generation)
    async with client.stream(generation, after="900-1") as stream:
        events = [event async for event in stream]
    assert [type(event) for event in events] == [Snapshot, Completed]
    assert stream.answer.text == sim_text(10, 8)


async def test_a_wait_may_be_cancelled_and_repeated(stack: Stack) -> None:
    """By a time-out around each event: nothing is lost, and the connection is not either."""
    async with through_a_proxy(stack) as (client, proxy):
        generation = await submit(client, tokens=10, seed=9, tokens_per_second=20)
        connections, waits = proxy.connections, 0
        proxy.hold(Way.DOWN)
        async with client.stream(generation) as stream:
            while True:
                try:
                    async with asyncio.timeout(0.01):
                        await anext(stream)
                except TimeoutError:
                    waits += 1
                    if waits == 4:
                        proxy.release()
                except StopAsyncIteration:
                    break
        assert waits > 3
        assert stream.answer.text == sim_text(10, 9)
        assert proxy.connections <= connections + 1


async def test_a_stream_that_is_closed_under_its_reader_ends(client: AsyncClient) -> None:
    generation = await submit(client, tokens=3, first_token_ms=60_000)
    stream = client.stream(generation)

    async def read() -> list[object]:
        return [event async for event in stream]

    reading = asyncio.create_task(read())
    async for _ in (other := client.stream(generation)):
        break
    await other.aclose()
    await stream.aclose()
    assert len(await asyncio.wait_for(reading, 30)) <= 1
    assert await client.cancel(generation) in ("cancelling", "cancelled")


async def test_leaving_is_not_cancelling_and_cancel_is(client: AsyncClient) -> None:
    generation = await submit(client, tokens=500, seed=10, tokens_per_second=20)
    async with client.stream(generation) as stream:
        await anext(stream)
    assert (await client.get(generation)).status == "running"
    assert await client.cancel(generation) == "cancelling"
    with pytest.raises(GenerationCancelled) as caught:
        await client.collect(generation)
    assert caught.value.reason == "user"
    assert sim_text(500, 10).startswith(caught.value.answer.text)
    assert await client.cancel(generation) == "cancelled"


async def test_a_failure_is_raised_with_what_there_was(client: AsyncClient) -> None:
    faults = [{"at_token": 5, "kind": "truncate"}]
    job = await client.submit(
        provider="sim",
        model="sim-1",
        messages=MESSAGES,
        provider_options={"tokens": 10, "seed": 11, "faults": faults},
        max_attempts=1,
    )
    with pytest.raises(GenerationFailed) as caught:
        await client.collect(job.id)
    assert caught.value.code == "upstream_incomplete"
    assert sim_text(10, 11).startswith(caught.value.answer.text)


async def test_a_submit_is_one_generation_however_often_it_is_sent(stack: Stack) -> None:
    """Its answers are lost on the way: the client sends it again by itself, under one key."""

    class LosesAnswers(httpx.AsyncBaseTransport):
        def __init__(self) -> None:
            self.keys: list[str] = []
            self._real = httpx.AsyncHTTPTransport()

        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            answer = await self._real.handle_async_request(request)
            self.keys.append(request.headers["idempotency-key"])
            if len(self.keys) < 3:
                await answer.aread()
                await answer.aclose()
                raise httpx.ReadError("reset", request=request)
            return answer

        async def aclose(self) -> None:
            await self._real.aclose()

    transport = LosesAnswers()
    async with (
        httpx.AsyncClient(transport=transport) as http,
        AsyncClient(stack.urls[0], http_client=http, patience=QUICK) as client,
    ):
        job: Submitted = await client.submit(
            provider="sim", model="sim-1", messages=MESSAGES, provider_options={"text": "once"}, thread="lost answers"
        )
    assert len(transport.keys) == 3
    assert set(transport.keys) == {job.idempotency_key}
    assert job.replayed
    async with AsyncClient(stack.urls[0]) as client:
        assert [each.id for each in (await client.list(thread="lost answers")).data] == [job.id]


async def test_pages_lead_through_everything(client: AsyncClient) -> None:
    ids = set()
    for text in "abc":
        job = await client.submit(
            provider="sim", model="sim-1", messages=MESSAGES, provider_options={"text": text}, thread="pages"
        )
        ids.add(job.id)
    found: list[Generation] = []
    cursor: str | None = None
    while True:
        page = await client.list(thread="pages", limit=1, cursor=cursor)
        found += page.data
        if (cursor := page.next_cursor) is None:
            break
    assert {each.id for each in found} == ids
    assert len(found) == 3
    assert all(each.thread == "pages" and each.answer is None for each in found)


async def test_two_devices_read_a_thread_one_generation_after_the_other(stack: Stack) -> None:
    """One from the beginning, through a proxy that cuts; the other from where it had been."""
    thread = "a b/c"
    async with through_a_proxy(stack) as (client, proxy):
        assert (await client.get_thread(thread)).last is None
        options = {"tokens": 20, "tokens_per_second": 40}
        jobs = [
            await client.submit(
                provider="sim",
                model="sim-1",
                messages=MESSAGES,
                thread=thread,
                provider_options={**options, "seed": seed},
            )
            for seed in (21, 22, 23)
        ]
        assert (await client.get_thread(thread)).last == jobs[2].id
        answers: dict[str | None, str] = {}
        half: str | None = None
        async with client.stream_thread(thread, after=f"{jobs[0].id}/0-0") as stream:
            async for _ in stream:
                answers[stream.generation] = stream.answer.text
                if half is None and len(answers) == 2:
                    half = stream.position
                    proxy.cut()
        assert answers == {job.id: sim_text(20, seed) for job, seed in zip(jobs, (21, 22, 23), strict=True)}
        assert half is not None
        async with client.stream_thread(thread, after=half) as other:
            generations = [other.generation async for _ in other]
        assert list(dict.fromkeys(generations)) == [jobs[1].id, jobs[2].id]
        assert other.answer == stream.answer
        assert other.position == stream.position
        assert [event async for event in client.stream_thread(thread, after=stream.position)] == []


async def test_a_busy_thread_refuses_who_does_not_want_to_wait(client: AsyncClient) -> None:
    async def ask(**options: Any) -> str:
        sim = {"tokens": 5, "first_token_ms": 60_000}
        fields = {"thread": "busy", "provider_options": sim, **options}
        return (await client.submit(provider="sim", model="sim-1", messages=MESSAGES, **fields)).id

    first = await ask()
    with pytest.raises(Conflict) as caught:
        await ask(thread_policy="reject")
    assert caught.value.code == "thread_busy"
    second = await ask(thread_policy="interrupt")
    with pytest.raises(GenerationCancelled) as interrupted:
        await client.collect(first)
    assert interrupted.value.reason == "interrupted"
    await client.cancel(second)


async def test_a_tool_of_the_client_is_answered(client: AsyncClient) -> None:
    tools = [{"type": "function", "function": {"name": "now", "parameters": {"type": "object", "properties": {}}}}]
    turns = [{"tool_calls": [{"name": "now", "arguments": "{}", "id": "c1"}]}, {"text": "It is noon."}]
    job = await client.submit(
        provider="sim",
        model="sim-1",
        messages=MESSAGES,
        tools=tools,
        tool_mode="interactive",
        provider_options={"turns": turns},
    )
    async with client.stream(job.id) as stream:
        async for event in stream:
            if event.raw.get("phase") == "waiting_for_tools":
                assert await client.send_tool_results(job.id, [{"tool_call_id": "c1", "content": "12:00"}]) == 0
    assert stream.answer.text == "It is noon."
    assert [result.content for result in stream.answer.tool_results] == ["12:00"]


async def test_refusals_name_what_is_wrong(client: AsyncClient) -> None:
    with pytest.raises(NotFound):
        await client.get("gen_" + "0" * 32)
    with pytest.raises(NotFound):
        await anext(client.stream("gen_" + "0" * 32))
    generation = await submit(client, text="x")
    with pytest.raises(InvalidRequest) as caught:
        await anext(client.stream(generation, after="nonsense"))
    assert caught.value.code == "invalid_position"
    await client.delete(generation)
    await client.delete(generation)
    with pytest.raises(Gone):
        await client.collect(generation)
    with pytest.raises(InvalidRequest) as refused:
        await client.submit(provider="nobody", model="m", messages=[])
    assert {each.field for each in refused.value.fields} >= {"messages"}


async def test_a_server_that_is_not_there_is_unavailable(stack: Stack) -> None:
    patience = Patience(first_delay_seconds=0.01, give_up_seconds=0.1)
    for url in ("http://127.0.0.1:1", "http://nobody.invalid"):
        async with AsyncClient(url, patience=patience) as client:
            with pytest.raises(Unavailable, match=re.escape(url)):
                await client.get("gen_1")
            with pytest.raises(Unavailable, match=re.escape(url)):
                await anext(client.stream("gen_1"))


async def test_no_message_holds_a_credential() -> None:
    """Of the URL or of the key."""
    patience = Patience(give_up_seconds=0)
    async with AsyncClient("http://user:secret@127.0.0.1:1/api", api_key="secret", patience=patience) as client:
        for asking in (client.get("gen_1"), anext(client.stream("gen_1"))):
            with pytest.raises(Unavailable, match=r"no answer from http://127\.0\.0\.1:1/api \(") as caught:
                await asking
            assert "secret" not in f"{caught.value!r} {caught.value.__cause__!r} {client!r}"


def test_the_sync_door_reads_the_same(stack: Stack) -> None:
    with Client(stack.urls[0], patience=QUICK) as client:
        job = client.submit(
            provider="sim", model="sim-1", messages=MESSAGES, provider_options={"tokens": 40, "seed": 12}
        )
        with client.stream(job.id) as stream:
            events = list(stream)
        assert stream.answer.text == sim_text(40, 12)
        with client.stream(job.id) as another:
            head = [next(another), next(another)]
        with client.stream(job.id, after=head[-1].position) as rest:
            tail = [event.text for event in rest if isinstance(event, Delta)]
            assert rest.position == events[-1].position
        assert "".join([*(event.text for event in head if isinstance(event, Delta)), *tail]) == sim_text(40, 12)
        assert client.collect(job.id) == stream.answer
        assert client.get(job.id).id == job.id
        assert client.cancel(job.id) == "completed"
        client.delete(job.id)
        with pytest.raises(Gone):
            client.get(job.id)


async def test_the_sync_door_refuses_within_an_event_loop(stack: Stack) -> None:
    client = Client(stack.urls[0])
    with pytest.raises(RuntimeError, match="running event loop"):
        client.get("gen_1")
    await asyncio.to_thread(client.close)


@pytest.mark.parametrize("url", ["", "127.0.0.1:8700", "ftp://x", "http://"])
def test_an_address_that_is_none_is_refused_at_once(url: str) -> None:
    with pytest.raises(ValueError, match="is no URL"):
        AsyncClient(url)


def examples() -> list[str]:
    return re.findall(r"```python\n(.*?)```", (PACKAGE / "README.md").read_text(), re.DOTALL)


@pytest.mark.parametrize("number", range(len(examples())))
def test_the_examples_of_its_readme_run(stack: Stack, number: int) -> None:
    code = examples()[number].replace("http://127.0.0.1:8700", stack.urls[0])
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=90, check=False
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout


def test_the_examples_of_its_readme_are_typed(tmp_path: Path) -> None:
    """Strictly: the package tells mypy everything."""
    for number, code in enumerate(examples()):
        (tmp_path / f"example_{number}.py").write_text(code)
    run = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--config-file=", "--cache-dir", str(tmp_path / "cache"), "."],
        cwd=tmp_path,
        env={**os.environ, "MYPYPATH": str(PACKAGE)},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr


def test_it_is_built_and_installed_without_the_server(tmp_path: Path) -> None:
    """Wheel and source distribution hold the package, its types and its licence; the wheel works where nothing of the
    server is installed, with httpx alone."""
    build = [sys.executable, "-m", "hatchling", "build", "-d", str(tmp_path)]
    subprocess.run(build, cwd=PACKAGE, check=True, capture_output=True, timeout=90)
    wheel, source = next(tmp_path.glob("*.whl")), next(tmp_path.glob("*.tar.gz"))
    names = set(zipfile.ZipFile(wheel).namelist())
    modules = {f"legato_client/{path.name}" for path in (PACKAGE / "legato_client").iterdir() if path.is_file()}
    assert modules <= names
    assert "legato_client/py.typed" in modules
    assert {name.split("/")[0] for name in names} == {"legato_client", "legato_client-0.1.0.dist-info"}
    with tarfile.open(source) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    assert modules | {"README.md", "LICENSE", "pyproject.toml", "tests/test_state.py"} <= held

    place = tmp_path / "venv"
    venv.create(place, with_pip=False, symlinks=True)
    python = place / "bin/python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--no-index", "--quiet"]
    subprocess.run([*pip, "--disable-pip-version-check", str(wheel)], check=True, capture_output=True, timeout=90)
    code = (
        "import sys, legato_client\n"
        f"assert legato_client.__file__.startswith({str(place)!r}), legato_client.__file__\n"
        "ours = {name.partition('.')[0] for name in sys.modules}\n"
        "assert not ours & {'broker', 'worker', 'api', 'cli', 'redis', 'pydantic', 'orjson'}, ours\n"
        "patience = legato_client.Patience(give_up_seconds=0)\n"
        "with legato_client.Client('http://127.0.0.1:1', patience=patience) as client:\n"
        "    try:\n"
        "        client.get('gen_1')\n"
        "    except legato_client.Unavailable as problem:\n"
        "        print(problem)\n"
    )
    # Of the suite's packages only what httpx needs, found by path: nothing there is installed for this interpreter.
    only = tmp_path / "only"
    only.mkdir()
    site = Path(httpx.__file__).parents[1]
    for name in ("httpx", "httpcore", "h11", "anyio", "certifi", "idna", "sniffio"):
        if (site / name).exists():
            (only / name).symlink_to(site / name)
    if (site / "typing_extensions.py").exists():
        (only / "typing_extensions.py").symlink_to(site / "typing_extensions.py")
    run = subprocess.run(
        [str(python), "-W", "error", "-c", code],
        env={"PYTHONPATH": str(only)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert "no answer from http://127.0.0.1:1" in run.stdout
