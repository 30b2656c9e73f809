"""Whatever is sent, the answer is a status of its own and a problem that says what is wrong and where; nothing is
stored, and no process logs a traceback."""

from __future__ import annotations

import json
import socket
import time
from base64 import b64encode
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any
from urllib.parse import quote
from uuid import uuid4

import pytest

from tests.support.sse_client import NDJSON, SSE, Answer, Ending, Stream, events_path, read, request
from tests.support.stack import Stack, eventually, job

#: The largest body of this stack.
MAX_BODY_BYTES = 1_572_864
#: The largest image inside one.
MAX_IMAGE_BYTES = 800_000
ORIGIN = "https://app.example"
JSON = {"Content-Type": "application/json"}
GENERATIONS = "/v1/generations"


@pytest.fixture(scope="module")
def stack(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    environment = {"LEGATO_MAX_BODY_BYTES": str(MAX_BODY_BYTES), "LEGATO_MAX_IMAGE_BYTES": str(MAX_IMAGE_BYTES)}
    directory = tmp_path_factory.mktemp("bad-input")
    with Stack.start(redis_url, directory, apis=2, workers=1, environment=environment) as running:
        yield running


@pytest.fixture(autouse=True)
def _no_faults(stack: Stack) -> Iterator[None]:
    """Every test sees for itself that it left no error in a log."""
    yield
    assert stack.new_faults() == []


@pytest.fixture(scope="module")
def finished(stack: Stack) -> str:
    generation = stack.submit({"tokens": 20})
    stack.wait_status(generation, "completed")
    return generation


def check_problem(answer: Answer, status: int, code: str | None = None) -> Any:
    """The answer is a problem (RFC 9457) of this status, with CORS headers; its body."""
    assert answer.status == status, (answer.status, answer.body[:500])
    assert answer.headers.get("content-type") == "application/problem+json", answer.body[:500]
    assert answer.headers["access-control-allow-origin"] == "*"
    assert answer.ending is Ending.CLEAN
    problem = answer.json()
    assert problem["status"] == status
    assert problem["title"]
    assert problem["detail"]
    assert "Traceback" not in answer.body.decode()
    if code is not None:
        assert problem["code"] == code
    return problem


def submit(stack: Stack, body: object, **headers: str) -> Answer:
    """POST a job. A body that is bytes goes out as it is."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return request(stack.urls[0], "POST", GENERATIONS, headers=JSON | named, body=data)


# --- bodies ---


@pytest.mark.parametrize("size", [MAX_BODY_BYTES + 1, 4 * MAX_BODY_BYTES])
def test_a_body_that_is_too_large_is_413_when_its_length_is_told(stack: Stack, size: int) -> None:
    body = json.dumps(job({"text": "x"})).encode().ljust(size)
    problem = check_problem(submit(stack, body), 413, "body_too_large")
    assert str(MAX_BODY_BYTES) in problem["detail"]


@pytest.mark.parametrize("size", [MAX_BODY_BYTES + 1, 4 * MAX_BODY_BYTES])
def test_a_body_that_is_too_large_is_413_when_it_comes_in_chunks(stack: Stack, size: int) -> None:
    """No length is told, so it has to be counted."""
    body = json.dumps(job({"text": "x"})).encode().ljust(size)
    pieces = [body[at : at + 50_000] for at in range(0, len(body), 50_000)]
    chunked = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"
    answer = request(stack.urls[0], "POST", GENERATIONS, headers=JSON | {"Transfer-Encoding": "chunked"}, body=chunked)
    check_problem(answer, 413, "body_too_large")


def test_the_largest_body_is_taken_either_way(stack: Stack) -> None:
    body = json.dumps(job({"text": "x"})).encode().ljust(MAX_BODY_BYTES)
    assert submit(stack, body).status == 202
    chunked = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    headers = JSON | {"Transfer-Encoding": "chunked"}
    assert request(stack.urls[0], "POST", GENERATIONS, headers=headers, body=chunked).status == 202


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b" ", b"{", b'{"provider": "sim",}', b"{'provider': 'sim'}", b"provider=sim", b"NaN", b'{"a": NaN}'),
        *(b'{"a": 1} {"b": 2}', b'\xef\xbb\xbf{"provider": "sim"}', b'{"a": "\xff\xfe"}', b"\x00", b"\xff"),
        *(b'{"a": Infinity}', b'{"temperature": NaN}', b'{"temperature": 1e999}', b'{"seed": ' + b"9" * 5_000 + b"}"),
        # Half a character, alone: there is no UTF-8 for it.
        *(b'{"model": "\\ud83d"}', b'{"model": "\\ude00 x"}', b'{"model": "\xed\xa0\xbd"}', b'{"\\ud83d": 1}'),
        b'{"tools": [{"type": "function", "function": {"name": "\\udc00"}}]}',
        b"[" * 50_000,
        b'{"a":' * 10_000 + b"1" + b"}" * 10_000,
    ],
)
def test_a_body_that_is_no_json_is_400_and_says_where(stack: Stack, body: bytes) -> None:
    problem = check_problem(submit(stack, body), 400, "malformed_json")
    assert "line" in problem["detail"]


@pytest.mark.parametrize("body", [[], "sim", 5, None, True, [{}]])
def test_a_body_that_is_no_object_is_422(stack: Stack, body: object) -> None:
    check_problem(submit(stack, body), 422, "invalid_request")


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"provider": 5}, "provider"),
        ({"provider": ""}, "provider"),
        ({"provider": None}, "provider"),
        ({"provider": "nobody"}, "provider"),
        ({"provider": "openai"}, "provider"),  # known, but not one that this deployment uses
        ({"model": 5}, "model"),
        ({"model": ""}, "model"),
        ({"model": ["a"]}, "model"),
        ({"messages": []}, "messages"),
        ({"messages": {}}, "messages"),
        ({"messages": "hello"}, "messages"),
        ({"messages": ["hello"]}, "messages.0"),
        ({"messages": [{"role": "user"}]}, "messages.0"),
        ({"messages": [{"content": "a"}]}, "messages.0.role"),
        ({"messages": [{"role": "emperor", "content": "a"}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": [{"text": "a"}]}]}, "messages.0"),
        ({"messages": [{"role": "user", "content": "a", "colour": "red"}]}, "messages.0.colour"),
        ({"messages": [{"role": "tool", "content": "a"}]}, "messages.0"),
        ({"messages": [{"role": "user", "content": "a"}, {"role": "user", "content": "b", "x": 1}]}, "messages.1.x"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"max_output_tokens": "5"}, "max_output_tokens"),
        ({"max_output_tokens": 1.5}, "max_output_tokens"),
        ({"max_output_tokens": True}, "max_output_tokens"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"top_p": 2}, "top_p"),
        ({"stop": 5}, "stop"),
        ({"stop": [5]}, "stop"),
        ({"tools": {}}, "tools"),
        ({"tool_choice": 5}, "tool_choice"),
        ({"provider_options": []}, "provider_options"),
        ({"provider_options": None}, "provider_options"),
        ({"tool_mode": "magic"}, "tool_mode"),
        ({"thread": ""}, "thread"),
        ({"thread": "x" * 129}, "thread"),
        ({"thread": 5}, "thread"),
        ({"recovery": "pray"}, "recovery"),
        ({"max_attempts": 0}, "max_attempts"),
        ({"max_attempts": "3"}, "max_attempts"),
        ({"on_disconnect": "cancel"}, "on_disconnect"),
        ({"on_disconnect": {"policy": "explode"}}, "on_disconnect.policy"),
        ({"on_disconnect": {"policy": "continue", "mood": 1}}, "on_disconnect.mood"),
        ({"timeout_seconds": 0}, "timeout_seconds"),
        ({"timeout_seconds": "10"}, "timeout_seconds"),
        ({"stall_seconds": -1}, "stall_seconds"),
        ({"delivery": {"unit": "novel"}}, "delivery.unit"),
        ({"delivery": {"unit": "token", "speed": 1}}, "delivery.speed"),
        ({"priority": "urgent"}, "priority"),
        ({"ttl_seconds": 0}, "ttl_seconds"),
        ({"ttl_seconds": 1e30}, "ttl_seconds"),
        ({"ttl_seconds": 10**30}, "ttl_seconds"),
        ({"metadata": []}, "metadata"),
        ({"metadata": {"a": "x" * 17_000}}, "metadata"),
        ({"metadata": {"a": "é" * 8_200}}, "metadata"),
        ({"colour": "red"}, "colour"),
        ({"Provider": "sim"}, "Provider"),
    ],
)
def test_a_wrong_field_is_422_and_named(stack: Stack, change: dict[str, Any], field: str) -> None:
    """By its path, in the list of errors."""
    body = job({"tokens": 1}) | change
    problem = check_problem(submit(stack, body), 422, "invalid_request")
    named = [item["field"] for item in problem["errors"]]
    assert any(name == field or name.startswith(f"{field}.") for name in named), named
    assert all(item["message"] for item in problem["errors"])


TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
PNG = b"\x89PNG\r\n\x1a\n"


def user(*parts: object) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": list(parts)}]}


def image(url: str) -> dict[str, Any]:
    return user({"type": "image_url", "image_url": {"url": url}})


def data_url(data: bytes) -> str:
    return f"data:image/png;base64,{b64encode(data).decode()}"


def nested(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": 5}
    for _ in range(levels):
        schema = {"type": "object", "properties": {"x": schema}}
    return schema


def with_tool(**function: object) -> dict[str, Any]:
    return {"tools": [{"type": "function", "function": {"name": "f"} | function}]}


@pytest.mark.parametrize(
    ("change", "fields"),
    [
        ({"fallbacks": [{"provider": "nobody", "model": "m"}]}, ["fallbacks.0.provider"]),
        ({"fallbacks": [{"provider": "sim", "model": "sim-1"}]}, ["fallbacks.0", "model"]),
        ({"fallbacks": 10**30}, ["fallbacks"]),
        ({"tool_mode": "server"}, ["tool_mode", "tools"]),
        ({"tool_choice": "auto"}, ["tool_choice", "tools"]),
        ({"max_tool_rounds": 3}, ["max_tool_rounds", "tool_mode"]),
        ({"tools": [TOOL], "tool_mode": "server", "max_tool_rounds": 10**19}, ["max_tool_rounds"]),
        ({"delivery": {"unit": "word", "max_chars": -(2**63)}}, ["delivery.max_chars"]),
        ({"delivery": {"flush_ms": 5}}, ["delivery.flush_ms", "delivery.unit"]),
        ({"transforms": [{"name": "\x00"}]}, ["transforms.0.name"]),
        ({"validators": ["é"]}, ["validators.0.name"]),
        ({"recovery": "continue", "validators": ["json"]}, ["recovery", "validators"]),
        ({"max_output_characters": 2**64}, ["max_output_characters"]),
        ({"stall_seconds": 5, "timeout_seconds": 4}, ["stall_seconds", "timeout_seconds"]),
        ({"on_disconnect": {"grace_seconds": 4}}, ["on_disconnect.grace_seconds", "on_disconnect.policy"]),
        ({"tools": [TOOL, TOOL]}, ["tools.1.function.name"]),
        ({"tools": [TOOL] * 10_000}, ["tools.1.function.name"]),
        (with_tool(name="f" * 1_000_000), ["tools.0.function.name"]),
        (with_tool(parameters={"type": "array"}), ["tools.0.function.parameters.type"]),
        (with_tool(parameters=nested(3)), ["tools.0.function.parameters" + ".properties.x" * 3 + ".type"]),
        (with_tool(parameters=nested(28)), ["tools.0.function.parameters"]),
        (with_tool(parameters=nested(200)), ["tools"]),
        (with_tool(parameters={"type": "object", "allOf": [{}] * 200_000, "required": 5}), ["tools.0.function"]),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "g"}}}, ["tool_choice.function"]),
        ({"messages": [{"role": "system", "content": "a"}]}, ["messages"]),
        ({"messages": [{"role": "tool", "content": "a", "tool_call_id": "x"}]}, ["messages.0.tool_call_id"]),
        (
            {
                "messages": [
                    {
                        "role": "assistant",
                        "tool_calls": [{"id": "a", "function": {"name": "f", "arguments": "[" * 900}}],
                    }
                ]
            },
            ["messages.0.tool_calls.0.function.arguments"],
        ),
        (user({"type": "text"}), ["messages.0.content.0.text"]),
        (image("ftp://a/b"), ["messages.0.content.0.image_url.url"]),
        (image("http://[::"), ["messages.0.content.0.image_url.url"]),
        (image("data:image/png;base64,%%%"), ["messages.0.content.0.image_url.url"]),
        (image(data_url(b"GIF89a")), ["messages.0.content.0.image_url.url"]),
        (image("data:image/png;base64," + "A" * 2**20), ["messages.0.content.0.image_url.url"]),
        (image(data_url(PNG.ljust(MAX_IMAGE_BYTES + 1))), ["messages.0.content.0.image_url.url"]),
        ({"provider_options": {"tokens": -1}}, ["provider_options.tokens"]),
        ({"provider_options": {"tokens": 10**9}}, ["provider_options.tokens"]),
        ({"provider_options": {"tokens_per_second": "fast"}}, ["provider_options.tokens_per_second"]),
        ({"provider_options": {"toknes": 5}}, ["provider_options.toknes"]),
        ({"provider_options": {"faults": [{"at_token": 0, "kind": "boom"}]}}, ["provider_options.faults.0.kind"]),
        ({"provider_options": {"a" * 500_000: 5}}, ["provider_options.a"]),
        ({"provider_options": {f"x{n}": n for n in range(60_000)}}, ["provider_options.x0", "provider_options.x99"]),
        ({f"x{n}": n for n in range(60_000)}, ["x0", "x99"]),
    ],
    ids=lambda value: ascii(",".join(value)[:60]),
)
def test_what_cannot_be_done_is_refused_before_it_is_queued(
    stack: Stack, change: dict[str, Any], fields: list[str]
) -> None:
    """By the paths of all fields that have a part in it, without what the client sent."""
    thread = uuid4().hex
    answer = submit(stack, job({"tokens": 1}, thread=thread) | change)
    problem = check_problem(answer, 422, "invalid_request")
    named = [item["field"] for item in problem["errors"]]
    for field in fields:
        assert any(name == field or name.startswith(field) for name in named), named
    assert len(answer.body) < 60_000
    assert stack.get(f"{GENERATIONS}?thread={thread}").json()["data"] == []


@pytest.mark.parametrize(
    "change",
    [
        image(data_url(PNG.ljust(MAX_IMAGE_BYTES))),
        user({"type": "video", "odd": [None]}, {"type": "text", "text": ""}),
        {"tools": [TOOL, {"type": "web_search", "filters": {"a": []}}], "tool_choice": "auto"},
        {"delivery": {"unit": "sentence", "max_chars": 10_000, "flush_ms": 60_000}},
        {"fallbacks": [{"provider": "sim", "model": "other"}], "max_output_characters": 1_000},
    ],
    ids=lambda value: ascii(",".join(value)[:60]),
)
def test_what_can_be_done_is_taken(stack: Stack, change: dict[str, Any]) -> None:
    answer = submit(stack, job({"tokens": 1}) | change)
    assert answer.status == 202, answer.body[:500]
    stack.wait_status(answer.json()["id"], "completed")


@pytest.mark.parametrize("number", [2**63, 2**64, 10**25, -(10**25)])
@pytest.mark.parametrize("depth", [10, 500, 1_000])
def test_a_long_number_deep_inside_breaks_nothing(stack: Stack, depth: int, number: int) -> None:
    deep = '{"a":' * depth + str(number) + "}" * depth
    for body in (json.dumps(job({"tokens": 1}))[:-1] + f', "metadata": {deep}}}', deep, f"[{deep}]"):
        answer = submit(stack, body.encode())
        assert answer.status in (202, 422)


def test_every_wrong_field_is_named_at_once(stack: Stack) -> None:
    body = {"provider": 5, "messages": [{"role": "x", "content": "a"}], "colour": "red", "top_p": 7}
    problem = check_problem(submit(stack, body), 422)
    named = {item["field"] for item in problem["errors"]}
    assert {"provider", "model", "messages.0.role", "colour", "top_p"} <= named


def test_what_the_client_sent_is_not_given_back(stack: Stack) -> None:
    """An error names fields; prompts and credentials that stand in them do not reach answers or logs."""
    secret = uuid4().hex
    body = job({"tokens": 1}) | {"model": [secret], "messages": [{"role": secret, "content": secret}], "tools": secret}
    answer = submit(stack, body, Authorization=f"Bearer {secret}", Last_Event_ID="")
    check_problem(answer, 422)
    assert secret not in answer.body.decode()
    assert not any(secret in process.log for process in [*stack.apis, *stack.workers])


@pytest.mark.parametrize("depth", [50, 127, 200, 252, 253, 254, 255, 400, 1_000])
@pytest.mark.parametrize("field", ["metadata", "provider_options", "messages", "tools", "unknown"])
def test_deep_nesting_is_taken_or_refused_but_never_breaks_anything(stack: Stack, field: str, depth: int) -> None:
    """Whatever parser or writer gives up first, it is the client's error."""
    deep = '{"a":' * depth + "1" + "}" * depth
    value = {
        "messages": f'[{{"role": "user", "content": [{{"type": "text", "text": {deep}}}]}}]',
        "tools": f"[{deep}]",
    }.get(field, deep)
    thread = uuid4().hex
    rest = {name: item for name, item in job({"tokens": 1}, thread=thread).items() if name != field}
    body = json.dumps(rest)[:-1].encode() + f', "{field}": {value}}}'.encode()
    answer = submit(stack, body)
    if answer.status == 202:
        assert field != "unknown"
        generation = answer.json()["id"]
        assert stack.wait_status(generation, "completed", "failed")
        shown = stack.get(f"{GENERATIONS}/{generation}")
        assert shown.status == 200
        if field == "metadata":
            assert shown.json()["metadata"] == json.loads(deep)
        listed = stack.get(f"{GENERATIONS}?thread={thread}")
        assert listed.status == 200, "what was taken must be able to be listed"
        assert listed.json()["data"][0]["metadata"] == shown.json()["metadata"]
        return
    assert answer.status in (400, 422)
    check_problem(answer, answer.status)


def test_odd_text_comes_back_as_it_was(stack: Stack) -> None:
    """NUL, control characters, quotes, line ends of every kind, the end of the planes."""
    odd = (
        '\x00\x01\x7f\r\n\r\x0b\x85\u2028\u2029\ufeff\ufffd\ufffe\U0010ffff"\\</script>data: x\n\nevent: y\n\n: ping\n'
    )
    answer = submit(stack, job({"text": odd, "chunk_chars": 1}) | {"metadata": {odd: odd}, "model": "m\x00\n"})
    assert answer.status == 202
    generation = answer.json()["id"]
    for accept in (SSE, NDJSON):
        reader, _ = read(stack.urls[0], generation, accept=accept)
        assert reader.text == odd
    assert stack.get(f"{GENERATIONS}/{generation}").json()["metadata"] == {odd: odd}


def test_metadata_of_exactly_the_limit_is_taken(stack: Stack) -> None:
    value = {"a": "x" * (16 * 1024 - len('{"a":""}'))}
    answer = submit(stack, job({"tokens": 1}) | {"metadata": value})
    assert answer.status == 202
    assert stack.get(f"{GENERATIONS}/{answer.json()['id']}").json()["metadata"] == value


@pytest.mark.parametrize("number", [2**53 + 1, 2**63 - 1, 2**64 - 1, -(2**63), 10**25, 0.1, 1e-7, 1.5e300])
def test_numbers_in_metadata_come_back_as_they_were(stack: Stack, number: float) -> None:
    """Or are refused; a number that is silently another one is neither."""
    answer = submit(stack, job({"tokens": 1}) | {"metadata": {"n": number}})
    if answer.status != 202:
        check_problem(answer, answer.status)
        assert answer.status in (400, 422)
        return
    shown = stack.get(f"{GENERATIONS}/{answer.json()['id']}")
    assert shown.json()["metadata"] == {"n": number}


def test_options_the_provider_refuses_end_the_generation_not_the_worker(stack: Stack) -> None:
    """What only the provider can judge is known after the job was taken: it fails as `invalid_request`."""
    for turns in ([{"colour": "red"}], [{"text": 5}], []):
        generation = stack.submit({"turns": turns})
        assert stack.wait_status(generation, "completed", "failed") == "failed"
        error = stack.get(f"{GENERATIONS}/{generation}").json()["error"]
        assert error["code"] == "invalid_request"
        assert error["retryable"] is False


# --- cursors, queries, ids ---

BAD_CURSORS = [
    *("5", "05-1", "5-01", "(5-1", "5-1)", "-", "+", "$", "*", ">", "0", "1-0", "0-1", "00-0", "0-00", "-1-1", "5--1"),
    *("5-1-1", "5_1", "a-b", "0x5-1", "5.0-1", "5-1 ", " 5-1", "1e3-1", "gen_x/5-1", "null", "undefined", "latest"),
    *("9" * 17 + "-1", "1-" + "9" * 17, "18446744073709551616-1", "1" * 5_000 + "-1", "x" * 5_000),
    *("５-1", "5–1", "٥-1", "é", "5-1\n", "5-1\r\nX: y", "5-1\x00", "%", "%s"),
]


@pytest.mark.parametrize("accept", [SSE, NDJSON, "*/*"])
@pytest.mark.parametrize("cursor", BAD_CURSORS, ids=lambda text: ascii(text[:20]))
def test_a_cursor_that_is_no_position_is_400(stack: Stack, finished: str, cursor: str, accept: str) -> None:
    """By the query and, where a header can carry it, by the header; before the store sees it."""
    url = stack.urls[0]
    path = events_path(finished, f"last_event_id={quote(cursor)}")
    check_problem(request(url, "GET", path, headers={"Accept": accept}), 400, "invalid_position")
    if cursor == cursor.strip() and not set(cursor) & {"\r", "\n", "\x00"}:
        # Bytes of UTF-8, as a browser or fetch would send them.
        value = cursor.encode().decode("latin-1")
        headers = {"Accept": accept, "Last-Event-ID": value}
        check_problem(request(url, "GET", events_path(finished), headers=headers), 400, "invalid_position")


def test_a_long_cursor_is_not_repeated_at_length(stack: Stack, finished: str) -> None:
    answer = request(stack.urls[0], "GET", events_path(finished), headers={"Last-Event-ID": "7" * 8_000})
    check_problem(answer, 400)
    assert len(answer.body) < 1_000


@pytest.mark.parametrize(
    "path",
    [
        *(f"{GENERATIONS}?limit=0", f"{GENERATIONS}?limit=101", f"{GENERATIONS}?limit=-1", f"{GENERATIONS}?limit=a"),
        *(f"{GENERATIONS}?limit=1e2", f"{GENERATIONS}?limit=99999999999999999999", f"{GENERATIONS}?limit="),
        *(f"{GENERATIONS}?status=done", f"{GENERATIONS}?status=deleted", f"{GENERATIONS}?cursor=x"),
        f"{GENERATIONS}?cursor=gen_%00",
    ],
)
def test_a_bad_query_of_the_list_is_a_problem_that_names_it(stack: Stack, path: str) -> None:
    name = path.partition("?")[2].partition("=")[0]
    answer = request(stack.urls[0], "GET", path)
    assert answer.status in (400, 422)
    check_problem(answer, answer.status)
    assert name in answer.body.decode()


@pytest.mark.parametrize("query", ["from=beginning", "from=Snapshot", "from=snapshot%00", "from=0-0"])
def test_a_bad_query_of_a_stream_is_400(stack: Stack, finished: str, query: str) -> None:
    answer = request(stack.urls[0], "GET", events_path(finished, query), headers={"Accept": SSE})
    problem = check_problem(answer, 400)
    assert "from" in problem["detail"]


UNKNOWN_IDS = [
    "gen_" + "0" * 32,
    "gen_019a1111111171118111111111111111",
    *("gen_", "x", "gen_" + "0" * 31, "gen_" + "0" * 33, "GEN_" + "0" * 32, "gen_" + "G" * 32, "gen_" + "A" * 32),
    *("%00", "%7B%7D", "gen_%7Bx%7D", "*", "%F0%9F%9A%80", "%FF%FE", "..", "a" * 3_000, "gen_%0A" + "0" * 31),
]


@pytest.mark.parametrize("generation", UNKNOWN_IDS, ids=lambda text: ascii(text[:20]))
def test_an_unknown_or_malformed_id_is_404_on_every_route(stack: Stack, generation: str) -> None:
    one = f"{GENERATIONS}/{generation}"
    for method, path in (
        ("GET", one),
        ("GET", one + "/events"),
        ("GET", one + "/events?from=snapshot"),
        ("POST", one + "/cancel"),
        ("DELETE", one),
    ):
        for accept in (SSE, "*/*"):
            answer = request(
                stack.urls[1], method, path, headers={"Accept": accept}, body=b"" if method == "POST" else None
            )
            check_problem(answer, 404, "not_found")


@pytest.mark.parametrize(
    "path", ["/", "/v1", "/v2/generations", "/v1/generation", "/v1/generations/a/b/c", "/favicon.ico"]
)
def test_a_path_that_is_nothing_is_404(stack: Stack, path: str) -> None:
    for method in ("GET", "POST", "DELETE", "HEAD"):
        answer = request(stack.urls[0], method, path, body=b"" if method == "POST" else None)
        assert answer.status == 404
        assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize("path", [GENERATIONS + "/", f"{GENERATIONS}/gen_{'0' * 32}/events/", "/readyz/"])
def test_no_redirect_carries_a_token_or_a_cursor(stack: Stack, path: str) -> None:
    """A slash too many is another path; whatever is answered, what stood in the query is not in it."""
    answer = request(stack.urls[0], "GET", f"{path}?token=s3cret&last_event_id=42-1", headers={"Host": "evil.example"})
    shown = json.dumps(answer.headers) + answer.body.decode()
    assert "s3cret" not in shown
    assert "42-1" not in shown
    assert "evil.example" not in shown


def test_a_log_whose_time_is_over_is_410(stack: Stack) -> None:
    """The record outlives it, so it is not taken for one that never was. Its Idempotency-Key is gone with it."""
    key = {"Idempotency_Key": uuid4().hex}
    body = job({"tokens": 3}, ttl_seconds=1)
    one = f"{GENERATIONS}/{submit(stack, body, **key).json()['id']}"
    eventually(lambda: stack.get(one).status != 200, "it has ended, and its time is over")
    check_problem(stack.get(one), 410)
    check_problem(stack.get(one + "/events"), 410)
    check_problem(stack.get(one + "/events", headers={"Accept": SSE, "Last-Event-ID": "2-1"}), 410)
    check_problem(submit(stack, body, **key), 410)
    check_problem(submit(stack, body, Accept=SSE, **key), 410)


# --- methods, HEAD, OPTIONS, CORS ---


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        (GENERATIONS, {"GET", "HEAD", "POST", "OPTIONS"}),
        ("{one}", {"GET", "HEAD", "DELETE", "OPTIONS"}),
        ("{one}/events", {"GET", "HEAD", "OPTIONS"}),
        ("{one}/cancel", {"POST", "OPTIONS"}),
        ("/livez", {"GET", "HEAD", "OPTIONS"}),
        ("/readyz", {"GET", "HEAD", "OPTIONS"}),
    ],
)
def test_other_methods_are_405_and_told_which_are_not(
    stack: Stack, finished: str, path: str, allowed: set[str]
) -> None:
    where = path.replace("{one}", f"{GENERATIONS}/{finished}")
    for method in {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "PROPFIND"} - allowed:
        answer = request(stack.urls[0], method, where, headers={"Accept": SSE}, body=b"{}")
        assert answer.status == 405, method
        assert answer.headers["content-type"] == "application/problem+json"
        assert {name.strip() for name in answer.headers["allow"].split(",")} == allowed
        assert answer.headers["access-control-allow-origin"] == "*"
    assert stack.status(finished) == "completed"


