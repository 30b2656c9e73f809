"""Who is asked next where a provider fails, and what a reader sees of it."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import orjson
import pytest

from broker.events import Completed, Delta, Event, Failed, Reset, Started, Status
from tests.support.sse_client import Reader, follow
from tests.support.stack import Stack
from tests.support.wire_provider import ByModel, Cut, Reply, WireProvider, openai_stream
from worker.providers.sim import sim_text

SIM: dict[str, Any] = {"provider": "sim", "model": "sim-1", "provider_options": {"tokens": 20, "seed": 3}}
SIM_TEXT = sim_text(20, 3)
LIMITED = ("limited-second", "limited-sim", "limited-for-long")
NOT_TODAY = {"error": {"message": "not today"}}


@pytest.fixture(scope="module")
def models() -> ByModel:
    return ByModel()


@pytest.fixture(scope="module")
def server(models: ByModel) -> Iterator[WireProvider]:
    with WireProvider(models) as server:
        yield server


@pytest.fixture(scope="module")
def stack(redis_url: str, tmp_path_factory: pytest.TempPathFactory, server: WireProvider) -> Iterator[Stack]:
    """All are one server under several addresses; at that of `dead` nobody listens. Those that are `limited` are one
    for each test: a Retry-After holds everybody back."""
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        urls = {name: f"{server.url}/{name}" for name in ("first", "second", *LIMITED)}
        urls["dead"] = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        servers = {name: {"base_url": url, "api_key_env": None} for name, url in urls.items()}
        environment = {
            "LEGATO_PROVIDERS": ",".join([*servers, "sim"]),
            "LEGATO_OPENAI_COMPATIBLE": orjson.dumps(servers).decode(),
            "LEGATO_BREAKER_MIN_CALLS": "1000000",
            "LEGATO_RETRY_FLOOR": "1000000",
            "LEGATO_RETRY_BASE_SECONDS": "0.05",
        }
        with Stack.start(redis_url, tmp_path_factory.mktemp("fallbacks"), environment=environment) as stack:
            yield stack


def whole(text: str) -> Reply:
    return Reply.events(openai_stream(text))


def half(text: str) -> Reply:
    return Reply.events(openai_stream(text, finish_reason=None, done=False), end=Cut())


def run(
    stack: Stack, provider: str, model: str, *fallbacks: dict[str, Any], **fields: Any
) -> tuple[Reader, list[Event]]:
    """Submit, and follow to the end; what a reader has, and the log's events."""
    messages = [{"role": "user", "content": "Say something."}]
    body = {"provider": provider, "model": model, "messages": messages, "fallbacks": list(fallbacks), **fields}
    answer = stack.post("/v1/generations", body)
    assert answer.status == 202, answer.body
    generation = str(answer.json()["id"])
    reader, _ = follow(stack.urls, generation)
    return reader, [event for _, event in stack.log(generation)]


def asked(server: WireProvider, *models: str) -> list[tuple[str, str]]:
    """The requests for these models, in their order: at which server, and for which model."""
    calls = [(request.path.split("/")[1], request.body["model"]) for request in server.requests]
    return [call for call in calls if call[1] in models]


@pytest.mark.parametrize(
    ("provider", "status", "code"),
    [
        ("dead", 0, "upstream_error"),
        ("first", 500, "upstream_error"),
        ("first", 401, "upstream_auth"),
        ("limited", 429, "rate_limited"),
    ],
    ids=["refused", "500", "401", "429"],
)
@pytest.mark.parametrize("fallback", ["second", "sim"])
def test_a_fallback_takes_over_before_the_first_token_and_takes_nothing_back(
    stack: Stack, models: ByModel, provider: str, status: int, code: str, fallback: str
) -> None:
    model = f"down-{status}-{fallback}"
    provider = f"limited-{fallback}" if provider == "limited" else provider
    models.script(model, Reply.error(status, NOT_TODAY, **({"retry_after": "30"} if status == 429 else {})))
    models.script("up", whole("It is here."))
    target: dict[str, Any] = {"second": {"provider": "second", "model": "up"}, "sim": SIM}[fallback]
    reader, events = run(stack, provider, model, target, max_attempts=1)
    assert reader.text == {"second": "It is here.", "sim": SIM_TEXT}[fallback]
    assert reader.events[:3] == ["started", "status", "started"]
    assert "reset" not in reader.events
    assert reader.events[-1] == "completed"
    named = [(event.provider, event.model, event.attempt) for event in events if isinstance(event, Started)]
    assert named == [(provider, model, 1), (target["provider"], target["model"], 1)]
    [told] = [event for event in events if isinstance(event, Status)]
    assert told.phase == "retrying"
    assert told.detail.items() >= {"attempt": 1, "delay_ms": 0, "code": code, **_named(target)}.items()


