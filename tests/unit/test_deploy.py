"""What the deployment files say fits what the code takes. No Docker and no nginx is needed here."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any, Final

import click
import pytest
import yaml

from api.auth import check_bind
from broker.settings import Settings
from cli.main import COMMANDS, main
from docs.generate import PROVIDERS, variable

ROOT: Final = Path(__file__).parents[2]

_SETTINGS: Final = {variable(name): name for name in Settings.model_fields}


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    return loaded


@pytest.fixture(scope="module")
def services(compose: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = compose["services"]
    return found


def directives() -> list[list[str]]:
    """The directives of nginx.conf, in order, without comments and braces."""
    text = re.sub(r"#.*", "", (ROOT / "deploy/nginx.conf").read_text())
    return [part.split() for part in re.split(r"[;{}]", text) if part.strip()]


def parse(arguments: list[str]) -> click.Context:
    """A command line as the `legato` command takes it; raises for one that it does not."""
    name, *rest = arguments
    assert name in COMMANDS
    command = main.get_command(click.Context(main), name)
    assert command is not None
    return command.make_context(name, list(rest))


def test_there_are_two_of_each(services: dict[str, Any]) -> None:
    """One Redis, one gateway, two API processes, two workers."""
    assert set(services) == {"redis", "gateway", "api-1", "api-2", "worker"}
    assert services["worker"]["deploy"]["replicas"] == 2


def test_every_command_is_one_of_ours(services: dict[str, Any]) -> None:
    for name in ("api-1", "api-2", "worker"):
        assert parse(services[name]["command"]).info_name == services[name]["command"][0]


def test_redis_keeps_what_it_is_given(services: dict[str, Any]) -> None:
    command = services["redis"]["command"]
    assert "--appendonly yes" in command
    assert "--maxmemory-policy noeviction" in command
    assert services["redis"]["volumes"]


def test_every_variable_is_one_of_ours_with_a_value_it_takes(services: dict[str, Any]) -> None:
    for name in ("api-1", "api-2", "worker"):
        environment = services[name]["environment"]
        assert "LEGATO_REDIS_URL" in environment
        assert set(environment) <= set(_SETTINGS) | set(PROVIDERS)
        given = {_SETTINGS[key]: _with_defaults(value) for key, value in environment.items() if key in _SETTINGS}
        Settings(**given)


def _with_defaults(value: str) -> str:
    """`${NAME:-value}` where NAME is not set."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", value)


def test_keys_are_passed_on_and_never_empty(services: dict[str, Any]) -> None:
    """An SDK takes an empty key for a key. Without a value here, a variable that is not set is not passed on."""
    assert all(services["worker"]["environment"][name] is None for name in PROVIDERS)
    for name in ("api-1", "api-2"):
        assert not set(services[name]["environment"]) & set(PROVIDERS)


def test_the_api_is_reached_through_the_gateway_and_by_this_machine_only(services: dict[str, Any]) -> None:
    """The API binds to loopback; it shares the namespace of the one container that has a port."""
    listening = {parse(services[name]["command"]).params["port"] for name in ("api-1", "api-2")}
    for name in ("api-1", "api-2"):
        assert services[name]["network_mode"] == "service:gateway"
        assert "ports" not in services[name]
        check_bind(parse(services[name]["command"]).params["host"])
    upstreams = {
        int(words[1].rpartition(":")[2]) for words in directives() if words[:1] == ["server"] and len(words) > 1
    }
    assert upstreams == listening
    published = [port for service in services.values() for port in service.get("ports", [])]
    assert len(published) == 1
    address, host_port, container_port = published[0].split(":")
    assert address == "127.0.0.1"
    assert host_port == "8700"
    assert ["listen", container_port] in directives()


def test_the_health_of_an_api_is_looked_at_where_it_listens(services: dict[str, Any]) -> None:
    for name in ("api-1", "api-2"):
        port = parse(services[name]["command"]).params["port"]
        assert f"http://127.0.0.1:{port}/readyz" in " ".join(services[name]["healthcheck"]["test"])
    assert services["worker"]["healthcheck"] == {"disable": True}


def test_a_worker_is_given_the_time_to_hand_over(services: dict[str, Any]) -> None:
    settings = Settings(redis_url="redis://localhost")
    seconds = float(services["worker"]["stop_grace_period"].removesuffix("s"))
    assert seconds > settings.drain_seconds + settings.lease_seconds


def test_the_gateway_mounts_the_configuration_that_is_here(services: dict[str, Any]) -> None:
    source, target, mode = services["gateway"]["volumes"][0].split(":")
    assert (ROOT / source).is_file()
    assert target == "/etc/nginx/nginx.conf"
    assert mode == "ro"


def test_the_gateway_passes_cuts_on_and_holds_nothing_back() -> None:
    """HTTP/1.1 to the API: with 1.0 a cut stream looks whole. No buffering, and patience above the keepalive."""
    there = directives()
    assert ["proxy_http_version", "1.1"] in there
    assert ["proxy_buffering", "off"] in there
    assert ["gzip", "off"] in there
    read_timeout = next(words[1] for words in there if words[0] == "proxy_read_timeout")
    seconds = int(read_timeout[:-1]) * {"s": 1, "m": 60, "h": 3600}[read_timeout[-1]]
    assert seconds > 4 * Settings(redis_url="redis://localhost").ping_seconds


def test_the_gateway_logs_no_query() -> None:
    """Query strings hold cursors."""
    log_format = " ".join(next(words for words in directives() if words[0] == "log_format"))
    assert "$request " not in log_format
    assert "$request_uri" not in log_format
    assert "$args" not in log_format


def test_the_image_is_pinned_by_hash_and_runs_as_nobody_in_particular() -> None:
    text = (ROOT / "Dockerfile").read_text()
    assert "--require-hashes -r /tmp/run.lock" in text
    assert re.search(r"^USER 10001:10001$", text, re.MULTILINE)
    for line in re.findall(r"^RUN .*pip install.*$", text, re.MULTILINE):
        assert "--require-hashes" in line or "--no-index" in line, line
    assert "/readyz" in text
    assert parse(json.loads(re.findall(r"^CMD (\[.*\])$", text, re.MULTILINE)[-1])).info_name == "api"


def test_everything_the_image_copies_is_let_through() -> None:
    """.dockerignore takes everything away but what it names."""
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in ignored
    let_through = {line[1:].split("/")[0] for line in ignored if line.startswith("!")}
    for sources in re.findall(r"^COPY (?!--from)(.+) \S+$", (ROOT / "Dockerfile").read_text(), re.MULTILINE):
        for source in sources.split():
            assert (ROOT / source).exists(), source
            assert source.split("/")[0] in let_through, source


def test_ci_runs_the_test_command_of_the_readme() -> None:
    path = ROOT / ".ci/run"
    assert os.access(path, os.X_OK)
    assert "make test" in path.read_text()
    assert "make test" in (ROOT / "README.md").read_text()
    subprocess.run(["bash", "-n", path], check=True)