@pytest.mark.parametrize(
    "path",
    [
        *(GENERATIONS, f"{GENERATIONS}?limit=1", "{one}", "{one}/events", "{one}/events?from=snapshot", "/livez"),
        *("/readyz", "{one}/events?last_event_id=5", "{one}/events?last_event_id={end}", f"{GENERATIONS}/gen_x/events"),
        f"{GENERATIONS}/gen_x",
    ],
)
def test_head_is_get_without_a_body(stack: Stack, finished: str, path: str) -> None:
    """Its status and its headers, on every route."""
    end = stack.log(finished)[-1][0]
    where = path.replace("{one}", f"{GENERATIONS}/{finished}").replace("{end}", end)
    for accept in (SSE, NDJSON, "*/*"):
        with Stream(stack.urls[0], where, method="HEAD", headers={"Accept": accept, "Connection": "close"}) as head:
            assert head.socket.recv(1000) == b"", "a body"
        got = request(stack.urls[0], "GET", where, headers={"Accept": accept})
        assert head.status == got.status
        varying = {"date", "content-length", "transfer-encoding"}
        assert {name: value for name, value in head.headers.items() if name not in varying} == {
            name: value for name, value in got.headers.items() if name not in varying
        }


def test_head_of_a_running_stream_answers_at_once_and_attaches_nobody(stack: Stack) -> None:
    generation = stack.submit({"tokens": 5, "first_token_ms": 60_000})
    for accept in (SSE, NDJSON):
        answer = request(stack.urls[0], "HEAD", events_path(generation), headers={"Accept": accept})
        assert (answer.status, answer.body) == (200, b"")
        assert answer.headers["content-type"].startswith(accept)
    assert stack.status(generation) in ("queued", "running")
    stack.delete(f"{GENERATIONS}/{generation}")


