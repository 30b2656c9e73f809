"""What a worker works with: built once, shared by all its runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from broker.lease import Leases
from broker.log import Log
from broker.settings import Settings
from broker.store import Store
from broker.throttle import Throttle
from worker.providers.base import Provider
from worker.pulse import Pulse
from worker.tools.registry import Tools


@dataclass(frozen=True, slots=True, kw_only=True)
class Means:
    """Nothing here belongs to one generation."""

    store: Store
    log: Log
    leases: Leases
    throttle: Throttle
    providers: Mapping[str, Provider]
    tools: Tools
    pulse: Pulse
    settings: Settings