def _named(target: dict[str, Any]) -> dict[str, Any]:
    return {"provider": target["provider"], "model": target["model"]}


def test_a_provider_that_is_to_be_left_alone_is_not_asked_where_there_is_a_fallback(
    stack: Stack, models: ByModel, server: WireProvider
) -> None:
    models.script("limited", Reply.error(429, NOT_TODAY, retry_after="60"))
    for code in ("rate_limited", "retry_after"):
        reader, events = run(stack, "limited-for-long", "limited", SIM)
        assert (reader.text, reader.events[-1]) == (SIM_TEXT, "completed")
        assert [event.detail["code"] for event in events if isinstance(event, Status)] == [code]
    assert asked(server, "limited") == [("limited-for-long", "limited")]


def test_what_no_provider_would_take_is_not_asked_elsewhere(
    stack: Stack, models: ByModel, server: WireProvider
) -> None:
    models.script("wrong", Reply.error(400, NOT_TODAY))
    models.script("not-asked", whole("no"))
    reader, _ = run(stack, "first", "wrong", {"provider": "second", "model": "not-asked"})
    assert reader.ended is not None
    assert (reader.ended.event, reader.ended.data["code"]) == ("failed", "invalid_request")
    assert asked(server, "wrong", "not-asked") == [("first", "wrong")]


def test_text_that_was_shown_is_taken_back_by_a_marked_reset(stack: Stack, models: ByModel) -> None:
    models.script("breaks", half("Half an ans"))
    models.script("mends", whole("A whole answer."))
    reader, events = run(stack, "first", "breaks", {"provider": "second", "model": "mends"}, max_attempts=1)
    assert reader.text == "A whole answer."
    assert [type(event) for event in events if not isinstance(event, Delta)] == [
        *(Started, Status, Reset, Started, Completed),
    ]
    [reset] = [event for event in events if isinstance(event, Reset)]
    assert (reset.attempt, reset.reason) == (1, "upstream_incomplete")
    assert reader.ended is not None
    assert reader.ended.data["characters"] == len("A whole answer.")


def test_who_asked_not_to_start_over_gets_no_fallback_behind_a_text(
    stack: Stack, models: ByModel, server: WireProvider
) -> None:
    models.script("breaks-for-good", half("Half an ans"))
    models.script("too-late", whole("no"))
    fallback = {"provider": "second", "model": "too-late"}
    reader, _ = run(stack, "first", "breaks-for-good", fallback, recovery="fail")
    assert reader.text == "Half an ans"
    assert reader.ended is not None
    assert reader.ended.event == "failed"
    end = {name: reader.ended.data[name] for name in ("code", "partial", "characters", "retryable")}
    assert end == {"code": "upstream_incomplete", "partial": True, "characters": 11, "retryable": True}
    assert asked(server, "breaks-for-good", "too-late") == [("first", "breaks-for-good")]


def test_who_asked_not_to_start_over_gets_a_fallback_before_a_text(stack: Stack, models: ByModel) -> None:
    models.script("silent", Reply.error(503, NOT_TODAY))
    reader, _ = run(stack, "first", "silent", SIM, recovery="fail")
    assert (reader.text, reader.events[-1]) == (SIM_TEXT, "completed")