@pytest.mark.parametrize("path", [GENERATIONS, "{one}", "{one}/events?token=x", "{one}/cancel", "/livez", "/nothing"])
def test_a_preflight_is_answered_without_a_credential(stack: Stack, finished: str, path: str) -> None:
    headers = {
        "Origin": ORIGIN,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization, content-type, idempotency-key, last-event-id",
    }
    answer = request(stack.urls[0], "OPTIONS", path.replace("{one}", f"{GENERATIONS}/{finished}"), headers=headers)
    assert (answer.status, answer.body) == (204, b"")
    assert answer.headers["access-control-allow-origin"] in ("*", ORIGIN)
    allowed = {name.strip().lower() for name in answer.headers["access-control-allow-headers"].split(",")}
    assert {
        *("authorization", "x-api-key", "content-type", "accept", "last-event-id", "idempotency-key"),
    } <= allowed
    assert "OPTIONS" in answer.headers["access-control-allow-methods"]


def test_cors_headers_are_on_every_answer(stack: Stack, finished: str) -> None:
    """A browser shows a script nothing of an answer without them, errors least of all."""
    url, origin = stack.urls[0], {"Origin": ORIGIN}
    answers = [
        request(url, "GET", f"{GENERATIONS}/{finished}", headers=origin),
        request(url, "GET", events_path(finished), headers=origin),
        request(url, "GET", events_path(finished, "last_event_id=x"), headers=origin),
        request(url, "GET", "/nothing", headers=origin),
        request(url, "PUT", GENERATIONS, headers=origin, body=b"{}"),
        request(url, "POST", GENERATIONS, headers=origin | JSON, body=b"{"),
        request(url, "POST", GENERATIONS, headers=origin | JSON, body=b" " * (MAX_BODY_BYTES + 1)),
        request(url, "DELETE", f"{GENERATIONS}/gen_x", headers=origin),
        request(url, "POST", GENERATIONS, headers=origin | JSON, body=json.dumps(job({"tokens": 1})).encode()),
    ]
    assert [answer.status for answer in answers] == [200, 200, 400, 404, 405, 400, 413, 404, 202]
    for answer in answers:
        assert answer.headers["access-control-allow-origin"] in ("*", ORIGIN)
        exposed = {name.strip().lower() for name in answer.headers["access-control-expose-headers"].split(",")}
        assert {"location", "retry-after", "idempotent-replayed"} <= exposed
        assert "origin" in answer.headers["vary"].lower()


