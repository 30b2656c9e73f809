"""HTTP tools against real servers: what is sent, what is taken, and where they never connect to."""

from __future__ import annotations

import asyncio
import gzip
import json
import socket
import ssl
import tracemalloc
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

import httpx2
import pytest
import trustme
from pydantic import ValidationError

from broker.declared import HttpToolTarget
from broker.settings import Settings
from tests.support.loop_clock import move_on
from tests.support.wire_provider import Cut, End, Pause, Reply, Rst, Send, WireProvider
from worker.tools.base import ToolOutcome
from worker.tools.guard import AddressRefused, GuardedTransport, refused
from worker.tools.http import MAX_REDIRECTS, HttpTool
from worker.tools.registry import Tools, build_tools

#: A time-out that no test waits for.
LONG_SECONDS: Final = 60.0

#: A time-out of the tool's own, which comes before that one. No test waits for it either.
OWN_SECONDS: Final = 30.0

LATE: Final = "it did not answer within 30 s"

#: An address that anybody may connect to, and nobody here does.
PUBLIC: Final = "93.184.216.34"


class Names:
    """A resolver that says what the test says, one answer a look-up; the last one is repeated."""

    def __init__(self, *answers: str | Sequence[str]) -> None:
        self.answers = [[answer] if isinstance(answer, str) else list(answer) for answer in answers]
        self.asked: list[tuple[str, int]] = []

    async def __call__(self, host: str, port: int) -> list[str]:
        self.asked.append((host, port))
        return self.answers[min(len(self.asked), len(self.answers)) - 1]


def tool(url: str, *, resolve: Any = None, verify: ssl.SSLContext | None = None, **fields: Any) -> HttpTool:
    """A tool named `it` that may reach the test's servers."""
    options: dict[str, Any] = {} if resolve is None else {"resolve": resolve}
    environment = {"THE_KEY": "Bearer secret-of-it"}
    target = HttpToolTarget.model_validate({"private": True, "timeout_seconds": LONG_SECONDS, "url": url, **fields})
    verify = verify or ssl.create_default_context()
    return HttpTool("it", target, verify=verify, environment=environment, **options)


async def call(given: HttpTool, **arguments: Any) -> ToolOutcome:
    text = json.dumps(arguments)
    return await Tools([given]).run(given.name, text, call_id="call_1", timeout_seconds=LONG_SECONDS)


async def call_past_its_time(
    given: HttpTool, begun: Callable[[], object], monkeypatch: pytest.MonkeyPatch
) -> ToolOutcome:
    """What a call comes to whose time is over when it has got as far as `begun` says."""
    calling = asyncio.create_task(call(given))
    while not begun():
        await asyncio.sleep(0.001)
    await move_on(OWN_SECONDS, monkeypatch)
    return await calling


def failed(sentence: str) -> ToolOutcome:
    return ToolOutcome(content=sentence, is_error=True)


