"""Delivery against a model: whatever the text and however it comes, pieces join to it and cut no character."""

from __future__ import annotations

import itertools
from typing import Final

import regex
from hypothesis import given
from hypothesis import strategies as st

from broker.generation import Delivery
from tests.property.schedules import schedules
from worker.delivery import Cutter

#: What text for people is made of.
plain = [
    st.text("abc XYZ 019 .,:;!?'\"-_()[]/*`$", max_size=8),
    st.sampled_from(["can't ", "3.14", "e.g. ", "Hello, world. ", "x" * 70, "https://a.b/c?d=e", "1\u202f000 "]),
    st.sampled_from(["日本語テキスト。", "你好！", "「はい。」", "สวัสดีครับ", "한국어 ", "क्षि", "নি", "e\u0301", "ห์"]),
    st.sampled_from(["👨‍👩‍👧‍👦", "👍🏽", "1️⃣", "❤️", "🇩🇪", "🏴\U000e0067\U000e0062\U000e007f", "👨"]),
    st.sampled_from(["\n", "\r\n", "\n\n", "\u2028", "\t", "\u00a0", "   "]),
]
#: And what goes wrong with it.
torn = [
    st.lists(st.sampled_from("🇩🇪🇫🇷"), max_size=5).map("".join),
    st.sampled_from(["ᄒ", "ᅡ", "ᆫ", "\r"]),
    st.text("\u0301\u0308\u200d\ufe0f\u20e3\u093f\u094d\u00ad\u200b\u0600", max_size=4),
    st.text("\ud83d\udc68\udc00\ud800", max_size=3),
    st.text(st.characters(), max_size=4),
]
plain_texts = st.lists(st.one_of(plain), max_size=12).map("".join)
texts = st.lists(st.one_of(*plain, *torn), max_size=12).map("".join)
deliveries = st.builds(
    Delivery, unit=st.sampled_from(["token", "word", "sentence"]), max_chars=st.none() | st.integers(1, 20)
)

_CLUSTER: Final = regex.compile(r"\X")
_WORD_BORDER: Final = regex.compile(r"(?w)\b")


@st.composite
def chunked(draw: st.DrawFn, whole: st.SearchStrategy[str] = texts) -> list[str]:
    """A text in chunks, some of them empty."""
    text = draw(whole)
    cuts = sorted(draw(st.lists(st.integers(0, len(text)), max_size=12)))
    return [text[a:b] for a, b in itertools.pairwise([0, *cuts, len(text)])]


def borders(pieces: list[str]) -> set[int]:
    return set(itertools.accumulate(map(len, pieces[:-1])))


def characters(text: str) -> set[int]:
    """Where a cut divides no character."""
    starts = {0} | {match.end() for match in _CLUSTER.finditer(text)}
    return {
        at
        for at in starts
        if not ("\ud800" <= text[at - 1 : at] <= "\udbff" and "\udc00" <= text[at : at + 1] <= "\udfff")
    }


def delivered(delivery: Delivery, chunks: list[str]) -> list[str]:
    cutter = Cutter(delivery)
    pieces = [piece for chunk in chunks for piece in cutter.feed(chunk)] + cutter.end()
    assert not cutter.held
    return pieces


@schedules(600)
@given(delivery=deliveries, chunks=chunked())
def test_pieces_join_to_the_text_and_begin_between_characters(delivery: Delivery, chunks: list[str]) -> None:
    text = "".join(chunks)
    pieces = delivered(delivery, chunks)
    assert "".join(pieces) == text
    assert all(pieces)
    if delivery.unit != "token" or delivery.max_chars is not None:
        assert borders(pieces) <= characters(text)
    if delivery.max_chars is not None:
        whole = {text[a:b] for a, b in itertools.pairwise(sorted(characters(text)))}
        assert all(len(piece) <= delivery.max_chars or piece in whole for piece in pieces)


@schedules(400)
@given(delivery=deliveries, chunks=chunked(), moments=st.sets(st.integers(0, 12)))
def test_nothing_is_lost_or_doubled_when_waiting_is_over_at_any_moment(
    delivery: Delivery, chunks: list[str], moments: set[int]
) -> None:
    cutter = Cutter(delivery)
    gone, fed = "", ""
    for number, chunk in enumerate(chunks):
        fed += chunk
        pieces = cutter.feed(chunk)
        if number in moments:
            pieces += cutter.due()
            assert len(_CLUSTER.findall(cutter.held)) <= 2  # one; or a surrogate pair that goes on
        gone += "".join(pieces)
        assert all(pieces)
        assert gone + cutter.held == fed
        assert cutter.holds == bool(cutter.held)
    assert gone + "".join(cutter.end()) == fed


@schedules(400)
@given(delivery=deliveries, chunks=chunked())
def test_words_and_sentences_are_cut_alike_however_they_come(delivery: Delivery, chunks: list[str]) -> None:
    if delivery.unit != "token":
        assert delivered(delivery, chunks) == delivered(delivery, ["".join(chunks)])


@schedules(400)
@given(chunks=chunked(plain_texts))
def test_words_end_at_word_borders_of_the_standard(chunks: list[str]) -> None:
    text = "".join(chunks)
    assert borders(delivered(Delivery(unit="word"), chunks)) <= {match.start() for match in _WORD_BORDER.finditer(text)}