# --- submits that repeat themselves ---


def test_the_same_key_and_body_give_the_same_generation(stack: Stack) -> None:
    """On either process, whatever the order of the fields and the spaces between them."""
    key = {"Idempotency-Key": f"key {uuid4()} ~!"}
    body = job({"tokens": 4})
    first = request(stack.urls[0], "POST", GENERATIONS, headers=JSON | key, body=json.dumps(body).encode())
    turned = json.dumps(dict(reversed(body.items())), indent=3).encode()
    second = request(stack.urls[1], "POST", GENERATIONS, headers=JSON | key, body=turned)
    assert (first.status, second.status) == (202, 202)
    assert "idempotent-replayed" not in first.headers
    assert second.headers["idempotent-replayed"] == "true"
    assert first.json()["id"] == second.json()["id"]
    assert first.json()["created_at"] == second.json()["created_at"]
    assert first.headers["location"] == second.headers["location"] == f"{GENERATIONS}/{first.json()['id']}"
    assert first.json()["object"] == "generation"
    assert first.json()["stream_url"] == events_path(first.json()["id"])
    stack.wait_status(first.json()["id"], "completed")
    third = request(stack.urls[0], "POST", GENERATIONS, headers=JSON | key, body=turned)
    assert (third.status, third.json()["id"]) == (202, first.json()["id"])
    assert third.json()["status"] == "completed"