def body(data: bytes, **headers: str) -> Reply:
    """A 200 with this body."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Reply(actions=(Send(data), End()), headers={"content-type": "text/plain", **named})


def redirect(to: str, status: int = 307) -> Reply:
    return Reply(actions=(Send(b"moved"), End()), status=status, headers={"location": to})


def port_of(server: WireProvider) -> str:
    return server.url.rpartition(":")[2]


@pytest.fixture
async def server() -> AsyncIterator[WireProvider]:
    async with WireProvider() as running:
        yield running


@pytest.fixture
async def other() -> AsyncIterator[WireProvider]:
    async with WireProvider() as running:
        yield running


# --- what is sent, what is taken ---


async def test_post_sends_the_arguments_and_gives_the_text(server: WireProvider) -> None:
    server.script(body("Römer: 21 °C".encode()))
    given = tool(f"{server.url}/weather?units=metric", headers={"X-Team": "a"}, header_env={"Authorization": "THE_KEY"})
    outcome = await call(given, city="Rome", days=[1, 2])
    assert outcome == ToolOutcome(content="Römer: 21 °C", is_error=False)
    [request] = server.requests
    assert (request.method, request.path) == ("POST", "/weather?units=metric")
    assert request.body == {"city": "Rome", "days": [1, 2]}
    assert request.headers["content-type"] == "application/json"
    assert request.headers["idempotency-key"] == "call_1"
    assert request.headers["x-legato-tool"] == "it"
    assert request.headers["x-team"] == "a"
    assert request.headers["authorization"] == "Bearer secret-of-it"
    assert request.headers["host"] == f"127.0.0.1:{port_of(server)}"


async def test_json_is_given_as_it_came(server: WireProvider) -> None:
    server.script(body(b'{"b": 1,\n "a": [2]}', content_type="application/json"))
    assert await call(tool(server.url)) == ToolOutcome(content='{"b": 1,\n "a": [2]}', is_error=False)


async def test_get_puts_scalars_into_the_query(server: WireProvider) -> None:
    server.script(body(b"ok"))
    await call(tool(f"{server.url}/q?units=metric", method="GET"), city="Rom & Co", days=3, rain=True, none=None, x=1.5)
    [request] = server.requests
    assert (request.method, request.path) == ("GET", "/q?units=metric&city=Rom+%26+Co&days=3&rain=true&x=1.5")
    assert request.body is None


async def test_get_takes_no_nested_arguments_and_none_that_the_operator_has_set(server: WireProvider) -> None:
    given = tool(f"{server.url}/q?units=metric", method="GET")
    assert await call(given, city=["Rome"]) == failed("it takes text, numbers and booleans only; 'city' is none")
    assert await call(given, units="imperial") == failed("it takes no argument 'units'")
    assert await call(given, city="x" * 70_000) == failed("the arguments of it are too long for a query")
    assert not server.requests


async def test_bytes_that_are_no_utf8_become_replacement_characters(server: WireProvider) -> None:
    server.script(body(b"caf\xe9!", content_type="text/plain; charset=latin-1"))
    assert (await call(tool(server.url))).content == "caf\ufffd!"


async def test_an_empty_2xx_is_an_empty_text(server: WireProvider) -> None:
    server.script(Reply(status=204, headers={}))
    assert await call(tool(server.url)) == ToolOutcome(content="", is_error=False)


async def test_a_call_id_is_made_fit_for_a_header(server: WireProvider) -> None:
    server.script(body(b"ok"))
    tools = Tools([tool(server.url)])
    await tools.run("it", "{}", call_id="a\r\nX-Evil: 1 ü", timeout_seconds=LONG_SECONDS)
    assert server.requests[0].headers["idempotency-key"] == "a__X-Evil:_1__"
    assert "x-evil" not in server.requests[0].headers


@pytest.mark.parametrize("status", [400, 401, 404, 429, 500, 503, 304])
async def test_any_other_status_is_told_and_its_body_is_not(server: WireProvider, status: int) -> None:
    server.script(Reply(actions=(Send(b"secret=1"), End()), status=status))
    assert await call(tool(server.url)) == failed(f"it answered {status}")


async def test_every_call_has_a_connection_of_its_own_and_no_cookies(server: WireProvider) -> None:
    server.script(body(b"one", set_cookie="user=a; Path=/"), body(b"two"))
    given = tool(server.url)
    assert (await call(given)).content == "one"
    assert (await call(given)).content == "two"
    assert [request.connection for request in server.requests] == [1, 2]
    assert "cookie" not in server.requests[1].headers


async def test_proxies_and_passwords_of_the_environment_are_not_used(
    server: WireProvider, other: WireProvider, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, other.url)
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login me password mine\n")
    monkeypatch.setenv("NETRC", str(netrc))
    server.script(body(b"ok"))
    assert (await call(tool(server.url))).content == "ok"
    assert not other.requests
    assert "authorization" not in server.requests[0].headers


# --- time and size ---


async def test_a_head_that_never_comes_ends_at_the_timeout(
    server: WireProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.script(Reply(hold=asyncio.Event()))
    given = tool(server.url, timeout_seconds=OWN_SECONDS)
    assert await call_past_its_time(given, lambda: server.requests, monkeypatch) == failed(LATE)
    await asyncio.wait_for(server.requests[0].gone.wait(), LONG_SECONDS)


async def test_a_body_that_never_ends_ends_at_the_timeout(
    server: WireProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.script(Reply(actions=(Send(b"begin"), Pause(asyncio.Event()))))
    given = tool(server.url, timeout_seconds=OWN_SECONDS)
    assert await call_past_its_time(given, lambda: server.requests, monkeypatch) == failed(LATE)
    await asyncio.wait_for(server.requests[0].gone.wait(), LONG_SECONDS)


async def test_a_look_up_that_never_ends_ends_at_the_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    begun = asyncio.Event()

    async def never(host: str, port: int) -> list[str]:
        begun.set()
        return await asyncio.Future()

    given = tool("http://tool.test", resolve=never, timeout_seconds=OWN_SECONDS)
    assert await call_past_its_time(given, begun.is_set, monkeypatch) == failed(LATE)


async def test_an_answer_of_exactly_the_limit_is_taken_and_one_byte_more_is_not(server: WireProvider) -> None:
    server.script(body(b"x" * 1000), body(b"x" * 1001))
    given = tool(server.url, max_bytes=1000)
    assert await call(given) == ToolOutcome(content="x" * 1000, is_error=False)
    assert await call(given) == failed("the answer of it is larger than 1,000 bytes")


async def test_an_endless_answer_is_cut_at_the_limit(server: WireProvider) -> None:
    server.script(Reply(actions=(Send(b"x" * 1001), Pause(asyncio.Event()))))
    assert await call(tool(server.url, max_bytes=1000)) == failed("the answer of it is larger than 1,000 bytes")
    await asyncio.wait_for(server.requests[0].gone.wait(), LONG_SECONDS)


async def test_compressed_answers_are_counted_as_they_come_out(server: WireProvider) -> None:
    server.script(body(gzip.compress(b"text " * 10), content_encoding="gzip"))
    assert (await call(tool(server.url))).content == "text " * 10
    bomb = gzip.compress(bytes(100_000_000), compresslevel=1)
    server.script(body(bomb, content_encoding="gzip"))
    tracemalloc.start()
    try:
        outcome = await call(tool(server.url))
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert outcome == failed("the answer of it is larger than 65,536 bytes")
    assert peak_bytes < 16_000_000


async def test_a_body_that_is_not_what_its_encoding_says_is_an_error(server: WireProvider) -> None:
    server.script(body(b"not gzip", content_encoding="gzip"))
    assert await call(tool(server.url)) == failed("it sent a body that cannot be decompressed")


@pytest.mark.parametrize("end", [Cut(), Rst()])
async def test_half_an_answer_is_an_error(server: WireProvider, end: Cut | Rst) -> None:
    server.script(Reply(actions=(Send(b"half"), end)))
    assert await call(tool(server.url)) == failed("it broke the connection")


async def test_a_server_that_is_not_there_is_an_error(server: WireProvider) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and nobody listens
        port = taken.getsockname()[1]
        assert await call(tool(f"http://127.0.0.1:{port}")) == failed("it cannot be reached")


async def test_a_name_without_an_address_is_an_error() -> None:
    assert await call(tool("http://tool.test", resolve=Names([]))) == failed("it cannot be reached")


# --- redirects ---


async def test_a_redirect_to_the_same_host_is_followed_with_everything(server: WireProvider) -> None:
    server.script(redirect("/there?x=1"), body(b"ok"))
    given = tool(f"{server.url}/here", header_env={"Authorization": "THE_KEY"})
    assert (await call(given, a=1)).content == "ok"
    second = server.requests[1]
    assert (second.method, second.path, second.body) == ("POST", "/there?x=1", {"a": 1})
    assert second.headers["authorization"] == "Bearer secret-of-it"
    assert second.headers["idempotency-key"] == "call_1"
    assert second.connection == 2


@pytest.mark.parametrize("status", [301, 302, 303])
async def test_redirects_that_browsers_follow_with_get_are_followed_with_get(server: WireProvider, status: int) -> None:
    server.script(redirect("/there", status), body(b"ok"))
    assert (await call(tool(server.url), a=1)).content == "ok"
    second = server.requests[1]
    assert (second.method, second.path, second.body) == ("GET", "/there", None)
    assert "content-type" not in second.headers


async def test_a_redirect_to_another_host_is_not_followed(server: WireProvider, other: WireProvider) -> None:
    names = Names("127.0.0.1")
    for elsewhere in (f"http://other.test:{port_of(other)}/", f"//other.test:{port_of(other)}/", other.url):
        server.script(redirect(elsewhere))
        outcome = await call(tool(f"http://tool.test:{port_of(server)}", resolve=names))
        assert outcome == failed("it redirected to where it must not (307)")
    assert not other.requests
    assert {host for host, _ in names.asked} == {"tool.test"}


async def test_a_redirect_to_another_port_of_the_same_host_is_not_followed(
    server: WireProvider, other: WireProvider
) -> None:
    server.script(redirect(other.url))
    assert await call(tool(server.url)) == failed("it redirected to where it must not (307)")
    assert not other.requests


async def test_a_listed_host_gets_the_call_but_never_the_credentials(server: WireProvider, other: WireProvider) -> None:
    """Not even the tool's own host gets them again, once another one has chosen the path."""
    there, back = f"http://other.test:{port_of(other)}/there", f"http://tool.test:{port_of(server)}/back"
    server.script(redirect(there), body(b"ok"))
    other.script(redirect(back))
    given = tool(
        f"http://tool.test:{port_of(server)}/",
        resolve=Names("127.0.0.1"),
        headers={"X-Team": "a"},
        header_env={"Authorization": "THE_KEY"},
        redirect_hosts=[f"Other.test:{port_of(other)}"],
    )
    assert (await call(given, a=1)).content == "ok"
    first, last = server.requests
    [elsewhere] = other.requests
    assert {"x-team", "authorization"} <= first.headers.keys()
    assert elsewhere.body == {"a": 1}
    assert elsewhere.headers["host"] == f"other.test:{port_of(other)}"
    for request in (elsewhere, last):
        assert not {"x-team", "authorization"} & request.headers.keys()
    assert last.path == "/back"


