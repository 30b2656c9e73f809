"""The provider that needs no key: demos, load tests and client tests.

Deterministic from `provider_options` (`SimOptions` says what each means): the same options give the same text, on
every machine and Python version, and `legato sim` prints it. It can be told to fail like the real ones do. Time
follows an absolute schedule: a consumer that pauses gets what is overdue at once, as from a server's buffer.

It does not look at `max_output_tokens` and the like: what it says is decided by its options, and with `turns` by how
far the conversation has come.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Iterator
from typing import Annotated, Final, Literal

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from broker.errors import ProviderError
from broker.events import Delta, FailureCode, FinishReason, Json, ToolCall, ToolCallDone, Usage, UsageReport
from broker.generation import Request
from worker.providers.base import Call, Finish, Mark, ProviderEvent, ResumeImpossible

#: Tokens where the options give neither `text` nor `tokens`.
DEFAULT_TOKENS: Final = 64

#: Chunk size of `text`, in code points, where the options give none.
DEFAULT_CHUNK_CHARS: Final = 4

#: What a simulated rate limit asks to wait, in seconds.
RETRY_AFTER_SECONDS: Final = 1.0

#: As fast as it can still lets everybody else run, once in this many chunks.
_CHUNKS_PER_TURN: Final = 8

_VOCABULARY: Final = (
    "a the one every some no this that our their two many and or but so while when where then "
    "river mountain window letter station garden engine signal harbour morning evening winter summer "
    "reader writer worker teacher stranger neighbour pilot gardener painter child voice answer question "
    "carries follows opens closes remembers forgets crosses repeats measures counts finds loses keeps moves "
    "slowly quickly quietly twice again always never almost together alone early late far near above below "
    "café naïve über señor 東京 мир λόγος 🚀 green silver open broken patient careful sudden endless"
)
_WORDS: Final = tuple(_VOCABULARY.split())


class SimFault(BaseModel):
    """Something that goes wrong instead of chunk `at_token`."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    #: Chunks sent before it. The number of all chunks means: after the last one, before the end marker.
    at_token: int = Field(ge=0)
    kind: Literal["error", "stall", "truncate", "rate_limit"]
    #: Only in this attempt, counted from 1; left out: in every one.
    attempt: int | None = Field(default=None, ge=1)


class SimToolCall(BaseModel):
    """A call of a tool."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    name: str = Field(min_length=1)
    #: An object, or text that is sent as it is (so that it may be no JSON).
    arguments: Json | str = "{}"
    #: `call_<turn>_<number>`, both from 0, where there is none.
    id: str | None = Field(default=None, min_length=1)


class SimTurn(BaseModel):
    """What is said in one turn: text, then calls."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    text: str = ""
    tool_calls: list[SimToolCall] = Field(default_factory=list)


