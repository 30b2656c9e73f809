"""`python -m tests.conformance`: the server cases, or with `--adapter` the client cases. Ends with 0 if all are green.

python -m tests.conformance                                    a server of its own
python -m tests.conformance --url http://127.0.0.1:8700        a server that runs
python -m tests.conformance --adapter "node adapter.mjs"       a client
… --only WORDS                                                 cases whose file or name holds the words
"""

from __future__ import annotations

import shlex
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from tests.conformance import client_run, server_run
from tests.conformance.adapter import Adapter, AdapterBroken
from tests.conformance.cases import BadCase, Case, load
from tests.support.stack import Stack


@click.command(help=__doc__)
@click.option("--url", help="A running server, with the provider sim.")
@click.option("--adapter", "command", help="Command of a client's adapter.")
@click.option("--only", default="", help="Cases whose file or name holds this.")
def main(url: str | None, command: str | None, only: str) -> None:
    if command is not None:
        if url is not None:
            raise click.UsageError("--url and --adapter exclude one another")
        sys.exit(run_client(shlex.split(command), only))
    with server(url) as there:
        sys.exit(run_server(there, only))


@contextmanager
def server(url: str | None) -> Iterator[str]:
    """The server that is asked; without a URL one of its own, in a folder that goes away."""
    if url is not None:
        yield url.rstrip("/")
        return
    with tempfile.TemporaryDirectory() as folder:
        stack = Stack("", Path(folder), environment={}, tolerated=())
        try:
            yield stack.add_dev(Path(folder) / "data").url
        finally:
            stack.close(check=False)


def run_client(command: list[str], only: str) -> int:
    outcomes: list[bool | None] = []
    try:
        with Adapter(command) as adapter:
            print(f"{adapter.client}: {' '.join(command)}")
            for case in chosen("client", only):
                try:
                    outcomes.append(told(case, client_run.play(case, adapter)))
                except client_run.NotSupported as missing:
                    print(f"skip  {case.id}: the client has no {missing}")
                    outcomes.append(None)
    except AdapterBroken as problem:
        print(f"the adapter does not keep its contract: {problem}", file=sys.stderr)
        return 2
    return summed(outcomes)


def run_server(url: str, only: str) -> int:
    print(url)
    return summed([told(case, server_run.play(case, url)) for case in chosen("server", only)])


def chosen(kind: str, only: str) -> list[Case]:
    try:
        found = [case for case in load(kind) if only in case.id]
    except BadCase as problem:
        raise click.ClickException(str(problem)) from None
    if not found:
        raise click.UsageError(f"no {kind} case holds {only!r}")
    return found


def told(case: Case, problems: list[str]) -> bool:
    print(f"{'FAIL' if problems else 'ok'}    {case.id} ({case.proves})", flush=True)
    for problem in problems:
        print(f"      {problem}", flush=True)
    return not problems


def summed(outcomes: list[bool | None]) -> int:
    green, failed, skipped = outcomes.count(True), outcomes.count(False), outcomes.count(None)
    print(f"{green} green, {failed} failed, {skipped} skipped, of {len(outcomes)}")
    return 1 if failed or not green else 0


if __name__ == "__main__":
    main()