async def test_a_listed_host_must_not_have_a_private_address(server: WireProvider) -> None:
    """The look-up of the redirect's target is checked like the first one."""
    sent: list[httpx2.URL] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        sent.append(request.url)
        return httpx2.Response(307, headers={"location": "https://cdn.test/x"})

    names = Names(PUBLIC, "10.0.0.5")
    guard = GuardedTransport(
        private=False, verify=ssl.create_default_context(), resolve=names, inner=httpx2.MockTransport(answer)
    )
    async with httpx2.AsyncClient(transport=guard, trust_env=False) as client:
        with pytest.raises(AddressRefused, match=r"cdn\.test is 10\.0\.0\.5, which is private"):
            await client.get("https://tool.test/", follow_redirects=True)
    assert [url.host for url in sent] == [PUBLIC]


@pytest.mark.parametrize(
    "location", ["ftp://tool.test:PORT/x", "file:///etc/passwd", "http://me:pw@tool.test:PORT/", "http://[", "//[::1"]
)
async def test_a_redirect_to_what_is_no_plain_url_is_not_followed(server: WireProvider, location: str) -> None:
    names = Names("127.0.0.1")
    server.script(redirect(location.replace("PORT", port_of(server))))
    given = tool(f"http://tool.test:{port_of(server)}/", resolve=names)
    assert await call(given) == failed("it redirected to where it must not (307)")
    assert len(names.asked) == 1