class SimOptions(BaseModel):
    """What `provider_options` may hold. Unknown names are refused."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    #: Streamed back verbatim, `chunk_chars` code points a chunk.
    text: str | None = None
    #: Generated instead of `text`: this many tokens, one a chunk unless `chunk_chars` is given.
    tokens: int | None = Field(default=None, ge=0, le=1_000_000)
    seed: int = 0
    #: Chunks a second; 0 is as fast as it can.
    tokens_per_second: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    #: Silence before the first chunk.
    first_token_ms: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    chunk_chars: int | None = Field(default=None, ge=1)
    #: Said instead of `text`, one for each request of a tool loop: the first, then one more for every turn of the
    #: assistant with calls that stands behind the last message of the user. The last one is repeated.
    turns: list[SimTurn] | None = Field(default=None, min_length=1)
    #: Marks behind every chunk that no call is half-way at, and `Call.resume` goes on from one.
    resumable: bool = False
    #: The first one due stops the attempt.
    faults: list[SimFault] = Field(default_factory=list)

    @model_validator(mode="after")
    def _one_source(self) -> SimOptions:
        if sum(source is not None for source in (self.text, self.tokens, self.turns)) > 1:
            raise ValueError("text, tokens and turns exclude one another")
        return self


class SimProvider:
    """See the module."""

    name: Final = "sim"

    def can_continue(self, request: Request) -> bool:
        """Always: the text is known."""
        return True

    async def stream(self, call: Call) -> AsyncGenerator[ProviderEvent, None]:
        """What the options ask for, then usage (chunks as output tokens, words as input tokens) and `Finish`.

        Going on from a partial text, chunks that are in it are skipped, and cost no time; they count all the same. So
        are those before a mark, whose token says how many they are.
        """
        options = _options(call.request.provider_options)
        number, turn = _turn(options, call.request.messages)
        fault = _first_fault(options.faults, attempt=call.attempt)
        loop = asyncio.get_running_loop()
        start = loop.time() + options.first_token_ms / 1000
        interval = 1 / options.tokens_per_second if options.tokens_per_second else 0.0
        count, marked = 0, _marked(call.resume)
        shown = 0 if marked else len(call.partial)
        for events in _chunks(options, number, turn):
            text = events[0].text if isinstance(events[0], Delta) else ""
            if count < marked or 0 < len(text) <= shown:
                shown = max(0, shown - len(text))
                start -= interval
            else:
                await _until(start + count * interval, turn=count % _CHUNKS_PER_TURN == 0)
                if fault is not None and count == fault.at_token:
                    await _fail(fault)
                for event in events:
                    yield Delta(text=text[shown:]) if shown and text else event
                shown = 0
                if options.resumable and not isinstance(events[-1], ToolCall):
                    yield Mark(token={"shown": count + 1})
            count += 1
        await _until(start, turn=True)
        if fault is not None and count == fault.at_token:
            await _fail(fault)
        usage = Usage(input_tokens=_count_words(call.request.messages), output_tokens=count)
        yield UsageReport(usage=usage)
        reason = FinishReason.TOOL_CALLS if turn is not None and turn.tool_calls else FinishReason.STOP
        yield Finish(finish_reason=reason, usage=usage)

    async def abandon(self, token: Json) -> None:
        """Nothing goes on here without a reader."""

    async def aclose(self) -> None:
        """Nothing is held."""


def sim_tokens(tokens: int, seed: int) -> Iterator[str]:
    """The generated tokens, one by one; joined they are the text. A longer text starts with the shorter one.

    Only `random()` of a seeded generator is promised to be the same in every Python version, so only it is used.
    """
    draw = random.Random(seed).random
    words_left = 0  # in this sentence
    sentences = 0
    for number in range(tokens):
        word = _WORDS[int(draw() * len(_WORDS))]
        space = " " if number else ""
        if words_left == 0:
            words_left = 5 + int(draw() * 10)
            space = ("\n\n" if sentences % 5 == 0 else " ") if number else ""
            sentences += 1
            word = word[:1].upper() + word[1:]
        words_left -= 1
        yield space + word + ("." if words_left == 0 else "")


def sim_text(tokens: int, seed: int) -> str:
    """The text of `{"tokens": tokens, "seed": seed}`."""
    return "".join(sim_tokens(tokens, seed))


def _options(options: Json) -> SimOptions:
    try:
        return SimOptions.model_validate(options)
    except ValidationError as exc:
        problems = (
            f"{'.'.join(map(str, ('provider_options', *error['loc'])))}: {error['msg']}"
            for error in exc.errors(include_input=False, include_url=False)
        )
        raise ProviderError(FailureCode.INVALID_REQUEST, "; ".join(problems)) from None


def _turn(options: SimOptions, messages: list[Json]) -> tuple[int, SimTurn | None]:
    """The turn to say and its number; `None` where the options have no turns."""
    if options.turns is None:
        return 0, None
    number = 0
    for message in messages:
        if message.get("role") == "user":
            number = 0
        elif message.get("role") == "assistant" and message.get("tool_calls"):
            number += 1
    return number, options.turns[min(number, len(options.turns) - 1)]


def _marked(token: Json | None) -> int:
    """Chunks before a mark."""
    match token:
        case None:
            return 0
        case {"shown": int(count)} if count >= 0:
            return count
        case _:
            raise ResumeImpossible("sim has set no such mark")


def _chunks(options: SimOptions, number: int, turn: SimTurn | None) -> Iterator[tuple[ProviderEvent, ...]]:
    """What is said, as it comes: the text's pieces, then the fragments of each call, the last one with its end."""
    for text in _texts(options, turn):
        yield (Delta(text=text),)
    for index, call in enumerate(turn.tool_calls if turn is not None else ()):
        whole = call.arguments if isinstance(call.arguments, str) else orjson.dumps(call.arguments).decode()
        call_id = call.id or f"call_{number}_{index}"
        first, *others = [*_pieces(whole, options.chunk_chars or DEFAULT_CHUNK_CHARS)] or [""]
        fragments = [ToolCall(index=index, arguments=first, id=call_id, name=call.name)]
        fragments += [ToolCall(index=index, arguments=fragment) for fragment in others]
        for fragment in fragments[:-1]:
            yield (fragment,)
        yield fragments[-1], ToolCallDone(index=index, id=call_id, name=call.name, arguments=whole)


def _texts(options: SimOptions, turn: SimTurn | None) -> Iterator[str]:
    text = options.text if turn is None else turn.text
    if text is not None:
        return _pieces(text, options.chunk_chars or DEFAULT_CHUNK_CHARS)
    tokens = DEFAULT_TOKENS if options.tokens is None else options.tokens
    if options.chunk_chars is None:
        return sim_tokens(tokens, options.seed)
    return _pieces(sim_text(tokens, options.seed), options.chunk_chars)


def _pieces(text: str, size: int) -> Iterator[str]:
    return (text[start : start + size] for start in range(0, len(text), size))


def _first_fault(faults: list[SimFault], *, attempt: int) -> SimFault | None:
    due = (fault for fault in faults if fault.attempt in {None, attempt})
    return min(due, key=lambda fault: fault.at_token, default=None)


async def _until(due: float, *, turn: bool) -> None:
    """Sleep until `due` (the loop's clock); where it has passed, give the loop a turn if `turn`."""
    if (delay := due - asyncio.get_running_loop().time()) > 0:
        await asyncio.sleep(delay)
    elif turn:
        await asyncio.sleep(0)


async def _fail(fault: SimFault) -> None:
    match fault.kind:
        case "error":
            raise ProviderError(FailureCode.UPSTREAM_ERROR, "sim: a simulated error", retryable=True)
        case "rate_limit":
            raise ProviderError(
                FailureCode.RATE_LIMITED, "sim: a simulated rate limit", retryable=True, retry_after=RETRY_AFTER_SECONDS
            )
        case "truncate":
            raise ProviderError(
                FailureCode.UPSTREAM_INCOMPLETE, "sim ended its stream without its terminal marker", retryable=True
            )
        case "stall":
            await asyncio.get_running_loop().create_future()


def _count_words(messages: list[Json]) -> int:
    words = 0
    for message in messages:
        content = message.get("content")
        parts = content if isinstance(content, list) else [{"text": content}]
        texts = (part.get("text") for part in parts if isinstance(part, dict))
        words += sum(len(text.split()) for text in texts if isinstance(text, str))
    return words