def test_one_key_at_once_from_many_sides_starts_one_generation(stack: Stack) -> None:
    headers = JSON | {"Idempotency-Key": uuid4().hex}
    thread = uuid4().hex
    body = json.dumps(job({"tokens": 2}, thread=thread)).encode()
    with ThreadPoolExecutor(16) as pool:
        answers = list(
            pool.map(lambda n: request(stack.urls[n % 2], "POST", GENERATIONS, headers=headers, body=body), range(48))
        )
    assert {answer.status for answer in answers} == {202}
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert sum("idempotent-replayed" not in answer.headers for answer in answers) == 1
    listed = stack.get(f"{GENERATIONS}?limit=100&thread={thread}").json()["data"]
    assert len(listed) == 1


def test_the_same_key_with_another_body_is_422(stack: Stack) -> None:
    key = {"Idempotency_Key": uuid4().hex}
    assert submit(stack, job({"tokens": 1}), **key).status == 202
    problem = check_problem(submit(stack, job({"tokens": 2}), **key), 422, "idempotency_key_reused")
    assert "Idempotency-Key" in problem["detail"]


def test_a_refused_submit_does_not_use_up_its_key(stack: Stack) -> None:
    key = {"Idempotency_Key": uuid4().hex}
    check_problem(submit(stack, job({"tokens": 1}) | {"colour": 1}, **key), 422)
    answer = submit(stack, job({"tokens": 1}), **key)
    assert answer.status == 202
    assert "idempotent-replayed" not in answer.headers


