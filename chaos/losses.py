"""The exceptions to what must hold, each as narrow as it can be told.

The promises hold per surviving history of the store. What the store forgot while nobody held it is lost (queued,
between attempts); so is what its worker and the store lost together, and a cancel within the lost interval. Every use
of an exception needs a fault that explains this very case, and is counted in the report.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from chaos.faults import Loss
from chaos.jobs import Job
from chaos.processes import Held

#: A worker that lives through a loss puts back what it holds within this time.
_HEAL_SECONDS: Final = 6.0
#: A worker counts a standstill from the last beat of its pulse on.
_BEAT_SECONDS: Final = 1.0
#: Clocks of the parties are one machine's, but log lines are written a moment after the fact.
SLACK_SECONDS: Final = 0.3


class Losses:
    """What the store forgot, and who was there to put it back."""

    def __init__(self, losses: Sequence[Loss], holdings: Sequence[Held], *, lease_seconds: float) -> None:
        self._losses = losses
        self._lease = lease_seconds
        self._held: dict[str, list[Held]] = {}
        for item in holdings:
            self._held.setdefault(item.generation, []).append(item)

    def why_gone(self, job: Job) -> str | None:
        """Why the store may know nothing of a job, or None: it must."""
        for loss in self._covering(str(job.id)):
            if any(item.since > loss.forgets_until for item in self._held.get(str(job.id), [])):
                continue  # it was claimed afterwards: that loss had spared it
            if loss.since <= job.accepted_at <= loss.forgets_until:
                if (why := self._why(loss, str(job.id))) is not None:
                    return why
                if job.cancel_asked_at is not None and loss.since <= job.cancel_asked_at <= loss.forgets_until:
                    return "lost_with_its_cancel"
        return None

    def why_rolled_back(self, generation: str, at: float) -> str | None:
        """Why something stored at that time may be forgotten, though the generation is not."""
        for loss in self._covering(generation):
            if loss.since - SLACK_SECONDS <= at <= loss.forgets_until:
                return f"rolled_back_by_{loss.kind.value}"
        return None

    def why_end_lost(self, generation: str) -> str | None:
        """Why the store may have forgotten an end that it had acknowledged, with nobody there to put it back."""
        for loss in self._covering(generation):
            for item in self._held.get(generation, []):
                acknowledged = item.ended_at is not None and loss.since <= item.ended_at <= loss.forgets_until
                if acknowledged and self._was_out(item, loss):
                    return "end_lost_with_its_worker"
        return None

    def why_key_forgotten(self, job: Job) -> str | None:
        """Why the store may not know any more that an Idempotency-Key was used."""
        for loss in self._losses:
            if loss.forgets_until >= job.asked_at and loss.since <= max(job.accepted_at, job.asked_at):
                return f"forgotten_by_{loss.kind.value}"
        return None

    def any_of(self, generation: str) -> bool:
        """Whether anything of it may have been forgotten, ever."""
        return bool(self._covering(generation))

    def _covering(self, generation: str) -> list[Loss]:
        return [loss for loss in self._losses if loss.covers(generation)]

    def _why(self, loss: Loss, generation: str) -> str | None:
        holders = [
            item
            for item in self._held.get(generation, [])
            if item.since - SLACK_SECONDS <= loss.at <= item.until + SLACK_SECONDS
        ]
        if not holders:
            ended = any(
                item.ended_at is not None and item.ended_at < loss.at for item in self._held.get(generation, [])
            )
            return "lost_after_its_end" if ended else "lost_unheld"
        if all(self._was_out(item, loss) for item in holders):
            return "lost_with_its_worker"
        return None

    def _was_out(self, item: Held, loss: Loss) -> bool:
        """Whether the holder could not put it back: it ended too soon, or stood still for longer than its lease."""
        if item.until < loss.until + _HEAL_SECONDS:
            return True
        return any(
            until - since + _BEAT_SECONDS > self._lease
            and since <= loss.until + _HEAL_SECONDS
            and until >= loss.at - self._lease
            for since, until in item.life.pauses
        )
