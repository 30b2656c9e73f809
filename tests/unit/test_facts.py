"""What a generation cost and how it went, as its last worker counted."""

from __future__ import annotations

import orjson
import pytest

from broker.declared import Price
from broker.events import Usage
from broker.settings import Settings
from worker.facts import Facts, cost, encoded, price_of

PRICE = Price(input=1.25, cached_input=0.125, output=10)


def usage(input_tokens: int, output_tokens: int, **more: int) -> Usage:
    return Usage(input_tokens=input_tokens, output_tokens=output_tokens, **more)


@pytest.mark.parametrize(
    ("used", "price", "wanted"),
    [
        (usage(1_000_000, 0), PRICE, 1.25),
        (usage(0, 1_000_000), PRICE, 10.0),
        (usage(1_000, 200), PRICE, 0.00325),
        (usage(1_000, 200, cached_tokens=400), PRICE, 0.0028),
        (usage(1_000, 0, cached_tokens=1_000), PRICE, 0.000125),
        (usage(1_000, 0, cached_tokens=2_000), PRICE, 0.00025),  # a provider's own sum: never less than nothing
        (usage(1_000, 0, cached_tokens=400), Price(input=2, output=8), 0.002),  # cached input has no price of its own
        (usage(1_000, 0, cached_tokens=400), Price(input=2, cached_input=0, output=8), 0.0012),
        (usage(10, 20, reasoning_tokens=15), PRICE, 0.0002125),  # reasoning is part of the output
        (usage(0, 0), PRICE, 0.0),
        (usage(1, 0), Price(input=0.0001, output=0), 0.0),  # below a billionth
    ],
)
def test_a_cost_is_what_the_table_says(used: Usage, price: Price, wanted: float) -> None:
    assert cost(used, price) == pytest.approx(wanted, abs=1e-9)


def test_the_first_pattern_that_matches_counts() -> None:
    cheap, dear, rest = (Price(input=price, output=price) for price in (1, 2, 3))
    prices = {"openai/gpt-5-mini*": cheap, "openai/gpt-5*": dear, "*/special": rest}
    wanted = {
        ("openai", "gpt-5-mini-2025"): cheap,
        ("openai", "gpt-5"): dear,
        ("local", "special"): rest,
        ("local", "team/special"): rest,
        ("openai_responses", "gpt-5"): None,
        ("openai", "GPT-5"): None,
        ("anthropic", "gpt-5"): None,
    }
    assert {key: price_of(prices, *key) for key in wanted} == wanted


def test_the_order_of_the_variable_is_the_order_of_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    table = '{"a/m-small": {"input": 1, "output": 1}, "a/*": {"input": 9, "cached_input": 0.5, "output": 9}}'
    monkeypatch.setenv("LEGATO_PRICES", table)
    prices = Settings().prices
    small, other = price_of(prices, "a", "m-small"), price_of(prices, "a", "m")
    assert (small and small.input, small and small.cached_input) == (1, None)
    assert (other and other.input, other and other.cached_input) == (9, 0.5)


def test_what_is_not_known_is_null() -> None:
    found = Facts(queue_ms=7).as_json(None, PRICE)
    unknown = ("connect_ms", "first_token_ms", "tokens_per_second", "input_tokens", "output_tokens", "cost")
    assert {name: found[name] for name in unknown} == dict.fromkeys(unknown)
    assert (found["queue_ms"], found["turns"], found["longest_gap_ms"]) == (7, 0, 0.0)
    assert Facts(queue_ms=0).as_json(usage(1, 1), None)["cost"] is None


def test_times_are_from_the_question_to_the_first_word_and_between_words() -> None:
    facts = Facts(queue_ms=0)
    meter = facts.asked()
    meter.connect_seconds, meter.chunks, meter.bytes = 0.25, 4, 1000
    facts.asked_at = 100.0
    for now in (100.5, 100.75, 102.75, 103.0):
        facts.saw(now)
    facts.output_tokens = 11
    found = facts.as_json(usage(3, 11), PRICE)
    assert (found["connect_ms"], found["first_token_ms"], found["longest_gap_ms"]) == (250.0, 500.0, 2000.0)
    assert found["tokens_per_second"] == 4.0  # ten more tokens in 2.5 s
    assert (found["chunks"], found["bytes"], found["turns"]) == (4, 1000, 1)
    assert found["cost"] == cost(usage(3, 11), PRICE)
    assert orjson.loads(encoded(found)) == found


def test_the_wait_for_tools_is_no_gap_of_the_provider() -> None:
    facts = Facts(queue_ms=0)
    facts.asked()
    facts.asked_at = 1.0
    facts.saw(2.0)
    facts.saw(2.5)
    facts.asked()
    facts.saw(60.0)
    facts.saw(60.25)
    found = facts.as_json(None, None)
    assert found["longest_gap_ms"] == 500.0
    assert (found["turns"], found["first_token_ms"]) == (2, 1000.0)


def test_one_token_has_no_speed() -> None:
    facts = Facts(queue_ms=0)
    facts.asked()
    facts.saw(1.0)
    facts.output_tokens = 1
    assert facts.as_json(usage(1, 1), None)["tokens_per_second"] is None


def test_counts_of_all_calls_are_summed() -> None:
    facts = Facts(queue_ms=0)
    for chunks, size in ((2, 10), (3, 20)):
        meter = facts.asked()
        meter.chunks, meter.bytes = chunks, size
    found = facts.as_json(None, None)
    assert (found["chunks"], found["bytes"], found["turns"]) == (5, 30, 2)
    assert found["connect_ms"] is None
