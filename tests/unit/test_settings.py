"""What no process could keep is refused when it starts."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from broker.settings import Settings


@pytest.mark.parametrize("value", [0.0001, 1e300, float("inf"), float("nan")])
@pytest.mark.parametrize("name", ["tombstone_seconds", "idempotency_seconds", "unconfirmed_seconds"])
def test_a_time_to_live_that_redis_does_not_take_or_that_is_none_is_refused(name: str, value: float) -> None:
    """With the least of them a delete would leave no tombstone, and a job would go as soon as it is accepted."""
    with pytest.raises(ValidationError, match=name):
        Settings.model_validate({name: value})


@pytest.mark.parametrize("name", ["tombstone_seconds", "idempotency_seconds", "unconfirmed_seconds"])
def test_a_second_and_ten_years_are_taken(name: str) -> None:
    for value in (1.0, 315_360_000.0):
        assert getattr(Settings.model_validate({name: value}), name) == value
