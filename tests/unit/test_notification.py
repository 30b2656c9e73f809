"""What scripts publish, and what is made of it."""

from __future__ import annotations

import msgpack
import pytest

from broker import notification
from broker.events import Entry


@pytest.mark.parametrize("payload", [b"text", b"", b" two  blanks ", "\r\n \x00 é 👩‍👩‍👧".encode()])
def test_one_event_comes_as_text_with_any_payload(payload: bytes) -> None:
    message = b"3-1 4-1048577 d " + payload
    assert notification.decode(message) == ("3-1", [Entry("4-1048577", b"d", payload)])


def test_several_events_come_in_order() -> None:
    message = msgpack.packb([b"0-0", b"1-1", b"started", b"{}", b"2-1", b"d", b"a b"])
    assert notification.decode(message) == ("0-0", [Entry("1-1", b"started", b"{}"), Entry("2-1", b"d", b"a b")])


def test_more_events_than_a_short_array_holds_come_too() -> None:
    parts = [part for seq in range(1, 501) for part in (b"%d-1" % seq, b"d", b"t")]
    news = notification.decode(msgpack.packb([b"0-0", *parts]))
    assert news is not None
    assert len(news[1]) == 500


def test_a_delete_is_no_event() -> None:
    assert notification.decode(msgpack.packb([b"deleted"])) is None