def test_the_key_of_a_deleted_generation_is_410(stack: Stack) -> None:
    key = {"Idempotency_Key": uuid4().hex}
    generation = submit(stack, job({"tokens": 1}), **key).json()["id"]
    assert request(stack.urls[0], "DELETE", f"{GENERATIONS}/{generation}").status == 204
    check_problem(submit(stack, job({"tokens": 1}), **key), 410)


@pytest.mark.parametrize("key", ["", "x" * 256, "x" * 5_000, "schlüssel", "a\tb"])
def test_a_key_that_is_empty_too_long_or_not_printable_is_400(stack: Stack, key: str) -> None:
    value = key.encode().decode("latin-1")
    problem = check_problem(submit(stack, job({"tokens": 1}), Idempotency_Key=value), 400, "invalid_idempotency_key")
    assert "Idempotency-Key" in problem["detail"]


def test_the_longest_key_is_taken(stack: Stack) -> None:
    assert submit(stack, job({"tokens": 1}), Idempotency_Key=uuid4().hex.ljust(255, "k")).status == 202


@pytest.mark.parametrize("accept", [SSE, "application/json", "*/*"])
def test_a_reader_that_posts_again_without_a_key_starts_nothing(stack: Stack, accept: str) -> None:
    """Some clients re-POST by themselves after a break; a second answer would be paid for."""
    thread = uuid4().hex
    answer = submit(stack, job({"tokens": 1}, thread=thread), Accept=accept, Last_Event_ID="5-1")
    check_problem(answer, 409, "idempotency_key_required")
    assert stack.get(f"{GENERATIONS}?thread={thread}").json()["data"] == []


