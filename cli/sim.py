"""`legato sim`: what a text of the sim provider has to be, for whoever wants to compare."""

from __future__ import annotations

import sys
from typing import Final

import click
import orjson

from worker.providers.sim import DEFAULT_TOKENS, sim_text

#: As many as the provider takes.
MAX_TOKENS: Final = 1_000_000


@click.command()
@click.option(
    "--tokens", type=click.IntRange(0, MAX_TOKENS), default=DEFAULT_TOKENS, show_default=True, help="How many."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Which text.")
@click.option("--json", "as_json", is_flag=True, help='Print {"text", "tokens"}.')
def sim(tokens: int, seed: int, as_json: bool) -> None:
    """Print exactly the text that the sim provider generates.

    UTF-8, and no line end behind it, unless stdout is a terminal.
    """
    text = sim_text(tokens, seed)
    if as_json:
        out = orjson.dumps({"text": text, "tokens": tokens}) + b"\n"
    else:
        out = text.encode() + (b"\n" if sys.stdout.isatty() else b"")
    sys.stdout.buffer.write(out)
    sys.stdout.buffer.flush()
