"""The validator `json`: the whole answer is one JSON value, and fits a schema where one is given.

A schema comes with a request, and must not hang the worker or make it fetch anything. So its regular expressions
(`pattern`, `patternProperties`) and references to elsewhere are refused, and the work of a check has a limit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

import orjson
from jsonschema import exceptions, validators
from referencing import Registry
from referencing.exceptions import Unresolvable

from worker.filters.base import Rejected

#: Keywords that may be applied to parts of one answer: about half a second.
_MOST_STEPS: Final = 100_000
#: Keywords whose value is a regular expression, or holds some; and what is resolved while it is checked.
_REFUSED: Final = frozenset({"pattern", "patternProperties", "$dynamicRef", "$recursiveRef"})
#: Keywords whose value holds schemas by a name that the author chose.
_NAMED: Final = frozenset({"properties", "$defs", "definitions", "dependentSchemas", "dependencies"})
#: Keywords whose value is data.
_DATA: Final = frozenset({"enum", "const", "default", "examples"})
#: Comparisons of `uniqueItems` that count as one step.
_COMPARISONS_A_STEP: Final = 4


class JsonAnswer:
    """Lets text through and judges it at the end; with `hold` nothing is shown before it is judged."""

    def __init__(self, *, schema: dict[str, Any] | bool | None = None, hold: bool = False) -> None:
        if not isinstance(hold, bool):
            raise TypeError("hold is neither true nor false")
        self._check = None if schema is None else _checker(schema)
        self._hold = hold
        self._parts: list[str] = []

    def feed(self, text: str) -> str:
        self._parts.append(text)
        return "" if self._hold else text

    def end(self) -> str:
        text = "".join(self._parts)
        try:
            value = orjson.loads(text)
        except orjson.JSONDecodeError as error:
            raise Rejected(f"the answer is not JSON: line {error.lineno}, column {error.colno}") from None
        if self._check is not None:
            self._check(value)
        return text if self._hold else ""


class _TooMuch(Exception):
    """The check takes too many steps."""


def _checker(schema: Any) -> Callable[[Any], None]:
    """Raises `Rejected` for a value that does not fit. Raises `ValueError` for a schema that cannot be used."""
    if not isinstance(schema, (dict, bool)):
        raise TypeError("schema is neither an object nor a boolean")
    dialect: Any = validators.validator_for(schema, default=validators.Draft202012Validator)
    try:
        _look_through(schema)
        dialect.check_schema(schema)
    except RecursionError:
        raise ValueError("schema: too deep") from None
    except exceptions.SchemaError as error:
        raise ValueError(f"schema: {error.message}") from error

    def check(value: Any) -> None:
        counted = _counted(dialect)(schema, registry=Registry())
        try:
            for error in counted.iter_errors(value):
                rule = "/".join(map(str, error.absolute_schema_path))
                raise Rejected(f"the answer does not fit the schema: {rule}")
        except (_TooMuch, RecursionError):
            raise Rejected("the answer and its schema are too much to check") from None
        except Unresolvable:
            raise Rejected("the schema refers to something that it does not hold") from None

    return check


def _look_through(schema: Any) -> None:
    if isinstance(schema, list):
        for item in schema:
            _look_through(item)
    if not isinstance(schema, dict):
        return
    for keyword, value in schema.items():
        if keyword in _REFUSED:
            raise ValueError(f"schema: {keyword} is not supported")
        if keyword == "$ref" and not str(value).startswith("#"):
            raise ValueError("schema: $ref leads out of the schema")
        if keyword in _NAMED and isinstance(value, dict):
            _look_through(list(value.values()))
        elif keyword not in _DATA:
            _look_through(value)


def _counted(dialect: Any) -> Any:
    """The dialect, with a limit to the keywords that one validator applies."""
    steps = 0

    def limited(name: str, apply: Callable[..., Iterator[Any] | None]) -> Callable[..., Iterator[Any]]:
        def step(validator: Any, value: Any, instance: Any, schema: Any) -> Iterator[Any]:
            nonlocal steps
            steps += 1
            if name == "uniqueItems" and isinstance(instance, list):
                steps += len(instance) ** 2 // _COMPARISONS_A_STEP
            if steps > _MOST_STEPS:
                raise _TooMuch
            yield from apply(validator, value, instance, schema) or ()

        return step

    extend: Callable[..., Any] = validators.extend  # not typed
    return extend(dialect, {name: limited(name, apply) for name, apply in dialect.VALIDATORS.items()})
