"""`legato chaos`: break a deployment of its own for some minutes, and show that no character was lost."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import click
import uvloop

from chaos.remote import Unfit, run_against
from chaos.report import as_json, table
from chaos.run import Result, run
from chaos.schedule import Kind, Profile

_FAILED: Final = 1


@click.command()
@click.option("--minutes", type=click.FloatRange(0.1), default=2.0, show_default=True, help="Of faults, in all.")
@click.option("--seed", type=int, default=1, show_default=True, help="Which schedule.")
@click.option(
    "--profile",
    type=click.Choice([*(profile.value for profile in Profile if profile.is_ours), "all"]),
    default="single",
    show_default=True,
    help="Shape of the store; all shares the minutes between them.",
)
@click.option(
    "--users", type=click.IntRange(1), default=8, show_default=True, help="Who submit, each with 1 to 4 readers."
)
@click.option("--faults", default="", help="Only these kinds, separated by commas.")
@click.option(
    "--url", "urls", multiple=True, help="Test the stack behind this URL instead. May be given more than once."
)
@click.option("--header", "headers", multiple=True, help="With --url, of every request: 'Authorization: Bearer …'.")
@click.option("--json", "as_file", type=click.Path(dir_okay=False, path_type=Path), help="Write everything here.")
@click.option("--logs", type=click.Path(file_okay=False, path_type=Path), help="Keep the processes' logs here.")
def chaos(
    minutes: float,
    seed: int,
    profile: str,
    users: int,
    faults: str,
    urls: tuple[str, ...],
    headers: tuple[str, ...],
    as_file: Path | None,
    logs: Path | None,
) -> None:
    """Break a deployment for some minutes, and show that no character is lost or repeated.

    Starts servers, APIs, workers and clients of its own. With --url it uses a stack of yours, and breaks nothing but
    its own connections to it. Exits 1 if anything was violated.
    """
    if urls:
        results = [_against(urls, headers, minutes=minutes, seed=seed, users=users)]
    else:
        results = _ours(minutes, seed, profile, users, faults, logs)
    if as_file is not None:
        as_file.write_text(json.dumps(as_json(results), indent=1))
    if any(result.verdict.violations for result in results):
        raise click.exceptions.Exit(_FAILED)


def _against(urls: Sequence[str], headers: Sequence[str], *, minutes: float, seed: int, users: int) -> Result:
    named = dict(header.split(": ", 1) for header in headers if ": " in header)
    if len(named) < len(headers):
        raise click.UsageError("a --header reads 'Name: value'")
    try:
        result = uvloop.run(
            run_against(urls, headers=named, seed=seed, seconds=60 * minutes, users=users, say=_tell),
        )
    except Unfit as unfit:
        raise click.ClickException(str(unfit)) from None
    click.echo(table(result) + "\n")
    return result


def _ours(minutes: float, seed: int, profile: str, users: int, faults: str, logs: Path | None) -> list[Result]:
    profiles = [each for each in Profile if each.is_ours] if profile == "all" else [Profile(profile)]
    kinds = tuple(Kind(name.strip()) for name in faults.split(",")) if faults else None
    results: list[Result] = []
    for each in profiles:
        click.echo(f"{each.value}, seed {seed}: {60 * minutes / len(profiles):.0f} s of faults", err=True)
        result = uvloop.run(
            run(
                each,
                seed=seed,
                seconds=60 * minutes / len(profiles),
                users=users,
                directory=logs / each.value if logs else None,
                kinds=kinds,
                say=_tell,
            )
        )
        results.append(result)
        click.echo(table(result) + "\n")
    return results


def _tell(text: str) -> None:
    click.echo(text, err=True)


if __name__ == "__main__":
    chaos()
