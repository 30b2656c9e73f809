"""Fixtures of the whole suite: a real server, a real cluster, and a key prefix of one's own.

Without a server the suite fails; it never skips. `LEGATO_TEST_REDIS_URL` points the same suite at another server
(`python -m tests.containers` does); otherwise every xdist worker starts an embedded one that dies with it. Tests
share that server, so a test writes only below its `prefix` and never flushes, stops or reconfigures it: a test
that wants to do such things starts a server of its own with `EmbeddedServer.start()`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from uuid import uuid4

import pytest
from hypothesis import settings
from xdist.scheduler import Scheduling

from broker.embedded import EmbeddedServer
from tests.support import schedule
from tests.support.servers import Cluster, ExternalServer

#: Names a server to test against, in place of the embedded one.
REDIS_URL_VARIABLE = "LEGATO_TEST_REDIS_URL"


#: Always the same examples, so that a run that passed passes again; `--hypothesis-profile=search` looks for new ones.
settings.register_profile("same", derandomize=True, deadline=None, database=None)
settings.register_profile("search", deadline=None)
settings.load_profile("same")


@pytest.fixture(scope="session")
def redis_server() -> Iterator[EmbeddedServer | ExternalServer]:
    """The server all tests of this xdist worker share; `.url` is what they connect to."""
    if url := os.environ.get(REDIS_URL_VARIABLE):
        yield ExternalServer.checked(url)
        return
    with EmbeddedServer.start(extra={"enable-debug-command": "local"}) as server:
        yield server


@pytest.fixture(scope="session")
def redis_url(redis_server: EmbeddedServer | ExternalServer) -> str:
    """URL of the shared server, in the form `LEGATO_REDIS_URL` takes."""
    return redis_server.url


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """Three masters that share the slots; up (in about 2.5 seconds) on the first use in a worker."""
    with Cluster.start() as running:
        yield running


@pytest.fixture
def prefix() -> str:
    """A key prefix no other test uses; nothing is cleaned up behind it."""
    return f"t{uuid4().hex[:8]}"


def pytest_xdist_auto_num_workers() -> int | None:
    """What `-n auto` is; PYTEST_XDIST_AUTO_NUM_WORKERS says otherwise."""
    if os.environ.get("PYTEST_XDIST_AUTO_NUM_WORKERS"):
        return None
    return schedule.workers(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> Scheduling | None:
    """Ours, where a schedule by scope is asked for, as pyproject.toml does."""
    if config.getoption("dist") != "loadscope":
        return None
    config.option.loadscopereorder = False  # by the number of tests; `schedule.sort` knows better
    return schedule.LongFirst(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """In the processes of a parallel run, which all come to the same order."""
    if hasattr(config, "workerinput"):
        schedule.sort(items)