def test_a_post_with_a_bad_cursor_starts_nothing(stack: Stack) -> None:
    thread = uuid4().hex
    key = {"Idempotency_Key": uuid4().hex}
    check_problem(submit(stack, job({"tokens": 1}, thread=thread), Last_Event_ID="5", **key), 400, "invalid_position")
    assert stack.get(f"{GENERATIONS}?thread={thread}").json()["data"] == []


def test_an_empty_cursor_on_a_post_is_none(stack: Stack) -> None:
    assert submit(stack, job({"tokens": 1}), Last_Event_ID="").status == 202


# --- HTTP itself ---


@pytest.mark.parametrize(
    "lines",
    [
        [("Last-Event-ID", "5-1"), ("Last-Event-ID", "7-1")],
        [("Accept", "text/html"), ("Accept", SSE)],
        [("Authorization", "Bearer a"), ("Authorization", "Bearer b")],
        [("Origin", ORIGIN), ("Origin", "null")],
    ],
)
def test_headers_that_come_twice_break_nothing(stack: Stack, finished: str, lines: list[tuple[str, str]]) -> None:
    answer = request(stack.urls[0], "GET", events_path(finished), raw_head=lines)
    assert answer.status in (200, 400)
    if answer.status == 400:
        check_problem(answer, 400)


