"""The suite: its cases are sound, server and Python client are green, and a client that breaks a rule is not."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.conformance import client_run, server_run
from tests.conformance.adapter import Adapter, AdapterBroken
from tests.conformance.adapters.sabotaged import RULES
from tests.conformance.cases import BadCase, Case, load, mismatches
from tests.conformance.client_run import variants
from tests.conformance.script import Entry, Reply, entries, reply
from tests.support.stack import ROOT, Stack

ADAPTER = [sys.executable, "-W", "error", "tests/conformance/adapters/python_client.py"]
CLIENT, SERVER = load("client"), load("server")

#: What each sabotage of the client must fail, by a piece of the case's name.
CAUGHT_BY = {
    "a_clean_end_is_the_end": "ends cleanly without a terminal event is a cut",
    "events_come_twice": "events that come again after a reconnect are dropped",
    "the_cursor_moves_with_half_a_block": "a block that its body never finished is dropped",
    "ids_outlive_their_blocks": "a generation that is deleted under its reader",
    "no_cursor_is_sent": "a body that is cut behind an event",
    "retry_is_not_heard": "retry is a least time",
    "retry_after_is_not_heard": "Retry-After of a 503",
    "it_comes_back_at_once": "connections that bring nothing make no hot loop",
    "it_never_gives_up": "a Retry-After that is longer than what is left",
    "a_reset_clears_nothing": "a reset clears everything",
    "a_snapshot_is_appended": "a position that is gone gives a snapshot",
    "a_lost_cursor_is_not_noticed": "a cursor that is lost on the way",
    "every_connection_may_be_silent": "a silent connection is left",
    "unknown_events_are_errors": "an unknown event whose data is no JSON",
    "every_try_has_a_key_of_its_own": "a submit is tried again under the same key",
    "redirects_of_a_submit_are_followed": "a submit that is redirected",
    "refusals_are_tried_again": "an unknown generation ends the stream",
    "an_error_event_is_passed_over": "an error event ends the connection",
    "all_text_is_the_text": "reasoning and refusals are not the text",
    "a_byte_order_mark_is_text": "a byte order mark may come first",
    "the_path_of_a_cancel_is_another": "a cancel is a call of its own",
}


#: How often a sabotaged client may look like a good one.
TRIES = 5


@pytest.fixture(scope="module")
def url(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    patient = {"LEGATO_LEASE_SECONDS": "30"}  # no worker is lost here, though one may stand still for a while
    with Stack.start(redis_url, tmp_path_factory.mktemp("conformance"), environment=patient) as stack:
        yield stack.urls[0]


@pytest.fixture(scope="module")
def adapter() -> Iterator[Adapter]:
    with Adapter(ADAPTER) as running:
        yield running


@pytest.mark.parametrize("case", SERVER, ids=lambda case: case.id)
def test_the_server_does_what_the_case_says(case: Case, url: str) -> None:
    assert server_run.play(case, url) == []


@pytest.mark.parametrize("case", CLIENT, ids=lambda case: case.id)
def test_the_python_client_does_what_the_case_says(case: Case, adapter: Adapter) -> None:
    assert client_run.play(case, adapter) == []


@pytest.mark.parametrize("rule", RULES)
def test_a_client_that_breaks_a_rule_is_caught(rule: str) -> None:
    """Each sabotage of the client fails the case that is about its rule: green means something. One that comes back too
    soon may come late enough where the machine stands still, but not time and again."""
    (case,) = [case for case in CLIENT if CAUGHT_BY[rule] in case.name]
    with Adapter([sys.executable, "-m", "tests.conformance.adapters.sabotaged", rule]) as adapter:
        try:
            assert any(client_run.play(case, adapter) for _ in range(TRIES))
        except AdapterBroken:
            return  # it crashed, which is not green either


def test_there_are_enough_cases_and_each_has_a_name_of_its_own() -> None:
    names = [case.id for case in CLIENT + SERVER]
    assert len(CLIENT) >= 80
    assert len(SERVER) >= 80
    assert len(names) == len(set(names))


def test_each_case_proves_a_section_that_is_there() -> None:
    """A section of the protocol, or a numbered rule of Write a client."""
    sections = set(re.findall(r"^## (\d+)\. ", (ROOT / "docs/protocol.md").read_text(), re.MULTILINE))
    rules = set(re.findall(r"^(\d+)\. \*\*", (ROOT / "docs/how-to/write-a-client.md").read_text(), re.MULTILINE))
    known = sections | {f"rule {number}" for number in rules}
    assert {case.proves for case in CLIENT + SERVER} <= known
    assert {case.proves for case in SERVER} >= {"3", "4", "5", "6", "7", "8", "9", "10", "11", "12"} | {
        "15",
        "16",
        "17",
        "18",
    }


def test_a_case_that_the_schema_does_not_allow_is_named(tmp_path: Path) -> None:
    """A misspelt field would make a case that proves nothing."""
    (tmp_path / "client").mkdir()
    case = {"name": "a case with a slip", "proves": "8", "connections": [{"cut_afer": "3-1"}], "operation": {}}
    document = {"about": "x", "cases": [{**case, "expect": {"outcome": "completed"}}]}
    (tmp_path / "client/slip.yaml").write_text(yaml.safe_dump(document))
    with pytest.raises(BadCase, match=r"slip\.yaml: cases/0/connections/0: .*cut_afer"):
        load("client", folder=tmp_path)
    (tmp_path / "client/slip.yaml").write_text("cases: [")
    with pytest.raises(BadCase, match=r"slip\.yaml"):
        load("client", folder=tmp_path)


def test_the_case_that_is_shown_is_a_case(tmp_path: Path, adapter: Adapter) -> None:
    """The one in Write a client: allowed by the schema, and green."""
    (shown,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs/how-to/write-a-client.md").read_text(), re.DOTALL)
    (tmp_path / "client").mkdir()
    document = {"about": "shown", "cases": yaml.safe_load(shown)}
    (tmp_path / "client/shown.yaml").write_text(yaml.safe_dump(document))
    (case,) = load("client", folder=tmp_path)
    assert client_run.play(case, adapter) == []


def test_each_place_that_a_case_names_is_in_the_body(adapter: Adapter) -> None:
    """A cut behind an event that is never sent would be no cut."""
    for case in CLIENT:
        for body in variants(case.body):
            for connection in body["connections"]:
                named = [
                    connection[key] for key in connection if key.endswith("_after") and isinstance(connection[key], str)
                ]
                named += [item["after"] for item in connection.get("insert", ())]
                log = connection.get("log", body.get("log", []))
                ids = {item[0] for item in (case.logs[log] if isinstance(log, str) else log)}
                assert set(named) <= ids | {"open", "snapshot", "error"}, case.id


@pytest.mark.parametrize(
    ("expected", "seen", "problem"),
    [
        ({"a": 1}, {"a": 1, "b": 2}, None),
        ({"a": 1}, {"a": 2}, "x.a is 2 and not 1"),
        ({"a": 1}, {}, "x.a is not there"),
        ({"a": "-"}, {}, None),
        ({"a": "-"}, {"a": None}, "x.a is there: null"),
        ("*", 0, None),
        ("*", None, "x is null"),
        ("~a+", "aaa", None),
        ("~a+", "aab", "x is"),
        ([1, 2], [1], "x has 1 items and not 2"),
        (True, 1, "x is 1 and not true"),
        ([{"a": 1}], [{"a": 1, "b": 1}], None),
    ],
)
def test_what_is_expected_is_met_or_the_difference_named(expected: object, seen: object, problem: str | None) -> None:
    problems = list(mismatches(expected, seen, "x"))
    assert problems == [] if problem is None else problems[0].startswith(problem)


LOG = entries([["1-1", "a"], ["2-1", "b"], ["3-1", "completed", {}]])


def body_of(connection: dict[str, object], cursor: str | None = None, log: list[Entry] = LOG) -> tuple[Reply, str]:
    answer = reply(connection, log, cursor=cursor, snapshot=False, host="")
    return answer, b"".join(piece for piece in answer.pieces if isinstance(piece, bytes)).decode()


def test_the_scripted_server_serves_by_the_cursor_as_the_real_one_does() -> None:
    """Verdicts, blocks in the order event, id, retry, data, and how the body ends."""
    answer, body = body_of({})
    assert body.startswith('event: open\nretry: 10\ndata: {"generation": "*", "from": "0-0", "head": "3-1"')
    assert '"verdict": "start"' in body
    assert 'event: delta\nid: 1-1\ndata: {"text": "a"}\n\n' in body
    assert answer.end.value == "clean"
    _, body = body_of({}, "1-1")
    assert '"verdict": "resumed"' in body
    assert "id: 1-1" not in body
    _, body = body_of({}, "1-2")
    assert '"verdict": "rewound"' in body
    assert 'event: snapshot\nid: 2-1\ndata: {"text": "ab"' in body
    assert body_of({}, log=LOG[:2])[0].end.value == "cut"
    assert body_of({"cut_after": "1-1"})[0].end.value == "cut"


def test_an_adapter_that_does_not_keep_its_contract_is_named() -> None:
    for code, problem in (
        ("print('no JSON')", "no line of the contract"),
        ("pass", "it has ended"),
        ('print(\'{"id": "other", "outcome": "ok"}\')', "of another command"),
    ):
        with pytest.raises(AdapterBroken, match=problem):
            Adapter([sys.executable, "-c", code])
    with pytest.raises(AdapterBroken, match="no program"):
        Adapter(["nobody-has-this-program"])
