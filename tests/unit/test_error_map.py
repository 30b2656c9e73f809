"""Every exception of ours has an answer, and no answer tells what it should not."""

from __future__ import annotations

import pkgutil
from collections.abc import Iterator
from importlib import import_module

import pytest
from structlog.testing import capture_logs

import api
import broker
import cli
import worker
from api.frames import NDJSON, SSE
from api.problem import STATUS, problem_of
from api.viewer import error_frame
from broker.errors import LeaseLost, LegatoError, ProviderError
from broker.events import FailureCode
from broker.wire import StoreReplyError

for package in (broker, worker, api, cli):
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        if not module.name.endswith("__main__"):
            import_module(module.name)  # every module that may define an exception


def subclasses(kind: type[LegatoError]) -> Iterator[type[LegatoError]]:
    for each in kind.__subclasses__():
        yield each
        yield from subclasses(each)


ALL = sorted(set(subclasses(LegatoError)), key=lambda kind: kind.__name__)


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)
def test_every_exception_of_ours_is_mapped(kind: type[LegatoError]) -> None:
    """To a status of its own or of its nearest ancestor, never only by the root. A worker's never become an answer."""
    nearest = next(each for each in kind.__mro__ if each in STATUS)
    assert nearest is not LegatoError or kind.__module__.startswith(("cli.", "api.auth", "worker."))
    assert kind.code
    assert 400 <= STATUS[nearest] < 600


def test_there_are_as_many_as_we_think() -> None:
    assert len(ALL) >= 15
    assert {LeaseLost, ProviderError, StoreReplyError} <= set(ALL)


def test_a_defect_tells_nothing_of_itself_and_is_logged() -> None:
    defect = StoreReplyError("ERR user_script:12: the prompt was hello")
    with capture_logs() as logged:
        problem = problem_of(defect)
    assert problem.status == 500
    assert "prompt" not in problem.detail
    assert [(line["event"], line["log_level"]) for line in logged] == [("request_failed", "error")]
    for framing in (SSE, NDJSON):
        assert b"user_script" not in error_frame(framing, defect)
    assert problem_of(ProviderError(FailureCode.INTERNAL, "sk-secret")).detail != "sk-secret"
