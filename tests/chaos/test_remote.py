"""`legato chaos --url`: a stack that runs already is used over connections that break, and otherwise left alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from chaos.command import chaos
from chaos.remote import Unfit, run_against
from tests.support.servers import free_port
from tests.support.stack import Stack


@pytest.mark.timeout(300)
def test_readers_of_a_stack_that_runs_are_checked_over_broken_connections(redis_url: str, tmp_path: Path) -> None:
    with Stack.start(redis_url, tmp_path, apis=2, workers=1) as stack:
        out = tmp_path / "chaos.json"
        urls = [word for url in stack.urls for word in ("--url", url)]
        answer = CliRunner().invoke(chaos, [*urls, "--minutes", "0.15", "--users", "4", "--json", str(out)])
        assert answer.exit_code == 0, answer.output
        assert all(process.alive for process in [*stack.apis, *stack.workers])
    run = json.loads(out.read_text())["runs"][0]
    assert (run["profile"], run["violations"]) == ("remote", [])
    assert run["texts"] >= 4
    assert run["characters"] > 1000
    assert sum(run["faults"].values()) >= 2
    assert str(run["characters"]) in answer.output


async def test_a_stack_without_the_sim_provider_is_named(redis_url: str, tmp_path: Path) -> None:
    environment = {"LEGATO_PROVIDERS": "openai", "OPENAI_API_KEY": "none"}
    with (
        Stack.start(redis_url, tmp_path, workers=0, environment=environment) as stack,
        pytest.raises(Unfit, match=r"422.*provider.*LEGATO_PROVIDERS"),
    ):
        await run_against(stack.urls, headers={}, seed=1, seconds=1, users=1)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--url", "ftp://example.com"], "no URL of an API"),
        (["--url", "http://127.0.0.1:1", "--header", "Authorization"], "a --header reads 'Name: value'"),
    ],
)
def test_what_cannot_be_used_is_refused_with_the_reason(arguments: list[str], said: str) -> None:
    answer = CliRunner().invoke(chaos, [*arguments, "--minutes", "0.1"])
    assert answer.exit_code in (1, 2)
    assert said in answer.output


def test_nobody_there_is_an_error_and_not_a_violation() -> None:
    answer = CliRunner().invoke(chaos, ["--url", f"http://127.0.0.1:{free_port()}", "--minutes", "0.1"])
    assert answer.exit_code == 1
    assert "nobody answers there" in answer.output
