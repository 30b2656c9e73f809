"""How text is cut into deltas: what goes when, told by examples. tests/property/test_delivery_model.py is the model."""

from __future__ import annotations

import itertools
from typing import Final

import pytest
import regex

import worker.delivery
from broker.generation import Delivery
from worker.delivery import Cutter

FAMILY: Final = "👨‍👩‍👧‍👦"
ENGLAND: Final = "🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f"


def fed(text: str, *, unit: str = "token", max_chars: int | None = None) -> tuple[list[str], str]:
    """The pieces that go when `text` comes character by character, and what waits then."""
    cutter = Cutter(Delivery(unit=unit, max_chars=max_chars))
    return [piece for char in text for piece in cutter.feed(char)], cutter.held


def test_tokens_go_out_as_they_come() -> None:
    cutter = Cutter(Delivery())
    assert [cutter.feed(chunk) for chunk in ("Hel", "", "lo \u200d", "\u0301")] == [
        ["Hel"],
        [],
        ["lo \u200d"],
        ["\u0301"],
    ]
    assert cutter.held == ""
    assert cutter.due() == cutter.end() == []


@pytest.mark.parametrize(
    ("text", "gone", "held"),
    [
        ("Hello, world. ", ["Hello,", " world."], " "),
        ('He said "stop" (now)!', ["He", " said", ' "stop"'], " (now)!"),
        ("can't pay $3.14 or 1,000", ["can't", " pay", " $3.14", " or"], " 1,000"),
        ("well-known https://a.b/c ", ["well-", "known", " https://", "a.b/", "c"], " "),
        ("a\n\n  b ", ["a", "\n\n  b"], " "),
        ("「你好。」世界", ["「你", "好。」", "世"], "界"),
        ("カタカナと", ["カタカナ"], "と"),
        ("สวัส", ["ส", "วั"], "ส"),
        ("👍🏽🇩🇪🇫🇷x", ["👍🏽", "🇩🇪", "🇫🇷"], "x"),
    ],
)
def test_a_word_goes_when_the_first_character_behind_it_is_there(text: str, gone: list[str], held: str) -> None:
    assert fed(text, unit="word") == (gone, held)


@pytest.mark.parametrize(
    ("text", "gone", "held"),
    [
        ("It is 3.14. Really? ", ["It is 3.14.", " Really?"], " "),
        ('He said "no." Then (yes!) he', ['He said "no."', " Then (yes!)"], " he"),
        ("Wait... what?! No", ["Wait...", " what?!"], " No"),
        ("e.g. this", ["e.g."], " this"),
        ("**Done.** Next", ["**Done.**"], " Next"),
        ("你好。「再见！」世界", ["你好。", "「再见！」"], "世界"),
        ("Title\n\nText", ["Title"], "\n\nText"),
        ("one\r\ntwo\n", ["one", "\r\ntwo"], "\n"),
        ("नमस्ते। फिर", ["नमस्ते।"], " फिर"),
    ],
)
def test_a_sentence_goes_when_it_is_certain_to_be_over(text: str, gone: list[str], held: str) -> None:
    assert fed(text, unit="sentence") == (gone, held)


def test_a_long_chunk_is_cut_and_a_short_one_passes() -> None:
    cutter = Cutter(Delivery(max_chars=4))
    assert cutter.feed("abcdefghij") == ["abcd", "efgh", "i"]  # an accent may follow the last
    assert cutter.feed("k\n") == ["jk\n"]  # nothing can follow a line feed
    assert cutter.feed("l") == []
    assert cutter.end() == ["l"]


@pytest.mark.parametrize(
    "character",
    [
        FAMILY,
        ENGLAND,
        "👍🏽",
        "🇩🇪",
        "1️⃣",
        "❤️",
        "e\u0301\u0323",
        "각",
        "\u1100\u1161\u11a8",
        "क्षि",
        "\r\n",
        "\ud83d\ude00",
    ],
)
def test_a_character_is_never_cut(character: str) -> None:
    pieces, held = fed(character * 3 + "ab", max_chars=1)
    assert pieces == [character] * 3 + ["a"]
    assert held == "b"


def test_the_pieces_of_a_long_word_are_as_long_as_may_be() -> None:
    assert fed("antidisestablish ok", unit="word", max_chars=5) == (["antid", "isest", "ablis", "h"], " ok")


@pytest.mark.parametrize("unfinished", ["👨\u200d", "🇩", "\ud83d", "🏴\U000e0067", "\u0600"])
def test_when_waiting_is_over_only_an_unfinished_character_waits(unfinished: str) -> None:
    cutter = Cutter(Delivery(unit="sentence"))
    assert cutter.feed("Hello wor" + unfinished) == []
    assert [*cutter.due(), cutter.held] == ["Hello wor", unfinished]
    assert cutter.due() == []
    assert cutter.end() == [unfinished]
    assert not cutter.holds


def test_what_was_due_is_cut_to_the_length_too() -> None:
    cutter = Cutter(Delivery(unit="sentence", max_chars=8))
    assert cutter.feed("Hello, world") == ["Hello, w"]
    assert cutter.due() == ["orld"]


def test_after_an_end_a_new_text_begins() -> None:
    cutter = Cutter(Delivery(unit="sentence"))
    assert cutter.feed("你好。") == []
    assert cutter.end() == ["你好。"]
    assert cutter.feed("a。b") == ["a。"]


@pytest.mark.parametrize("text", ["a", "\u0301", "🇩", "👨\u200d", "word ", "No end, "])
@pytest.mark.parametrize("unit", ["token", "word", "sentence"])
def test_no_text_makes_it_look_at_characters_again_and_again(
    text: str, unit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted, not timed: what is searched for clusters is a multiple of the text, in single characters as whole."""
    searched = 0

    class Counting:
        def findall(self, text: str) -> list[str]:
            nonlocal searched
            searched += len(text)
            return regex.findall(pattern, text)

    pattern = worker.delivery._CLUSTER
    monkeypatch.setattr(worker.delivery, "_CLUSTER", Counting())
    whole = text * (20_000 // len(text))
    for size in (1, len(whole)):
        searched = 0
        cutter = Cutter(Delivery(unit=unit, max_chars=20))
        pieces = [piece for at in range(0, len(whole), size) for piece in cutter.feed(whole[at : at + size])]
        assert "".join(itertools.chain(pieces, cutter.end())) == whole
        assert searched < 4 * len(whole) + 10_000


@pytest.mark.parametrize("delivery", [Delivery(unit="novel"), Delivery(max_chars=0)])
def test_a_delivery_that_cannot_be_is_refused(delivery: Delivery) -> None:
    with pytest.raises(ValueError):
        Cutter(delivery)
