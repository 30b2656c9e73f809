"""What a provider's error may not say: the prompt, in whatever shape it is quoted."""

from __future__ import annotations

import json
import sys
from types import FrameType
from typing import Any

import pytest

from broker.generation import Request
from worker.privacy import QUOTED_CHARS, without_prompt

PROMPT = 'My name is Ada Lovelace, my card is 4111 1111.\n\tShe said "open\\close": naïve 東京 🌉.'
#: Words of the prompt of which none may be left over.
WORDS = ("Ada", "Lovelace", "4111", "open", "close", "naïve", "東京")
#: Longest prompt: a body may have 1 MiB.
MIB = 1 << 20


def request(content: Any = PROMPT, **fields: Any) -> Request:
    return Request(provider="p", model="gpt-5-mini", messages=[{"role": "user", "content": content}], **fields)


def assert_no_words(message: str, words: tuple[str, ...] = WORDS) -> None:
    assert "[prompt]" in message
    assert [word for word in words if word in message] == []


@pytest.mark.parametrize(
    "quote",
    [
        PROMPT,
        " ".join(PROMPT.split()),
        PROMPT.replace(" ", "\n"),
        json.dumps(PROMPT, ensure_ascii=False),
        json.dumps(PROMPT),
        json.dumps(json.dumps(PROMPT, ensure_ascii=False), ensure_ascii=False),
        repr(PROMPT),
        PROMPT[:45] + "…",
        "…" + PROMPT[30:],
        repr([{"role": "user", "content": PROMPT}]),
        json.dumps({"messages": [{"role": "user", "content": PROMPT}]}, indent=2),
    ],
    ids=[
        *("verbatim", "on one line", "one word a line", "JSON", "JSON in ASCII", "JSON twice", "repr", "its beginning"),
        *("its end", "in a repr of messages", "in a JSON body"),
    ],
)
def test_a_quoted_prompt_is_cut_out(quote: str) -> None:
    message = without_prompt(f"Unprocessable: got {quote} for field 'messages'.", request())
    assert_no_words(message)
    assert message.startswith("Unprocessable: got ")
    assert message.endswith("for field 'messages'.")


@pytest.mark.parametrize("quote", ['"{}"', "'{}'", "`{}`", "“{}”", "«{}»", '\\"{}\\"'])
def test_a_short_prompt_is_cut_out_where_it_is_quoted(quote: str) -> None:
    message = f"cannot parse {quote.format('pin 1234')} here"
    assert without_prompt(message, request("pin 1234")) == f"cannot parse {quote.format('[prompt]')} here"


def test_a_prompt_of_short_lines_is_cut_out_of_json() -> None:
    lines = "user: ada\npin: 1234\ncity: Paris\nage: 36"
    message = without_prompt(f"bad content {json.dumps(lines)}", request(lines))
    assert_no_words(message, ("ada", "1234", "Paris", "36"))


@pytest.mark.parametrize(
    "fields",
    [
        {"messages": [{"role": "system", "content": PROMPT}, {"role": "user", "content": "x"}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": PROMPT}]}]},
        {"messages": [{"role": "user", "content": [{"type": "file", "file": {"filename": PROMPT}}]}]},
        {
            "messages": [
                {"role": "assistant", "tool_calls": [{"id": "a", "function": {"name": "f", "arguments": PROMPT}}]},
                {"role": "tool", "tool_call_id": "a", "content": PROMPT},
            ]
        },
        {"tools": [{"type": "function", "function": {"name": "f", "description": PROMPT}}]},
        {"provider_options": {"instructions": PROMPT}},
        {"provider_options": {"extra_body": {"documents": [{"text": PROMPT}]}}},
        {"stop": [PROMPT]},
    ],
    ids=["system", "part", "file", "call", "tool", "options", "nested options", "stop"],
)
def test_everything_that_the_client_wrote_counts(fields: dict[str, Any]) -> None:
    base: dict[str, Any] = {"provider": "p", "model": "m", "messages": [{"role": "user", "content": "x"}]}
    assert_no_words(without_prompt(f"got {PROMPT} there", Request(**(base | fields))))


@pytest.mark.parametrize(
    "message",
    [
        "openai answered 429: Rate limit reached for gpt-5-mini on tokens per min: Limit 30000, Used 29000.",
        "anthropic answered 529: Overloaded",
        "The model `gpt-5-mini` does not exist or you do not have access to it.",
        "messages.1.content: Input should be a valid string",
        "",
    ],
)
def test_ordinary_words_stay(message: str) -> None:
    assert without_prompt(message, request("Use the model for a valid string on tokens, please. Or not.")) == message


def test_words_of_a_tools_schema_are_no_quotation() -> None:
    """`object` and `string` stand in every schema, and in what providers say of it."""
    schema = {"type": "object", "properties": {"city": {"type": "string"}}}
    tools = [{"type": "function", "function": {"name": "weather", "parameters": schema}}]
    message = "Invalid type for 'tools[0]': expected 'object', but got 'string'."
    assert without_prompt(message, request(tools=tools)) == message


@pytest.mark.parametrize("length", [QUOTED_CHARS - 1, QUOTED_CHARS])
def test_so_many_characters_in_a_row_are_a_quotation(length: int) -> None:
    piece = "abcdefghijklmnopqrstuvwxyz"[3 : 3 + length]
    kept = piece if length < QUOTED_CHARS else "[prompt]"
    assert without_prompt(f"<<{piece}>>", request("abcdefghijklmnopqrstuvwxyz")) == f"<<{kept}>>"


def test_several_quotations_are_cut_out_each() -> None:
    first, second = "the first of the two texts", "and another one that is second"
    messages = [{"role": "user", "content": first}, {"role": "user", "content": second}]
    found = without_prompt(f"a {first} b {second} c", Request(provider="p", model="m", messages=messages))
    assert found == "a [prompt] b [prompt] c"


@pytest.mark.parametrize(
    "content",
    [
        "lorem ipsum " * (MIB // 12),
        "a" * MIB,
        [{"type": "text", "text": f"ab{number:05}"} for number in range(MIB // 32)],
        [{"type": "text", "text": f"näher an {number:05}"} for number in range(MIB // 40)],
    ],
    ids=["words", "one letter", "short parts", "short parts beyond ASCII"],
)
def test_the_longest_prompt_costs_a_bounded_number_of_steps(content: Any) -> None:
    """A step is a call, of a function or a method: the worker can do nothing else meanwhile."""
    parts = len(content) if isinstance(content, list) else 1
    message = "the provider answered 400: " + "a" * 270
    assert calls_of(lambda: without_prompt(message, request(content))) < 20 * parts + 200 * len(message)


def calls_of(work: Any) -> int:
    count = 0

    def counting(frame: FrameType, event: str, what: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(counting)
    try:
        work()
    finally:
        sys.setprofile(before)
    return count