async def test_a_redirect_to_nowhere_is_an_error(server: WireProvider) -> None:
    server.script(Reply(status=302, headers={}))
    assert await call(tool(server.url)) == failed("it redirected to where it must not (302)")


async def test_redirects_without_end_are_given_up(server: WireProvider) -> None:
    server.script(*[redirect("/again")] * 10)
    assert await call(tool(server.url)) == failed("it redirected more than 3 times")
    assert len(server.requests) == MAX_REDIRECTS + 1


@asynccontextmanager
async def tls_server(name: str, authority: trustme.CA, answer: bytes) -> AsyncIterator[tuple[str, list[bytes]]]:
    """A TLS server on loopback with a certificate for `name`; its port, and the heads it got."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(name).configure_cert(context)
    heads: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            heads.append(await reader.readuntil(b"\r\n\r\n"))
            writer.write(answer)
            await writer.drain()
        except (asyncio.IncompleteReadError, OSError):
            pass
        finally:
            writer.close()

    running = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    try:
        yield str(running.sockets[0].getsockname()[1]), heads
    finally:
        running.close()
        await running.wait_closed()


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def trusting(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


async def test_a_redirect_from_https_to_http_is_not_followed(
    server: WireProvider, authority: trustme.CA, trusting: ssl.SSLContext
) -> None:
    """Not even to a listed host."""
    to = f"http://tool.test:{port_of(server)}/"
    answer = f"HTTP/1.1 307 Moved\r\nLocation: {to}\r\nContent-Length: 0\r\n\r\n".encode()
    async with tls_server("tool.test", authority, answer) as (port, heads):
        given = tool(
            f"https://tool.test:{port}/",
            resolve=Names("127.0.0.1"),
            verify=trusting,
            redirect_hosts=[f"tool.test:{port_of(server)}"],
        )
        assert await call(given) == failed("it redirected to where it must not (307)")
        assert len(heads) == 1
    assert not server.requests


# --- addresses ---


async def test_tls_checks_the_name_and_not_the_address(authority: trustme.CA, trusting: ssl.SSLContext) -> None:
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
    async with tls_server("tool.test", authority, answer) as (port, heads):
        right = tool(f"https://tool.test:{port}/x", resolve=Names("127.0.0.1"), verify=trusting)
        assert (await call(right)).content == "ok"
        assert heads[0].startswith(b"POST /x HTTP/1.1\r\n")
        assert f"host: tool.test:{port}\r\n".encode() in heads[0].lower()
        wrong = tool(f"https://fool.test:{port}/x", resolve=Names("127.0.0.1"), verify=trusting)
        assert await call(wrong) == failed("it cannot be reached")
        assert len(heads) == 1


REFUSED: Final = {
    "127.0.0.1": "loopback",
    "127.255.255.254": "loopback",
    "::1": "loopback",
    "10.0.0.1": "private",
    "172.16.0.1": "private",
    "172.31.255.255": "private",
    "192.168.0.1": "private",
    "fc00::1": "private",
    "fdff::1": "private",
    "100.64.0.1": "shared (carrier-grade NAT)",
    "100.127.255.255": "shared (carrier-grade NAT)",
    "169.254.169.254": "link-local",
    "169.254.170.2": "link-local",
    "fe80::1": "link-local",
    "fe80::1%eth0": "link-local",
    "100.100.100.200": "metadata",
    "168.63.129.16": "metadata",
    "fd00:ec2::254": "metadata",
    "fd20:ce::254": "metadata",
    "0.0.0.0": "unspecified",
    "0.1.2.3": "unspecified",
    "::": "unspecified",
    "192.0.0.192": "reserved",
    "192.0.2.1": "documentation",
    "192.88.99.1": "reserved",
    "198.18.0.1": "benchmarking",
    "198.51.100.1": "documentation",
    "203.0.113.1": "documentation",
    "224.0.0.1": "multicast",
    "239.255.255.255": "multicast",
    "240.0.0.1": "reserved",
    "255.255.255.255": "reserved",
    "ff02::1": "multicast",
    "fec0::1": "site-local",
    "2001::1": "reserved",
    "2001:db8::1": "documentation",
    "3fff::1": "documentation",
    "100::1": "reserved",
    "5f00::1": "reserved",
    "4000::1": "reserved",
    "::127.0.0.1": "reserved",  # IPv4-compatible, long gone
    "::ffff:127.0.0.1": "loopback",
    "::ffff:10.0.0.1": "private",
    "::ffff:169.254.169.254": "link-local",
    "::ffff:100.64.0.1": "shared (carrier-grade NAT)",
    "::ffff:0:127.0.0.1": "loopback",
    "64:ff9b::7f00:1": "loopback",
    "64:ff9b::a9fe:a9fe": "link-local",
    "64:ff9b::10.0.0.1": "private",
    "64:ff9b:1::10.0.0.1": "reserved",
    "2002:7f00:1::": "loopback",
    "2002:a9fe:a9fe::1": "link-local",
    "2002:c0a8:1::1": "private",
    "2002:e000:1::1": "multicast",
}

ALLOWED_WHERE_PRIVATE: Final = {"loopback", "private", "shared (carrier-grade NAT)"}


@pytest.mark.parametrize(("address", "kind"), REFUSED.items(), ids=REFUSED)
async def test_addresses_that_are_not_public_are_refused(address: str, kind: str) -> None:
    """Whole, through a tool: nothing is connected to."""
    assert refused(address, private=False) == kind
    assert refused(address, private=True) == (None if kind in ALLOWED_WHERE_PRIVATE else kind)
    names = Names(address)
    outcome = await call(tool("https://tool.test/", resolve=names, private=False))
    assert outcome == failed("it has an address that it must not have")
    assert names.asked == [("tool.test", 443)]


@pytest.mark.parametrize(
    "address",
    [
        PUBLIC,
        "1.1.1.1",
        "9.255.255.255",
        "11.0.0.0",
        "100.63.255.255",
        "100.128.0.0",
        "126.255.255.255",
        "128.0.0.0",
        "169.253.255.255",
        "172.15.255.255",
        "172.32.0.0",
        "192.167.255.255",
        "223.255.255.255",
        "2606:2800:220:1::1",
        "2a00::1",
        "64:ff9b::5db8:d822",
        "2002:5db8:d822::1",
        "::ffff:93.184.216.34",
    ],
)
def test_public_addresses_are_allowed(address: str) -> None:
    assert refused(address, private=False) is None


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "[::1]", "localhost", "LocalHost.", "a.localhost", "2130706433", "0x7f.1", "127.1", "0"]
)
async def test_no_spelling_of_loopback_is_reached(server: WireProvider, host: str) -> None:
    """With the system's own resolver."""
    outcome = await call(tool(f"http://{host}:{port_of(server)}/", private=False))
    assert outcome == failed("it has an address that it must not have")
    assert not server.requests


