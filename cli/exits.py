"""How a command ends: the exit codes, and errors that end one with a line on stderr and never a traceback."""

from __future__ import annotations

import re
from enum import IntEnum
from typing import IO, Any, Final

import click


class Exit(IntEnum):
    """What the shell is told. `tail` and `submit --follow` report the generation's end, the others their own."""

    COMPLETED = 0  # the generation completed; or: done what was asked
    FAILED = 1  # the generation failed; demo: the text was not whole
    USAGE = 2  # wrong arguments, or a request that the server refuses
    CANCELLED = 3  # the generation was cancelled
    NOT_FOUND = 4  # no such generation, or it was deleted or has expired
    UNAVAILABLE = 5  # no answer, or none that helps, for as long as --timeout allows
    INTERRUPTED = 130  # Ctrl-C; a generation goes on without its reader
    BROKEN_PIPE = 141  # nobody reads our output any more


#: Shown by `legato --help` and by every client command. The first line keeps click from rewrapping it.
EXIT_HELP: Final = """\b
Exit codes:
  0    completed (or: done what was asked)
  1    failed (demo: the text was not whole)
  2    wrong arguments, or a request that the server refuses
  3    cancelled
  4    no such generation, or deleted, or expired
  5    server unreachable or unavailable, after trying for --timeout
  130  Ctrl-C (a generation goes on without its reader)
"""

_CONTROL: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class Failure(click.ClickException):
    """Ends the command: one line on stderr, and this exit code."""

    def __init__(self, code: Exit, message: str) -> None:
        super().__init__(message)
        self.exit_code = code.value  # type: ignore[misc]  # click reads the instance's

    def show(self, file: IO[Any] | None = None) -> None:
        note(self.message)


def note(message: str) -> None:
    """A line on stderr, for people."""
    click.echo(f"legato: {harmless(' '.join(message.split()))}", err=True)


def harmless(text: str) -> str:
    """Text as a terminal may have it: control characters, with which a model's answer could take the terminal over,
    are replaced. Line ends and tabs stay."""
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)
