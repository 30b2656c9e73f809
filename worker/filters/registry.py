"""Which filters there are: the built-in ones, and those that installed packages bring along as entry points.

An entry point of the groups `legato.transforms` and `legato.validators` is a factory `(**options) -> filter`. It is
imported when a request first names it. Built-in names cannot be taken.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Final

from broker.generation import Filter
from worker.filters.base import FilterDefect, Transform, Validator
from worker.filters.pipeline import Pipeline


def _redact() -> Callable[..., Any]:
    from worker.filters.redact import Redact  # noqa: PLC0415

    return Redact


def _forbid() -> Callable[..., Any]:
    from worker.filters.forbid import Forbid  # noqa: PLC0415

    return Forbid


def _json() -> Callable[..., Any]:
    from worker.filters.json import JsonAnswer  # noqa: PLC0415

    return JsonAnswer


_TRANSFORMS: Final = "legato.transforms"
_VALIDATORS: Final = "legato.validators"
_BUILT_IN: Final[Mapping[str, Mapping[str, Callable[[], Callable[..., Any]]]]] = {
    _TRANSFORMS: {"redact": _redact},
    _VALIDATORS: {"forbid": _forbid, "json": _json},
}


def known_transforms() -> list[str]:
    """Names, sorted."""
    return _known(_TRANSFORMS)


def known_validators() -> list[str]:
    """Names, sorted."""
    return _known(_VALIDATORS)


def build_pipeline(transforms: Sequence[Filter], validators: Sequence[Filter]) -> Pipeline | None:
    """New filters for one answer; None where the request names none.

    Raises `LookupError` for an unknown name, `ValueError` for options that the filter does not take (both say which),
    and `FilterDefect` where an installed filter cannot be had.
    """
    if not transforms and not validators:
        return None
    changing: list[Transform] = [_built(_TRANSFORMS, asked) for asked in transforms]
    judging: list[Validator] = [_built(_VALIDATORS, asked) for asked in validators]
    return Pipeline(changing, judging, names=[asked.name for asked in (*transforms, *validators)])


def _known(group: str) -> list[str]:
    return sorted({*_BUILT_IN[group], *installed(group)})


def _built(group: str, asked: Filter) -> Any:
    factory = _factory(group, asked.name)
    try:
        return factory(**asked.options)
    except (TypeError, ValueError) as error:
        raise ValueError(f"filter {asked.name!r}: {error}") from error
    except Exception as error:
        raise FilterDefect(asked.name, f"{type(error).__name__} while it was made") from error


@cache
def installed(group: str) -> Mapping[str, EntryPoint]:
    """The entry points of a group by name, looked for once; of two of one name the first on the path."""
    found: dict[str, EntryPoint] = {}
    for point in entry_points(group=group):
        found.setdefault(point.name, point)
    return found


@cache
def _factory(group: str, name: str) -> Callable[..., Any]:
    if built_in := _BUILT_IN[group].get(name):
        return built_in()
    point = installed(group).get(name)
    if point is None:
        kind = group.removeprefix("legato.").removesuffix("s")
        raise LookupError(f"no {kind} {name!r}; there are {', '.join(_known(group))}")
    try:
        factory: Callable[..., Any] = point.load()
    except Exception as error:
        raise FilterDefect(name, f"{type(error).__name__} while it was imported") from error
    return factory