async def test_one_bad_address_among_good_ones_is_enough() -> None:
    names = Names([PUBLIC, "10.0.0.1"])
    outcome = await call(tool("https://tool.test/", resolve=names, private=False))
    assert outcome == failed("it has an address that it must not have")


async def test_a_private_tool_still_cannot_reach_metadata() -> None:
    outcome = await call(tool("http://169.254.169.254/latest/meta-data/", method="GET"))
    assert outcome == failed("it has an address that it must not have")


async def test_the_next_address_is_tried_when_one_cannot_be_reached(server: WireProvider) -> None:
    server.script(body(b"ok"))
    names = Names(["127.0.0.2", "127.0.0.1"])  # the server is on the second only
    assert (await call(tool(f"http://tool.test:{port_of(server)}/", resolve=names))).content == "ok"
    assert len(server.requests) == 1


async def test_the_connection_goes_to_the_address_that_was_checked() -> None:
    """A name that says something public first and loopback then (rebinding): one look-up, and its answer is used."""
    sent: list[httpx2.Request] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        sent.append(request)
        return httpx2.Response(200, text="ok")

    names = Names(PUBLIC, "127.0.0.1")
    guard = GuardedTransport(
        private=False, verify=ssl.create_default_context(), resolve=names, inner=httpx2.MockTransport(answer)
    )
    async with httpx2.AsyncClient(transport=guard, trust_env=False) as client:
        assert (await client.get("https://tool.test/x")).text == "ok"
        assert names.asked == [("tool.test", 443)]
        [request] = sent
        assert str(request.url) == f"https://{PUBLIC}/x"
        assert request.headers["host"] == "tool.test"
        assert request.extensions["sni_hostname"] == "tool.test"
        with pytest.raises(AddressRefused, match=r"tool\.test is 127\.0\.0\.1, which is loopback"):
            await client.get("https://tool.test/x")
        assert len(sent) == 1