def test_two_idempotency_keys_start_one_generation_or_none(stack: Stack) -> None:
    first, second = uuid4().hex, uuid4().hex
    body = json.dumps(job({"tokens": 1})).encode()
    lines = [("Idempotency-Key", first), ("Idempotency-Key", second)]
    answer = request(stack.urls[0], "POST", GENERATIONS, headers=JSON, body=body, raw_head=lines)
    assert answer.status in (202, 400)


@pytest.mark.parametrize("length", ["-1", "x", "1e3", "99999999999999999999999", "5, 5"])
def test_a_content_length_that_is_none_is_a_clients_error(stack: Stack, length: str) -> None:
    answer = request(stack.urls[0], "POST", GENERATIONS, headers=JSON | {"Content-Length": length}, body=b"{}")
    assert 400 <= answer.status < 500


def test_a_client_that_leaves_in_mid_body_breaks_nothing(stack: Stack) -> None:
    for _ in range(3):
        with socket.create_connection(("127.0.0.1", stack.apis[0].port)) as connection, suppress(OSError):
            connection.sendall(
                b"POST /v1/generations HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                b'Content-Length: 500\r\n\r\n{"provider": "s'
            )
            time.sleep(0.05)
    time.sleep(0.2)
    assert stack.get("/livez").status == 200
    assert stack.new_faults() == [], "leaving is no error of ours"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Accept": "text/event-stream;q=0.9, */*;q=0.1"}, 200),
        ({"Accept": "application/x-ndjson, text/event-stream"}, 200),
        ({"Accept": "application/json;q=0, */*"}, 200),
        ({"Accept": ""}, 200),
        ({"Accept": "x" * 4_000}, 200),
        ({"Accept-Encoding": "gzip, br, zstd"}, 200),
        ({"Range": "bytes=0-10"}, 200),
        ({"If-None-Match": "*"}, 200),
        ({"Expect": "100-continue"}, 200),
    ],
)
def test_headers_of_every_kind_get_the_stream(
    stack: Stack, finished: str, headers: dict[str, str], status: int
) -> None:
    """Bytes of events only: not compressed, not a part, not "not modified"."""
    answer = request(stack.urls[0], "GET", events_path(finished), headers=headers)
    assert answer.status == status
    assert answer.ending is Ending.CLEAN
    assert "content-encoding" not in answer.headers
    assert b"completed" in answer.body


@pytest.mark.parametrize(
    ("lines", "kind"),
    [
        ([("Accept", "Text/Event-Stream")], SSE),
        ([("Accept", "application/json"), ("Accept", "text/event-stream;q=0.5")], SSE),
        ([("Accept", "application/json, text/event-stream; q=0.000")], "application/json"),
        ([("Accept", "application/json;x=text/event-stream")], "application/json"),
    ],
)
def test_accept_is_read_as_http_says(stack: Stack, lines: list[tuple[str, str]], kind: str) -> None:
    """In any case, over any number of lines, by weight."""
    body = json.dumps(job({"tokens": 2})).encode()
    answer = request(stack.urls[0], "POST", GENERATIONS, headers=JSON, body=body, raw_head=lines)
    assert answer.status == (200 if kind == SSE else 202)
    assert answer.headers["content-type"].startswith(kind)


@pytest.mark.parametrize("around", ["{} ", "\t{}", " {}\t "])
def test_white_space_around_a_header_is_not_of_its_value(stack: Stack, finished: str, around: str) -> None:
    answer = request(stack.urls[0], "GET", events_path(finished), raw_head=[("Last-Event-ID", around.format("3-1"))])
    assert answer.status == 200
    assert b'"verdict":"resumed","from":"3-1"' in answer.body
    key = uuid4().hex
    body = json.dumps(job({"tokens": 2})).encode()
    named = [around.format(key), key]
    answers = [
        request(stack.urls[0], "POST", GENERATIONS, headers=JSON, body=body, raw_head=[("Idempotency-Key", each)])
        for each in named
    ]
    assert answers[0].json()["id"] == answers[1].json()["id"]
