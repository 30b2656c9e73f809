"""The `legato` command.

A command's module is imported when the command runs and not before: `legato tail` must not wait for FastAPI and the
SDKs. The price is that help texts of the list stand here; a test compares them with the commands' own.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import Any, Final

import click

from cli.exits import EXIT_HELP, Exit

#: Name, module that holds it (under the same name), and its line in the list.
COMMANDS: Final[dict[str, tuple[str, str]]] = {
    "dev": ("cli.dev", "API, worker and an embedded server in one command."),
    "demo": ("cli.demo", "Cut a stream's connection again and again, and show that its text is whole."),
    "submit": ("cli.submit", "Submit a job and print its id."),
    "tail": ("cli.tail", "Print a generation's text as it comes, until it ends."),
    "cancel": ("cli.manage", "Cancel a generation, and print its status."),
    "inspect": ("cli.manage", "Show a generation's status, timings and text."),
    "webhooks": ("cli.webhooks", "List dead deliveries of webhooks; with their ids, have them tried again."),
    "chaos": ("chaos.command", "Break a deployment for some minutes, and show that no character is lost or repeated."),
    "sim": ("cli.sim", "Print exactly the text that the sim provider generates."),
    "api": ("cli.api", "API processes on one port."),
    "worker": ("cli.worker", "Worker processes."),
}


class LazyGroup(click.Group):
    """A group whose commands are imported on use."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command = getattr(import_module(COMMANDS[cmd_name][0]), cmd_name)
        assert isinstance(command, click.Command)  # noqa: S101 - the table is ours
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise click.exceptions.Exit(Exit.INTERRUPTED) from None
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what Python still flushes at its end
            raise click.exceptions.Exit(Exit.BROKEN_PIPE) from None


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]}, epilog=EXIT_HELP)
@click.version_option(package_name="legato")
def main() -> None:
    """Legato makes a generated text arrive whole, whatever breaks."""


if __name__ == "__main__":
    main(prog_name="legato")
