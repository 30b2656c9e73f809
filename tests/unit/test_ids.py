"""Generation ids: what anybody may read from them, and their order."""

from __future__ import annotations

import time
import uuid

import pytest

from broker.generation import created_at, is_id, new_id


def test_an_id_is_a_uuid7_of_its_time() -> None:
    before = time.time_ns() // 1_000_000 / 1000
    name = new_id()
    parsed = uuid.UUID(name.removeprefix("gen_"))
    assert is_id(name)
    assert (parsed.version, parsed.variant) == (7, uuid.RFC_4122)
    assert before <= created_at(name) <= time.time()


def test_ids_of_one_millisecond_sort_in_the_order_in_which_they_were_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("broker.generation.time.time_ns", lambda: 1_795_667_716_000_999_999)
    names = [new_id() for _ in range(1000)]
    assert names == sorted(set(names))
    assert {created_at(name) for name in names} == {1_795_667_716.0}
    assert {uuid.UUID(name.removeprefix("gen_")).version for name in names} == {7}


def test_a_clock_that_was_set_back_is_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([1_795_667_716_000_000_000, 1_795_667_715_000_000_000])
    monkeypatch.setattr("broker.generation.time.time_ns", lambda: next(clock))
    assert [created_at(new_id()) for _ in range(2)] == [1_795_667_716.0, 1_795_667_715.0]
