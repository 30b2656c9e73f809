"""Going on from a text that was shown: nothing is repeated at the seam, nothing skipped; and never unless declared."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import anthropic
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.events import Delta, DeltaKind, FinishReason, ToolCall
from tests.providers.wires import API_KEY, Wire, collect, request, text_of
from tests.support.wire_provider import Reply, WireProvider, anthropic_stream, openai_stream
from worker.providers.anthropic import AnthropicProvider
from worker.providers.base import Call, Finish, ProviderEvent
from worker.providers.openai import OpenAIProvider, Quirks
from worker.providers.seam import Seam


class Script:
    """A mapper that says what it is given, one list a frame."""

    def __init__(self, *frames: list[ProviderEvent]) -> None:
        self._frames = list(frames)

    @property
    def finished(self) -> bool:
        return not self._frames

    def feed(self, name: bytes | None, data: bytes) -> list[ProviderEvent]:
        return self._frames.pop(0)

    def end(self) -> list[ProviderEvent]:
        return [event for frame in self._frames for event in frame]


END = Finish(finish_reason=FinishReason.STOP, usage=None)


def joined(partial: str, *frames: list[ProviderEvent], echo: bool = False) -> list[ProviderEvent]:
    """What follows the seam, where the provider says `frames`."""
    seam = Seam(Script(*frames), partial, echo=echo)
    out: list[ProviderEvent] = []
    while not seam.finished:
        out += seam.feed(None, b"")
    return out


def new_text(partial: str, *texts: str, echo: bool = False) -> str:
    deltas: list[list[ProviderEvent]] = [[Delta(text=text)] for text in texts]
    events = joined(partial, *deltas, [END], echo=echo)
    assert events[-1] == END
    assert all(event.text for event in events if isinstance(event, Delta))
    return text_of(events)


@pytest.mark.parametrize(
    ("partial", "texts", "new"),
    [
        ("Once", [" upon"], " upon"),
        ("Once ", [" upon"], "upon"),
        ("Once ", ["upon"], "upon"),
        ("Once ", ["\nupon"], "\nupon"),
        ("Once \n", [" ", "\n", "\nupon"], "\nupon"),
        ("Once\n\n", ["\nupon"], "upon"),
        ("Once ", ["  upon"], " upon"),
        ("Once ", [" ", " upon"], " upon"),
        ("Once ", [" "], ""),
        ("Once ", [], ""),
        (" \n", ["Once"], "Once"),
        (" \n", [" ", "\nOnce"], "Once"),
        ("Once\u00a0", ["\u00a0upon"], "upon"),
    ],
)
def test_whitespace_that_was_shown_is_not_shown_again(partial: str, texts: list[str], new: str) -> None:
    """As far as the model repeats it; what it says instead follows."""
    assert new_text(partial, *texts) == new


@pytest.mark.parametrize(
    ("partial", "texts", "new"),
    [
        ("Once ", ["On", "ce", " upon"], "upon"),
        ("Once", ["Once upon"], " upon"),
        ("Once", ["Once"], ""),
        ("Once", [" upon"], " upon"),
        ("Once", ["One", " more"], "One more"),
        ("Once", ["On", "e more"], "One more"),
        ("Once", ["On"], "On"),
        ("Once ", ["upon"], "upon"),
        ("Once", ["Once", "Once"], "Once"),
    ],
)
def test_an_echo_is_not_shown_again(partial: str, texts: list[str], new: str) -> None:
    """Only if all of it comes."""
    assert new_text(partial, *texts, echo=True) == new


@given(
    partial=st.text("ab \n", max_size=8),
    more=st.text("ab \n", max_size=8),
    cuts=st.lists(st.integers(0, 16), max_size=4),
    echo=st.booleans(),
)
def test_whatever_is_repeated_the_text_is_the_same(partial: str, more: str, cuts: list[int], echo: bool) -> None:
    """A server that repeats what it was sent, or the whitespace behind it, or nothing: the whole text is the one
    that it had in mind, wherever the pieces are cut."""
    whole = partial + more
    sent = partial.rstrip()
    answer = whole if echo else whole[len(sent) :]
    places = sorted({0, len(answer), *(min(cut, len(answer)) for cut in cuts)})
    texts = [answer[start:end] for start, end in pairwise(places)]
    assert partial + new_text(partial, *texts, echo=echo and bool(sent)) == whole


def test_what_is_held_back_comes_before_what_follows_it() -> None:
    call = ToolCall(index=0, id="c", name="f", arguments="")
    thought = Delta(text="hm", kind=DeltaKind.REASONING)
    assert joined("Once", [thought, Delta(text="On"), call], [END], echo=True) == [
        thought,
        Delta(text="On"),
        call,
        END,
    ]


@pytest.mark.parametrize(
    ("style", "message", "body"),
    [
        ("vllm", {}, {"continue_final_message": True, "add_generation_prompt": False}),
        ("prefill", {}, {}),
        ("prefix", {"prefix": True}, {}),
    ],
)
async def test_chat_completions_are_told_in_the_servers_own_way(
    server: WireProvider, style: Any, message: dict[str, Any], body: dict[str, Any]
) -> None:
    """And only then."""
    server.script(*[Reply.events(openai_stream(" upon"))] * 3)
    async with openai.AsyncOpenAI(api_key=API_KEY, base_url=server.openai_url) as client:
        provider = OpenAIProvider(client=client, continue_models=["m"], quirks=Quirks(continue_style=style))
        assert provider.can_continue(request())
        texts = [
            text_of((await collect(provider.stream(Call(request(), partial=partial))))[0])
            for partial in ("", "Once ", "\n")
        ]
    assert texts == [" upon", "upon", " upon"]
    plain, continued, blank = (received.body for received in server.requests)
    assert continued["messages"] == [*plain["messages"], {"role": "assistant", "content": "Once"} | message]
    assert {name: continued[name] for name in continued.keys() - plain.keys()} == body
    assert blank == plain, "there is nothing to go on from"


async def test_anthropic_gets_the_beginning_of_its_answer(server: WireProvider) -> None:
    server.script(Reply.events(anthropic_stream(" upon", " a time")))
    async with anthropic.AsyncAnthropic(api_key=API_KEY, base_url=server.url) as client:
        provider = AnthropicProvider(client=client, continue_models=["claude-3-*"])
        events, error = await collect(provider.stream(Call(request(), partial="Once ")))
    assert error is None
    assert text_of(events) == "upon a time"
    assert server.requests[0].body["messages"][-1] == {"role": "assistant", "content": "Once"}


async def test_nothing_goes_on_where_nothing_is_declared(server: WireProvider, wire: Wire) -> None:
    async with wire.connect(server) as provider:
        assert not provider.can_continue(request(model="claude-3-opus"))


@pytest.mark.parametrize(
    ("fields", "can"),
    [
        ({"model": "claude-3-opus"}, True),
        ({"model": "claude-4-opus"}, False),
        ({"model": "x-claude-3-opus"}, False),
        ({"model": "Claude-3-opus"}, False),
        ({"model": "claude-3-opus", "messages": [{"role": "assistant", "content": "{"}]}, False),
        ({"model": "claude-3-opus", "provider_options": {"thinking": {"type": "enabled"}}}, False),
        ({"model": "claude-3-opus", "provider_options": {"thinking": {"type": "disabled"}}}, True),
    ],
)
def test_a_model_goes_on_where_its_name_is_declared(fields: dict[str, Any], can: bool) -> None:
    """Not where the request holds a beginning of its own, or lets the model think."""
    assert AnthropicProvider(continue_models=["claude-3-*"]).can_continue(request(**fields)) is can


def test_a_server_without_a_way_to_go_on_never_does() -> None:
    assert not OpenAIProvider(continue_models=["*"]).can_continue(request())