async def test_the_guard_makes_a_connection_for_every_request(server: WireProvider) -> None:
    """A kept one would serve every name of this address, under the certificate of the first."""
    server.script(body(b"one"), body(b"two"))
    guard = GuardedTransport(private=True, verify=ssl.create_default_context())
    async with httpx2.AsyncClient(transport=guard, trust_env=False) as client:
        assert [(await client.get(server.url)).text for _ in range(2)] == ["one", "two"]
    assert [request.connection for request in server.requests] == [1, 2]


async def test_below_the_guard_nothing_looks_the_name_up_again(
    server: WireProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every look-up of the process counts: the first answer is the server, a second one would be somewhere else."""
    names: list[Any] = []
    system = socket.getaddrinfo

    def rebinding(host: Any, *args: Any, **options: Any) -> Any:
        if host == "tool.test" or host == b"tool.test":
            names.append(host)
            host = "127.0.0.1" if len(names) == 1 else "127.0.0.2"
        return system(host, *args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", rebinding)
    server.script(body(b"ok"))
    assert (await call(tool(f"http://tool.test:{port_of(server)}/"))).content == "ok"
    assert len(names) == 1


# --- settings ---


def test_settings_make_tools_with_their_defaults() -> None:
    settings = Settings.model_validate({"http_tools": '{"it": {"url": "https://tool.test/"}}'})
    target = settings.http_tools["it"]
    assert (target.method, target.timeout_seconds, target.max_bytes) == ("POST", 10.0, 65_536)
    assert not target.idempotent
    assert not target.private
    given = build_tools(settings).get("it")
    assert given is not None
    assert not given.idempotent


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        ("{", "not JSON"),
        ("[]", "not an object"),
        ('{"a b": {"url": "https://x.test"}}', "'a b' is no name"),
        ('{"it": {}}', "it.url: Field required"),
        ('{"it": {"url": "ftp://x.test"}}', "not an http:// or https:// URL"),
        ('{"it": {"url": "https://u:hunter2@x.test"}}', "name the variable of the key in header_env"),
        ('{"it": {"url": "https://x.test", "method": "PUT"}}', "it.method"),
        ('{"it": {"url": "https://x.test", "timeout_seconds": 0}}', "it.timeout_seconds"),
        ('{"it": {"url": "https://x.test", "max_bytes": 262145}}', "it.max_bytes"),
        ('{"it": {"url": "https://x.test", "privat": true}}', "it.privat: Extra inputs are not permitted"),
        ('{"it": {"url": "https://x.test", "headers": {"Host": "hunter2"}}}', "host is a header that cannot be set"),
        ('{"it": {"url": "https://x.test", "headers": {"A B": "hunter2"}}}', "it.headers.A B.[key]"),
        ('{"it": {"url": "https://x.test", "headers": {"A": "hunter2\\r\\nB: 2"}}}', "it.headers.A"),
        (
            '{"it": {"url": "https://x.test", "headers": {"A": "hunter2"}, "header_env": {"a": "B"}}}',
            "a header is there twice",
        ),
        ('{"it": {"url": "https://x.test", "headers": {"Authorization": "hunter2"}}}', "authorization is a secret"),
        ('{"it": {"url": "https://x.test", "header_env": {"A": "Bearer hunter2"}}}', "it.header_env.A"),
        ('{"it": {"url": "https://x.test", "redirect_hosts": ["https://y.test"]}}', "neither host nor host:port"),
    ],
)
def test_a_wrong_setting_is_named_and_no_value_repeated(value: str, sentence: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Settings.model_validate({"http_tools": value})
    [error] = caught.value.errors(include_url=False, include_input=False)
    assert error["loc"] == ("http_tools",)
    assert sentence in error["msg"]
    assert "hunter2" not in error["msg"]


@pytest.mark.parametrize("value", ["", " ", "a\nb", "ä"])
def test_a_key_that_cannot_be_sent_stops_the_worker_and_is_not_shown(
    value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("THE_KEY", value)
    tools = {"it": {"url": "https://tool.test", "header_env": {"Authorization": "THE_KEY"}}}
    with pytest.raises(ValueError, match=r"^HTTP tool 'it': THE_KEY is not set, or is no value of a header$"):
        build_tools(Settings.model_validate({"http_tools": tools}))
