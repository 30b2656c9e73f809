"""The cases: read from YAML, checked against the schema, and what their values stand for. Pure, but for reading files.

A value that is expected is met by an equal one, with a few marks: `"*"` by anything but null, `"-"` by nothing (the
field is not there), `"~…"` by text that the regular expression matches whole. A mapping is met by one that has at least
its fields; a list by one of the same length, item by item.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import jsonschema
import yaml

FOLDER: Final = Path(__file__).parent / "cases"
SCHEMA: Final = Path(__file__).parent / "schema.json"

#: libyaml's where it is there: every process of a test run reads all the cases.
_LOADER: Final = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_VARIABLE: Final = re.compile(r"\$\{([a-z_]+)\}")


@dataclass(frozen=True, slots=True)
class Case:
    """One behaviour. `proves` is the section of docs/protocol.md that asks for it, or a rule of Write a client."""

    kind: str  # `client` or `server`
    file: str
    name: str
    proves: str
    body: Mapping[str, Any]
    logs: Mapping[str, Any]  # of its file, by name

    @property
    def id(self) -> str:
        return f"{self.file}: {self.name}"


class BadCase(ValueError):
    """A file that the schema does not allow; says where."""


def load(kind: str, *, folder: Path = FOLDER) -> list[Case]:
    """All cases of a kind, checked. Raises `BadCase`."""
    schema = json.loads(SCHEMA.read_text())
    checker = jsonschema.Draft202012Validator({**schema, "$ref": f"#/$defs/{kind}_file"})
    found = []
    for path in sorted((folder / kind).glob("*.yaml")):
        try:
            document = yaml.load(path.read_text(), _LOADER)
        except yaml.YAMLError as exc:
            raise BadCase(f"{path.name}: {exc}") from exc
        if (error := jsonschema.exceptions.best_match(checker.iter_errors(document))) is not None:
            place = "/".join(map(str, error.absolute_path))
            raise BadCase(f"{path.name}: {place}: {error.message}")
        logs = document.get("logs", {})
        for body in document["cases"]:
            found.append(Case(kind, path.stem, body["name"], str(body["proves"]), body, logs))
    return found


def filled(value: Any, variables: Mapping[str, str]) -> Any:
    """With `${name}` replaced by what was saved under it. Raises KeyError for a name that nothing was saved under."""
    if isinstance(value, str):
        return _VARIABLE.sub(lambda found: str(variables[found[1]]), value)
    if isinstance(value, dict):
        return {name: filled(item, variables) for name, item in value.items()}
    if isinstance(value, list):
        return [filled(item, variables) for item in value]
    return value


_ABSENT: Final = object()


def mismatches(expected: Any, seen: Any, where: str) -> Iterator[str]:
    """What is not as expected, a line each."""
    if expected == "-":
        if seen is not _ABSENT:
            yield f"{where} is there: {_short(seen)}"
    elif seen is _ABSENT:
        yield f"{where} is not there"
    elif expected == "*":
        if seen is None:
            yield f"{where} is null"
    elif isinstance(expected, str) and expected.startswith("~"):
        if not re.fullmatch(expected[1:], str(seen), re.DOTALL):
            yield f"{where} is {_short(seen)}, which {expected[1:]!r} does not match"
    elif isinstance(expected, dict) and isinstance(seen, dict):
        for name, item in expected.items():
            yield from mismatches(item, seen.get(name, _ABSENT), f"{where}.{name}")
    elif isinstance(expected, list) and isinstance(seen, list):
        if len(expected) != len(seen):
            yield f"{where} has {len(seen)} items and not {len(expected)}: {_short(seen)}"
        else:
            for number, (item, there) in enumerate(zip(expected, seen, strict=True)):
                yield from mismatches(item, there, f"{where}[{number}]")
    elif expected != seen or isinstance(expected, bool) != isinstance(seen, bool):
        yield f"{where} is {_short(seen)} and not {_short(expected)}"


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) < 300 else f"{text[:297]}…"
