"""An answer that its provider keeps, or can go on with, is read on where it was cut.

`Keeper` speaks the Responses wire as the provider does for `background`: an answer goes on without its reader, is had
again behind any of its events, and can be cancelled. A model's name is its script.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import orjson
import pytest

from broker.events import Event, Reset, Started, ToolCall, ToolCallDone
from tests.support.servers import wait_until
from tests.support.sse_client import Reader, follow
from tests.support.stack import Stack, eventually
from tests.support.wire_provider import (
    Action,
    ByModel,
    Cut,
    End,
    Pause,
    Received,
    Reply,
    Rst,
    Send,
    WireProvider,
    openai_chunk,
    openai_stream,
    responses_frames,
    responses_stream,
)
from worker.providers.sim import sim_text

TEXTS = ("Über ", "die 🌉 ", "Brücke", ", ohne ", "zweimal ", "zu gehen.\n")
WHOLE = "".join(TEXTS)
ARGUMENTS = ('{"city": ', '"東京', '", "days"', ": 3}")
USAGE = {"input_tokens": 5, "output_tokens": 6}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
MESSAGES = [{"role": "user", "content": "Go on."}]
STYLES = ("vllm", "prefill", "prefix")
NEVER = asyncio.Event()


@dataclass(slots=True, kw_only=True)
class Kept:
    """An answer at the provider: its events, and where each of its readers is cut off. `None` is never."""

    frames: list[bytes]
    cuts: list[tuple[int, Action] | None]
    forgotten: bool = False  # nobody can have it again
    refused: bool = False  # nobody can have it now
    posts: int = 0
    resumed_after: list[int] = field(default_factory=list)
    cancels: int = 0


class Keeper:
    """The provider. `keep` before it is asked for."""

    def __init__(self) -> None:
        self.answers: dict[str, Kept] = {}

    def keep(self, model: str, stream: bytes, *cuts: tuple[int, Action] | None, forgotten: bool = False) -> Kept:
        frames = responses_frames(stream.replace(b'"resp_1"', orjson.dumps(f"resp_{model}")))
        kept = self.answers[model] = Kept(frames=frames, cuts=[*cuts, None], forgotten=forgotten)
        return kept

    def refuse(self, model: str) -> None:
        self.answers[model].refused = True

    def __call__(self, request: Received) -> Reply:
        url = urlsplit(request.path)
        if url.path == "/v1/responses":
            kept = self.answers[request.body["model"]]
            assert request.body["background"] is True
            assert request.body["store"] is True
            kept.posts += 1
            return self._read(kept, 0)
        model = url.path.split("/")[3].removeprefix("resp_")
        kept = self.answers[model]
        if request.method == "POST":
            assert url.path.endswith("/cancel")
            kept.cancels += 1
            return Reply.error(200, {"id": f"resp_{model}", "object": "response", "status": "cancelled"})
        after = int(parse_qs(url.query)["starting_after"][0])
        kept.resumed_after.append(after)
        if kept.forgotten:
            return Reply.error(404, {"error": {"message": "no such response", "type": "invalid_request_error"}})
        if kept.refused:
            return Reply.error(500, {"error": {"message": "not now"}})
        return self._read(kept, after + 1)

    @staticmethod
    def _read(kept: Kept, start: int) -> Reply:
        """A piece of the body for each event."""
        cut = kept.cuts.pop(0) if len(kept.cuts) > 1 else kept.cuts[0]
        end, how = cut or (len(kept.frames), End())
        return Reply(actions=(*map(Send, kept.frames[start:end]), how))


@pytest.fixture(scope="module")
def keeper() -> Keeper:
    return Keeper()


@pytest.fixture(scope="module")
def server(keeper: Keeper) -> Iterator[WireProvider]:
    with WireProvider(keeper) as server:
        yield server


@pytest.fixture(scope="module")
def stack(
    redis_url: str, tmp_path_factory: pytest.TempPathFactory, server: WireProvider, local: WireProvider
) -> Iterator[Stack]:
    servers = {
        style: {"base_url": f"{local.url}/{style}", "api_key_env": None, "continue_style": style} for style in STYLES
    }
    environment = {
        "LEGATO_PROVIDERS": ",".join(["openai_responses", "sim", *STYLES]),
        "LEGATO_OPENAI_COMPATIBLE": orjson.dumps(servers).decode(),
        "LEGATO_CONTINUE_MODELS": orjson.dumps(dict.fromkeys(STYLES, ("m *",))).decode(),
        "OPENAI_API_KEY": "sk-test",
        "OPENAI_BASE_URL": server.openai_url,
        "LEGATO_LEASE_SECONDS": "1",
        "LEGATO_BREAKER_MIN_CALLS": "1000000",
        "LEGATO_RETRY_FLOOR": "1000000",
        "LEGATO_RETRY_BASE_SECONDS": "0.02",
    }
    with Stack.start(redis_url, tmp_path_factory.mktemp("kept"), environment=environment) as stack:
        yield stack


def submit(stack: Stack, model: str, **fields: Any) -> str:
    body = {"provider": "openai_responses", "model": model, "messages": MESSAGES, **fields}
    answer = stack.post("/v1/generations", {"provider_options": {"background": True}, **body})
    assert answer.status == 202, answer.body
    return str(answer.json()["id"])


def events(stack: Stack, generation: str) -> list[Event]:
    return [event for _, event in stack.log(generation)]


def replace_worker(stack: Stack, generation: str) -> None:
    holder = stack.holder(generation)
    holder.kill()
    stack.workers.remove(holder)
    stack.add_worker()


def check_whole(reader: Reader, text: str = WHOLE) -> None:
    """To the last character, and nothing was taken back."""
    assert reader.ended is not None
    assert reader.ended.event == "completed", reader.ended
    assert reader.text == text
    assert "reset" not in reader.events
    assert reader.ended.data["characters"] == len(text)


def at(stream: bytes, piece: str) -> int:
    """The number of events up to the one that says `piece`, that included."""
    frames = responses_frames(stream)
    said = [orjson.loads(frame.partition(b"data: ")[2]).get("delta") for frame in frames]
    return said.index(piece) + 1


def test_killed_workers_are_followed_by_one_that_reads_on(stack: Stack, keeper: Keeper) -> None:
    """Twice in mid-text: the answer is asked for, and billed, once."""
    stream = responses_stream(*TEXTS, usage=USAGE)
    places = [at(stream, TEXTS[1]), at(stream, TEXTS[3])]
    kept = keeper.keep("killed", stream, *((place, Pause(NEVER)) for place in places))
    generation = submit(stack, "killed")
    for shown in ("".join(TEXTS[:2]), "".join(TEXTS[:4])):
        eventually(lambda text=shown: text_of(stack, generation) == text, "so much is shown")  # type: ignore[misc]
        replace_worker(stack, generation)
    reader, _ = follow(stack.urls, generation)
    check_whole(reader)
    assert reader.ended is not None
    assert reader.ended.data["usage"] == USAGE
    assert kept.posts == 1
    assert len(kept.resumed_after) == 2
    assert all(after < place for after, place in zip(kept.resumed_after, places, strict=True))
    assert (kept.cancels, reader.events.count("started")) == (0, 3)


def text_of(stack: Stack, generation: str) -> str:
    return "".join(getattr(event, "text", "") for event in events(stack, generation))


@pytest.mark.parametrize("how", [Cut(), Rst(), End()], ids=["cut", "reset", "clean end"])
def test_a_connection_that_the_provider_drops_anywhere_is_made_again(stack: Stack, keeper: Keeper, how: Action) -> None:
    """At every event of the answer but the last; from the first on, which names the answer, nothing is asked anew."""
    stream = responses_stream(*TEXTS, usage=USAGE)
    places = range(1, len(responses_frames(stream)))
    name = type(how).__name__
    kept = {place: keeper.keep(f"{name}-{place}", stream, (place, how)) for place in places}
    with ThreadPoolExecutor(len(places)) as pool:
        generations = pool.map(lambda place: submit(stack, f"{name}-{place}", max_attempts=2), places)
        for place, (reader, _) in zip(places, pool.map(lambda it: follow(stack.urls, it), generations), strict=True):
            check_whole(reader)
            # A reset may overtake what was sent before it, the first event among it.
            if not isinstance(how, Rst):
                assert (kept[place].posts, kept[place].resumed_after) == (1, [place - 1]), place
            else:
                assert kept[place].posts + len(kept[place].resumed_after) == 2, place


def test_an_answer_that_is_dropped_again_and_again_needs_no_new_one(stack: Stack, keeper: Keeper) -> None:
    stream = responses_stream(*TEXTS, usage=USAGE)
    places = [at(stream, text) for text in TEXTS]
    kept = keeper.keep("often", stream, *((place, Cut()) for place in places))
    reader, _ = follow(stack.urls, submit(stack, "often", max_attempts=len(TEXTS) + 1))
    check_whole(reader)
    assert (kept.posts, kept.resumed_after) == (1, [place - 1 for place in places])


@pytest.mark.parametrize("lost", ["worker", "connection"])
def test_arguments_of_a_call_that_were_cut_are_read_on(stack: Stack, keeper: Keeper, lost: str) -> None:
    """The call comes once, and its fragments join to what it says when it is done."""
    stream = responses_stream("I look. ", tools=[("call_a", "weather", ARGUMENTS), ("call_b", "weather", ("{}",))])
    place = at(stream, ARGUMENTS[1])
    kept = keeper.keep(f"call-{lost}", stream, (place, Cut() if lost == "connection" else Pause(NEVER)))
    generation = submit(stack, f"call-{lost}", tools=[TOOL])
    if lost == "worker":
        fragments = "".join(ARGUMENTS[:2])
        eventually(lambda: arguments_of(stack, generation, 0) == fragments, "so much of the call is shown")
        replace_worker(stack, generation)
    reader, _ = follow(stack.urls, generation)
    check_whole(reader, "I look. ")
    assert reader.ended is not None
    assert reader.ended.data["finish_reason"] == "tool_calls"
    done = [event for event in events(stack, generation) if isinstance(event, ToolCallDone)]
    whole = [(0, "call_a", "weather", "".join(ARGUMENTS)), (1, "call_b", "weather", "{}")]
    assert [(call.index, call.id, call.name, call.arguments) for call in done] == whole
    assert [arguments_of(stack, generation, index) for index in (0, 1)] == ["".join(ARGUMENTS), "{}"]
    opened = [event.id for event in events(stack, generation) if isinstance(event, ToolCall) and event.id is not None]
    assert opened == ["call_a", "call_b"]
    assert (kept.posts, len(kept.resumed_after)) == (1, 1)


def arguments_of(stack: Stack, generation: str, index: int) -> str:
    found = [event for event in events(stack, generation) if isinstance(event, ToolCall) and event.index == index]
    return "".join(event.arguments for event in found)


def test_an_answer_that_the_provider_has_forgotten_is_asked_for_anew(stack: Stack, keeper: Keeper) -> None:
    stream = responses_stream(*TEXTS, usage=USAGE)
    kept = keeper.keep("forgotten", stream, (at(stream, TEXTS[2]), Cut()), forgotten=True)
    generation = submit(stack, "forgotten", max_attempts=2)
    reader, _ = follow(stack.urls, generation)
    assert reader.text == WHOLE
    assert reader.events.count("reset") == 1
    assert reader.events[-1] == "completed"
    assert (kept.posts, len(kept.resumed_after)) == (2, 1)
    [reset] = [event for event in events(stack, generation) if isinstance(event, Reset)]
    assert reset.reason == "upstream_incomplete"


def test_who_asked_not_to_start_over_is_told_when_the_provider_has_forgotten(stack: Stack, keeper: Keeper) -> None:
    stream = responses_stream(*TEXTS)
    kept = keeper.keep("forgotten-for-good", stream, (at(stream, TEXTS[2]), Cut()), forgotten=True)
    reader, _ = follow(stack.urls, submit(stack, "forgotten-for-good", recovery="fail"))
    assert reader.ended is not None
    assert (reader.ended.event, reader.ended.data["code"]) == ("failed", "upstream_incomplete")
    assert reader.text == "".join(TEXTS[:3])
    assert reader.ended.data["characters"] == len(reader.text)
    assert (kept.posts, len(kept.resumed_after)) == (1, 1)


def test_who_asked_not_to_start_over_may_be_read_on_for(stack: Stack, keeper: Keeper) -> None:
    stream = responses_stream(*TEXTS)
    kept = keeper.keep("fail", stream, (at(stream, TEXTS[2]), Pause(NEVER)))
    generation = submit(stack, "fail", recovery="fail")
    eventually(lambda: text_of(stack, generation) == "".join(TEXTS[:3]), "so much is shown")
    replace_worker(stack, generation)
    reader, _ = follow(stack.urls, generation)
    check_whole(reader)
    assert kept.posts == 1


def test_a_cancel_stops_the_answer_at_the_provider(stack: Stack, keeper: Keeper) -> None:
    stream = responses_stream(*TEXTS)
    kept = keeper.keep("cancelled", stream, (at(stream, TEXTS[2]), Pause(NEVER)))
    generation = submit(stack, "cancelled")
    eventually(lambda: text_of(stack, generation) == "".join(TEXTS[:3]), "so much is shown")
    assert stack.post(f"/v1/generations/{generation}/cancel").status == 202
    assert stack.wait_status(generation, "cancelled") == "cancelled"
    eventually(lambda: kept.cancels == 1, "the provider is told")


def test_an_answer_whose_last_attempt_failed_is_stopped_at_the_provider(stack: Stack, keeper: Keeper) -> None:
    """It goes on by itself there, and nobody will read it."""
    stream = responses_stream(*TEXTS)
    kept = keeper.keep("given-up", stream, (at(stream, TEXTS[2]), Cut()))
    reader, _ = follow(stack.urls, submit(stack, "given-up", max_attempts=1))
    assert reader.events[-1] == "failed"
    eventually(lambda: kept.cancels == 1, "the provider is told")


def test_an_answer_whose_every_worker_was_lost_is_stopped_at_the_provider(stack: Stack, keeper: Keeper) -> None:
    stream = responses_stream(*TEXTS)
    kept = keeper.keep("every-worker", stream, (at(stream, TEXTS[2]), Pause(NEVER)))
    generation = submit(stack, "every-worker", max_attempts=1)
    eventually(lambda: text_of(stack, generation) == "".join(TEXTS[:3]), "so much is shown")
    replace_worker(stack, generation)
    reader, _ = follow(stack.urls, generation)
    assert reader.ended is not None
    assert (reader.ended.event, reader.ended.data["code"]) == ("failed", "worker_lost")
    eventually(lambda: kept.cancels == 1, "the provider is told")


@pytest.mark.parametrize("how", [Cut(), Pause(NEVER)], ids=["broken", "silent"])
def test_an_answer_that_can_be_read_on_is_not_asked_for_elsewhere(stack: Stack, keeper: Keeper, how: Action) -> None:
    """A fallback would take back what was shown, and be paid for again."""
    stream = responses_stream(*TEXTS)
    model = f"not-elsewhere-{type(how).__name__.lower()}"
    kept = keeper.keep(model, stream, (at(stream, TEXTS[2]), how))
    elsewhere = {"provider": "sim", "model": "sim-1"}
    reader, _ = follow(stack.urls, submit(stack, model, fallbacks=[elsewhere], stall_seconds=5, max_attempts=20))
    check_whole(reader)
    assert (kept.posts, kept.cancels) == (1, 0)


def test_an_answer_that_nobody_will_read_on_is_stopped_where_a_fallback_follows(stack: Stack, keeper: Keeper) -> None:
    stream = responses_stream(*TEXTS)
    kept = keeper.keep("elsewhere", stream, (at(stream, TEXTS[2]), Cut()))
    elsewhere = {"provider": "sim", "model": "sim-1", "provider_options": {"text": "All of it."}}
    reader, _ = follow(stack.urls, submit(stack, "elsewhere", fallbacks=[elsewhere], max_attempts=1))
    assert (reader.text, reader.events.count("reset"), reader.events[-1]) == ("All of it.", 1, "completed")
    eventually(lambda: kept.cancels == 1, "the provider is told")


@pytest.mark.parametrize("lost", ["between attempts", "its worker is dead"])
def test_deleting_a_generation_that_nobody_holds_stops_its_answer_at_the_provider(
    stack: Stack, keeper: Keeper, lost: str
) -> None:
    stream = responses_stream(*TEXTS)
    model = lost.replace(" ", "-")
    between = lost == "between attempts"
    kept = keeper.keep(model, stream, (at(stream, TEXTS[2]), Cut() if between else Pause(NEVER)))
    if between:
        keeper.refuse(model)
    generation = submit(stack, model, max_attempts=20)
    if between:
        eventually(lambda: len(kept.resumed_after) >= 8, "so many attempts have failed that the delays are long")
        stack.wait_status(generation, "retrying")
    else:
        eventually(lambda: text_of(stack, generation) == "".join(TEXTS[:3]), "so much is shown")
        holder = stack.holder(generation)
        holder.kill()
        stack.workers.remove(holder)
    assert stack.delete(f"/v1/generations/{generation}").status in (202, 204)
    if not between:
        stack.add_worker()
    eventually(lambda: kept.cancels, "the provider is told")


def test_deleting_a_generation_stops_its_answer_at_the_provider(stack: Stack, keeper: Keeper) -> None:
    stream = responses_stream(*TEXTS)
    kept = keeper.keep("deleted", stream, (at(stream, TEXTS[2]), Pause(NEVER)))
    generation = submit(stack, "deleted")
    eventually(lambda: text_of(stack, generation) == "".join(TEXTS[:3]), "so much is shown")
    assert stack.delete(f"/v1/generations/{generation}").status in (202, 204)
    eventually(lambda: kept.cancels == 1, "the provider is told")


def test_a_cancel_that_no_worker_lived_to_see_stops_the_answer_at_the_provider(stack: Stack, keeper: Keeper) -> None:
    """Its worker is dead: the end is written without one, and the next worker to look at it tells the provider."""
    stream = responses_stream(*TEXTS)
    kept = keeper.keep("orphan", stream, (at(stream, TEXTS[2]), Pause(NEVER)))
    generation = submit(stack, "orphan")
    eventually(lambda: text_of(stack, generation) == "".join(TEXTS[:3]), "so much is shown")
    holder = stack.holder(generation)
    holder.kill()
    stack.workers.remove(holder)
    assert stack.post(f"/v1/generations/{generation}/cancel").status == 202
    stack.wait_status(generation, "cancelled")
    stack.add_worker()
    eventually(lambda: kept.cancels == 1, "the provider is told")


# --- sim ---


def test_resumable_answers_survive_kills_at_random_places(redis_url: str, tmp_path: Path) -> None:
    """Twenty at once, half of them with calls, and four workers killed while they run."""
    draw = random.Random(7)
    said = [f"{sim_text(40, seed)}\n" for seed in range(20)]
    with Stack.start(redis_url, tmp_path, environment={"LEGATO_LEASE_SECONDS": "1"}) as stack:
        generations = [
            stack.submit(_kept_by_sim(text, calls=number % 2 == 1), max_attempts=20) for number, text in enumerate(said)
        ]
        for share in (0.1, 0.3, 0.5, 0.7):
            watched = draw.choice(generations)
            wanted = round(len(said[generations.index(watched)]) * (share + draw.uniform(0, 0.15)))
            wait_until(lambda it=watched, most=wanted: len(text_of(stack, it)) >= most, "so much is shown")  # type: ignore[misc]
            replace_worker(stack, watched)
        with ThreadPoolExecutor(len(generations)) as pool:
            readers = [reader for reader, _ in pool.map(lambda it: follow(stack.urls, it), generations)]
        for number, (reader, text, generation) in enumerate(zip(readers, said, generations, strict=True)):
            check_whole(reader, text)
            calls = [event for event in events(stack, generation) if isinstance(event, ToolCallDone)]
            assert [call.arguments for call in calls] == ([_ARGUMENTS] if number % 2 else [])
            assert arguments_of(stack, generation, 0) == (_ARGUMENTS if number % 2 else "")
        claims = [sum(isinstance(event, Started) for event in events(stack, it)) for it in generations]
        assert sum(claims) > len(generations) + 20, "the kills came while they ran"


_ARGUMENTS = '{"city":"東京","days":[1,2,3],"units":"metric"}'


def _kept_by_sim(text: str, *, calls: bool) -> dict[str, Any]:
    turn: dict[str, Any] = {"text": text}
    if calls:
        turn["tool_calls"] = [{"name": "weather", "arguments": _ARGUMENTS}]
    return {"turns": [turn], "chunk_chars": 3, "tokens_per_second": 15, "resumable": True}


# --- recovery: continue ---


@pytest.fixture(scope="module")
def models() -> ByModel:
    return ByModel()


@pytest.fixture(scope="module")
def local(models: ByModel) -> Iterator[WireProvider]:
    with WireProvider(models) as server:
        yield server


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize(
    ("shown", "answer", "rest"),
    [
        ("Half an ans", "wer.", "wer."),
        ("A word and a space ", "then this.", "then this."),
        ("A word and a space ", " then this.", "then this."),
        ("Zwei Hälften: 🌉 ü", "ber.", "ber."),
    ],
    ids=["inside a word", "behind a space", "behind a space that is repeated", "of wide characters"],
)
def test_a_model_that_can_goes_on_behind_the_text_that_was_shown(
    stack: Stack, models: ByModel, local: WireProvider, style: str, shown: str, answer: str, rest: str
) -> None:
    model = f"m {style} {shown}{answer}"
    models.script(
        model,
        Reply.events(openai_stream(shown, finish_reason=None, done=False), end=Cut()),
        Reply.events(openai_stream(shown.rstrip() + answer if style == "prefix" else answer)),
    )
    fields: dict[str, Any] = {"provider": style, "recovery": "continue", "provider_options": {}}
    reader, _ = follow(stack.urls, submit(stack, model, **fields))
    check_whole(reader, shown + rest)
    first, second = (request.body for request in local.requests if request.body["model"] == model)
    assert first["messages"] == MESSAGES
    *before, last = second["messages"]
    assert before == MESSAGES
    assert (last["role"], last["content"]) == ("assistant", shown.rstrip())
    assert last.get("prefix") == (True if style == "prefix" else None)
    assert second.get("continue_final_message") == (True if style == "vllm" else None)


def test_no_model_goes_on_with_the_text_of_another(stack: Stack, models: ByModel, local: WireProvider) -> None:
    """A fallback that could go on from a text takes back what the first target said."""
    models.script("m first", Reply(actions=(Send(openai_chunk({"content": "Half an ans"})), Cut())))
    models.script("m second", Reply.events(openai_stream("All of it.")))
    fallback = {"provider": "prefill", "model": "m second"}
    body = {"provider": "vllm", "model": "m first", "recovery": "continue", "fallbacks": [fallback]}
    answer = stack.post("/v1/generations", {**body, "messages": MESSAGES})
    assert answer.status == 202, answer.body
    reader, _ = follow(stack.urls, answer.json()["id"])
    assert (reader.text, reader.events.count("reset"), reader.events[-1]) == ("All of it.", 1, "completed")
    asked = [request.body["messages"] for request in local.requests if request.body["model"] == "m second"]
    assert asked == [MESSAGES]


def test_a_model_that_was_not_declared_starts_over(stack: Stack, models: ByModel, local: WireProvider) -> None:
    models.script(
        "undeclared",
        Reply.events(openai_stream("Half an ans", finish_reason=None, done=False), end=Cut()),
        Reply.events(openai_stream("A whole answer.")),
    )
    fields: dict[str, Any] = {"provider": "vllm", "recovery": "continue", "provider_options": {}}
    reader, _ = follow(stack.urls, submit(stack, "undeclared", **fields))
    assert (reader.text, reader.events.count("reset"), reader.events[-1]) == ("A whole answer.", 1, "completed")
    asked = [request.body["messages"] for request in local.requests if request.body["model"] == "undeclared"]
    assert asked == [MESSAGES, MESSAGES]
