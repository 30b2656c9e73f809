"""The `legato` command."""

from __future__ import annotations

import click

from cli.serve import api, dev, worker


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="legato")
def main() -> None:
    """Legato makes a generated text arrive whole, whatever breaks."""


for _command in (dev, api, worker):
    main.add_command(_command)

if __name__ == "__main__":
    main()