def test_behind_the_last_one_the_first_is_asked_again_after_a_delay(
    stack: Stack, models: ByModel, server: WireProvider
) -> None:
    models.script("weak", Reply.error(500, NOT_TODAY), whole("Now."))
    models.script("weaker", Reply.error(503, NOT_TODAY))
    reader, events = run(stack, "first", "weak", {"provider": "second", "model": "weaker"})
    assert reader.text == "Now."
    assert asked(server, "weak", "weaker") == [("first", "weak"), ("second", "weaker"), ("first", "weak")]
    told = [event.detail for event in events if isinstance(event, Status)]
    assert [(detail["attempt"], detail.get("model")) for detail in told] == [(1, "weaker"), (2, None)]
    assert [event.attempt for event in events if isinstance(event, Started)] == [1, 1, 2]


def test_when_nobody_answers_it_fails_with_what_the_last_one_said(
    stack: Stack, models: ByModel, server: WireProvider
) -> None:
    models.script("gone-1", Reply.error(500, NOT_TODAY))
    models.script("gone-2", Reply.error(429, NOT_TODAY))
    reader, events = run(stack, "first", "gone-1", {"provider": "second", "model": "gone-2"}, max_attempts=2)
    assert reader.text == ""
    end = events[-1]
    assert isinstance(end, Failed)
    assert (end.code.value, end.retryable, end.partial, end.characters) == ("rate_limited", True, False, 0)
    assert asked(server, "gone-1", "gone-2") == [("first", "gone-1"), ("second", "gone-2")] * 2


def test_options_are_for_the_provider_they_were_given_for(stack: Stack, models: ByModel, server: WireProvider) -> None:
    for model in ("own", "same", "other"):
        models.script(f"options-{model}", Reply.error(500, NOT_TODAY))
    fallbacks = [
        {"provider": "first", "model": "options-same"},
        {"provider": "second", "model": "options-other"},
        {"provider": "sim", "model": "sim-1"},
    ]
    options = {"top_k": 5, "extra_headers": {"x-mine": "secret"}}
    reader, _ = run(stack, "first", "options-own", *fallbacks, provider_options=options)
    assert reader.events[-1] == "completed"  # sim refuses options that it does not know
    calls = {request.body["model"]: request for request in server.requests}
    given = {model: (call.body.get("top_k"), call.headers.get("x-mine")) for model, call in calls.items()}
    assert given["options-own"] == given["options-same"] == (5, "secret")
    assert given["options-other"] == (None, None)


def test_a_fallback_of_its_own_options_gets_those_and_no_others(
    stack: Stack, models: ByModel, server: WireProvider
) -> None:
    models.script("option-a", Reply.error(500, NOT_TODAY))
    models.script("option-b", whole("Here."))
    fallback = {"provider": "first", "model": "option-b", "provider_options": {"min_p": 0.1}}
    run(stack, "first", "option-a", fallback, provider_options={"top_k": 5})
    [body] = [request.body for request in server.requests if request.body["model"] == "option-b"]
    assert (body.get("top_k"), body.get("min_p")) == (None, 0.1)


def test_a_fallback_whose_answer_can_be_read_on_is_gone_on_with(
    stack: Stack, models: ByModel, server: WireProvider
) -> None:
    """Its worker is lost: the next one asks neither the first target again nor takes anything back."""
    models.script("down-again", Reply.error(500, NOT_TODAY))
    options = {"tokens": 60, "seed": 4, "tokens_per_second": 25, "resumable": True}
    messages = [{"role": "user", "content": "Say something."}]
    fallback = {"provider": "sim", "model": "sim-1", "provider_options": options}
    body = {"provider": "first", "model": "down-again", "messages": messages, "fallbacks": [fallback]}
    generation = str(stack.post("/v1/generations", body).json()["id"])
    stack.wait_entries(generation, 20)
    stack.holder(generation).kill()
    stack.add_worker()
    reader, _ = follow(stack.urls, generation)
    assert reader.text == sim_text(60, 4)
    assert "reset" not in reader.events
    assert asked(server, "down-again") == [("first", "down-again")]
