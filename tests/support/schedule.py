"""Which tests go to which process of a parallel run, and in which order.

A file stays in one process, so that what its tests share (a stack of API and worker processes, as a rule) is started
once; the tests of `APART` share nothing and go wherever there is room. What takes long begins first: no process is
left alone with it at the end. Nothing depends on this order: each test passes by itself, and `-n 0` knows none.
"""

from __future__ import annotations

from typing import Final

import pytest
from xdist.scheduler.loadscope import LoadScopeScheduling

#: Files whose tests each start what they need, and take seconds: the longest first.
APART: Final = (
    "tests/chaos/test_chaos.py",
    "tests/property/test_log_model.py",
    "tests/chaos/test_remote.py",
    "tests/acceptance/test_limits.py",
    "tests/acceptance/test_healing.py",
    "tests/acceptance/test_webhooks.py",
    "tests/acceptance/test_recovery.py",
    "tests/acceptance/test_processes.py",
)
#: Other files that take half a minute and more: the longest first.
LONG: Final = (
    "tests/acceptance/test_tools.py",
    "tests/acceptance/test_cli.py",
    "tests/acceptance/test_openai_sdk.py",
    "tests/acceptance/test_upstream_resume.py",
    "tests/conformance/test_conformance.py",
    "tests/acceptance/test_takeover.py",
    "tests/acceptance/test_multiplex.py",
    "tests/acceptance/test_websocket.py",
    "tests/acceptance/test_provider_faults.py",
    "tests/acceptance/test_threads.py",
    "tests/acceptance/test_python_client.py",
    "tests/acceptance/test_ai_sdk.py",
)
_RANKS: Final = {file: rank for rank, file in enumerate((*LONG, *APART))}


class LongFirst(LoadScopeScheduling):
    """xdist's schedule by scope, where a scope is a file or, of those in `APART`, a test."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return nodeid if file in APART else file


def sort(items: list[pytest.Item]) -> None:
    """Whole files that take long, then single tests that do, then the rest as it stands. In place."""
    items.sort(key=lambda item: _RANKS.get(item.nodeid.partition("::")[0], len(_RANKS)))


def workers(cores: int) -> int:
    """How many processes run tests: more than there are cores, as tests wait for others more than half of the time."""
    return min(2 * cores, 8)
