"""Writes the documents that are made from code: `python -m docs.generate` (with `--check`: only compares).

`docs/settings.md` comes from `broker/settings.py`. A test runs the same comparison, so the two cannot drift apart.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic.fields import FieldInfo

from broker.settings import Settings

DOCS: Final = Path(__file__).parent

#: Variables that are no settings of the processes: name -> (where it is read, what it is).
OTHERS: Final = {
    "LEGATO_URL": ("cli/client.py", "Where the client commands find the API; default `http://127.0.0.1:8700`."),
    "LEGATO_TEST_REDIS_URL": ("tests/conftest.py", "A server to run the tests against, in place of the embedded one."),
    "LEGATO_BENCH_CACHE": ("bench/programs.py", "Where `make bench` keeps rivals; default `~/.cache/legato-bench`."),
}

#: Read by the providers' SDKs in the worker, not by Legato.
PROVIDERS: Final = {
    "OPENAI_API_KEY": "The key for the provider `openai`.",
    "OPENAI_BASE_URL": "Another server that speaks OpenAI's chat completions, for the provider `openai`.",
    "ANTHROPIC_API_KEY": "The key for the provider `anthropic`.",
    "ANTHROPIC_BASE_URL": "Another server that speaks Anthropic's Messages, for the provider `anthropic`.",
}

_HEAD: Final = """\
# Settings

<!-- Made by `python -m docs.generate` from broker/settings.py. Do not edit. -->

Every setting is an environment variable. They are read and checked when a process starts; a wrong one ends it with a
message that names it. All processes of a deployment should have the same ones. Durations end in `_SECONDS` or `_MS`,
sizes in `_BYTES`; lists are separated by commas.

| variable | default | values | what it does |
|---|---|---|---|
"""

_REST: Final = """
## Read by the providers' SDKs

Set these for the workers; the API never talks to a provider.

| variable | what it does |
|---|---|
"""

_OTHERS: Final = """
## Read elsewhere

| variable | read by | what it does |
|---|---|---|
"""


def variable(name: str) -> str:
    """The environment variable of a field."""
    return f"{Settings.model_config.get('env_prefix', '')}{name}".upper()


def settings_page() -> str:
    """`docs/settings.md`."""
    rows = [
        f"| `{variable(name)}` | {_default(field.default)} | {_values(field)} | {_cell(field.description or '')} |\n"
        for name, field in Settings.model_fields.items()
    ]
    providers = [f"| `{name}` | {what} |\n" for name, what in PROVIDERS.items()]
    others = [f"| `{name}` | `{where}` | {what} |\n" for name, (where, what) in OTHERS.items()]
    return "".join([_HEAD, *rows, _REST, *providers, _OTHERS, *others])


def pages() -> dict[Path, str]:
    """Every generated page and what it should hold."""
    return {DOCS / "settings.md": settings_page()}


def main(arguments: list[str]) -> int:
    """Write the pages; with `--check` say which differ, and end with 1 if any does."""
    stale = [path for path, text in pages().items() if not path.exists() or path.read_text() != text]
    if "--check" in arguments:
        for path in stale:
            print(f"{path} is not what the code says: run `python -m docs.generate`", file=sys.stderr)
        return 1 if stale else 0
    for path in stale:
        path.write_text(pages()[path])
        print(f"wrote {path}")
    return 0


def _default(value: Any) -> str:
    match value:
        case None:
            return "not set"
        case bool():
            return f"`{str(value).lower()}`"
        case tuple():
            return f"`{','.join(value)}`"
        case float():
            return f"`{value:g}`" if value < 1e6 else f"`{value:.0f}`"
        case _:
            return f"`{value}`"


def _values(field: FieldInfo) -> str:
    """The kind of value, and its bounds."""
    bounds = " ".join(_bounds(field))
    pattern = next((item.pattern for item in field.metadata if getattr(item, "pattern", None)), None)
    if pattern:
        return f"matches `{_cell(pattern)}`"
    kinds = {int: "whole number", float: "number", bool: "`true` or `false`", str: "text"}
    annotation = field.annotation
    if get_origin(annotation) is tuple:
        return "list"
    kind = next((kinds[item] for item in (annotation, *get_args(annotation)) if item in kinds), "text")
    return f"{kind} {bounds}".strip()


def _bounds(field: FieldInfo) -> Iterator[str]:
    for item in field.metadata:
        match item:
            case Ge(ge=bound):
                yield f"≥ {bound}"
            case Gt(gt=bound):
                yield f"> {bound}"
            case Le(le=bound):
                yield f"≤ {bound}"
            case Lt(lt=bound):
                yield f"< {bound}"
            case _:
                pass


def _cell(text: str) -> str:
    return text.replace("|", r"\|")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
