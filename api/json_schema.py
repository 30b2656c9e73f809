"""Is this JSON a JSON Schema? For the parameters of tools, before anything is queued.

By the metaschema of draft 2020-12, and where draft 7 differs (a list as `items`) by that, too: clients send both. Tests
hold it against the library `jsonschema`, which is not used here because it takes 0.1 ms and more for a subschema: 60 KB
of them would hold up all streams of a process for two seconds. Here that is a few hundredths of one.

Only the shape is looked at, as the metaschema does: whether a `pattern` is a regular expression, and where a `$ref`
leads, is the provider's business. Nothing is fetched. Keywords that are not known are anybody's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Final

from broker.options import Path, Wrong

_TYPE_NAMES: Final = ("array", "boolean", "integer", "null", "number", "object", "string")

_Check = Callable[[Path, Any], Iterator[Wrong]]


def wrong_schema(path: Path, schema: object) -> Iterator[Wrong]:
    """Everything in `schema`, which stands at `path`, that no JSON Schema may say.

    Recursive: the edge lets no body in that is nested deeper than the stack.
    """
    if isinstance(schema, bool):
        return
    if not isinstance(schema, dict):
        yield Wrong(path, "a schema must be an object, true or false")
        return
    for name, value in schema.items():
        if (check := _KEYWORDS.get(name)) is not None:
            yield from check((*path, name), value)


def _schemas(path: Path, value: Any) -> Iterator[Wrong]:
    if not isinstance(value, list) or not value:
        yield Wrong(path, "it must be a list of schemas, and not empty")
        return
    for number, item in enumerate(value):
        yield from wrong_schema((*path, number), item)


def _items(path: Path, value: Any) -> Iterator[Wrong]:
    yield from _schemas(path, value) if isinstance(value, list) and value else wrong_schema(path, value)


def _by_name(path: Path, value: Any, *, check: _Check) -> Iterator[Wrong]:
    if not isinstance(value, dict):
        yield Wrong(path, "it must be an object")
        return
    for name, item in value.items():
        yield from check((*path, name), item)


def _strings(path: Path, value: Any) -> Iterator[Wrong]:
    if not _are_different_strings(value):
        yield Wrong(path, "it must be a list of different strings")


def _dependency(path: Path, value: Any) -> Iterator[Wrong]:
    yield from _strings(path, value) if isinstance(value, list) else wrong_schema(path, value)


def _type(path: Path, value: Any) -> Iterator[Wrong]:
    names = [value] if isinstance(value, str) else value
    if not (names and _are_different_strings(names) and set(names).issubset(_TYPE_NAMES)):
        yield Wrong(path, f"it must be one, or a list, of {', '.join(_TYPE_NAMES)}")


def _is(path: Path, value: Any, *, kind: type, called: str) -> Iterator[Wrong]:
    if not isinstance(value, kind):
        yield Wrong(path, f"it must be {called}")


def _number(path: Path, value: Any, *, positive: bool) -> Iterator[Wrong]:
    if not _is_number(value) or (positive and value <= 0):
        yield Wrong(path, "it must be a number above 0" if positive else "it must be a number")


def _count(path: Path, value: Any) -> Iterator[Wrong]:
    if not _is_number(value) or value < 0 or value != int(value):
        yield Wrong(path, "it must be a whole number, 0 or more")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _are_different_strings(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value) and len(set(value)) == len(value)


_STRING: Final = partial(_is, kind=str, called="a string")
_BOOLEAN: Final = partial(_is, kind=bool, called="true or false")
_LIST: Final = partial(_is, kind=list, called="a list")
_SCHEMAS_BY_NAME: Final = partial(_by_name, check=wrong_schema)

_GROUPS: Final[tuple[tuple[_Check, str], ...]] = (
    (
        wrong_schema,
        "additionalProperties contains contentSchema else if not propertyNames then unevaluatedItems "
        "unevaluatedProperties",
    ),
    (_items, "items"),
    (_schemas, "allOf anyOf oneOf prefixItems"),
    (_SCHEMAS_BY_NAME, "$defs definitions dependentSchemas patternProperties properties"),
    (partial(_by_name, check=_strings), "dependentRequired"),
    (partial(_by_name, check=_dependency), "dependencies"),
    (_strings, "required"),
    (_type, "type"),
    (_LIST, "enum examples"),
    (_count, "maxContains maxItems maxLength maxProperties minContains minItems minLength minProperties"),
    (partial(_number, positive=False), "exclusiveMaximum exclusiveMinimum maximum minimum"),
    (partial(_number, positive=True), "multipleOf"),
    (_BOOLEAN, "deprecated readOnly uniqueItems writeOnly"),
    (
        _STRING,
        "$anchor $comment $dynamicAnchor $dynamicRef $id $ref $schema contentEncoding contentMediaType description "
        "format pattern title",
    ),
)

_KEYWORDS: Final = {name: check for check, names in _GROUPS for name in names.split()}
