"""What jobs ask for. Each shape goes through another part of the product; of each the whole text is known beforehand:
numbered words given verbatim, or one of a few texts that `legato sim` printed.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final

from chaos.toolbox import said_by

Json = dict[str, Any]

#: Attempts of a job: more than faults can take from it.
_MOST_ATTEMPTS: Final = 20

#: A provider of which nobody answers, as the processes know it.
DEAD: Final = "dead"

#: How a simulated fault of the provider is called when it ends a generation.
_CODES: Final = {"error": "upstream_error", "truncate": "upstream_incomplete", "rate_limit": "rate_limited"}


class Shape(Enum):
    """What is special about a job."""

    PLAIN = "plain"
    DELIVERED = "delivered"  # cut by words or sentences, and held back for a while
    READ_ON = "read_on"  # the provider keeps the answer: behind a lost attempt it is read on
    FALLBACK = "fallback"  # the first provider cannot be reached, another one answers
    TOOLS = "tools"  # run by the worker, between two turns of the model
    INTERACTIVE = "interactive"  # run by the client, while the generation waits for it

    @property
    def needs_the_deployment(self) -> bool:
        """Whether it takes more than the `sim` provider: a tool, or a dead provider, that workers know."""
        return self in (Shape.FALLBACK, Shape.TOOLS)


#: How often each, of a hundred.
_SHARES: Final[Mapping[Shape, int]] = {
    Shape.PLAIN: 48,
    Shape.DELIVERED: 10,
    Shape.READ_ON: 10,
    Shape.FALLBACK: 8,
    Shape.TOOLS: 12,
    Shape.INTERACTIVE: 12,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """A job before it is asked for."""

    shape: Shape
    body: Json
    expected: str
    may_fail: frozenset[str]  # codes with which it may end
    results: Mapping[str, str] = field(default_factory=dict)  # id of a call -> what its tool gives back


def draft(draw: random.Random, number: int, texts: Sequence[tuple[Json, str]], shapes: Sequence[Shape]) -> Draft:
    """The job of that number."""
    shape = draw.choices(shapes, weights=[_SHARES[each] for each in shapes])[0]
    recovery = draw.choice(("restart", "restart", "restart", "continue", "fail"))
    may_fail = {"worker_lost"} if recovery == "fail" else set()
    body: Json = {
        "provider": "sim",
        "model": "sim-1",
        "messages": [{"role": "user", "content": "Say something."}],
        "recovery": recovery,
        "max_attempts": _MOST_ATTEMPTS,
        "priority": draw.choice(("interactive", "interactive", "batch")),
        "metadata": {"chaos": number},
    }
    options, expected, results = _said(draw, number, texts, shape)
    options["tokens_per_second"] = draw.choice((0, 20, 30, 40, 60))
    if draw.random() < 0.1:
        kind = draw.choice(tuple(_CODES))
        options["faults"] = [{"at_token": draw.randrange(0, 30), "kind": kind, "attempt": 1}]
        may_fail |= {_CODES[kind]} if recovery == "fail" else set()
    body["provider_options"] = options
    if draw.random() < 0.15:
        body["on_disconnect"] = {"policy": "cancel", "grace_seconds": 60}
    match shape:
        case Shape.PLAIN:
            pass
        case Shape.DELIVERED:
            unit = draw.choice(("word", "sentence", "token"))
            body["delivery"] = {"unit": unit, "max_chars": draw.choice((20, 200)), "flush_ms": draw.choice((50, 400))}
        case Shape.READ_ON:
            options["resumable"] = True
        case Shape.FALLBACK:
            body |= {"provider": DEAD, "model": "none", "provider_options": {}}
            body["fallbacks"] = [{"provider": "sim", "model": "sim-1", "provider_options": options}]
            may_fail |= {"upstream_error"} if recovery == "fail" else set()
        case Shape.TOOLS | Shape.INTERACTIVE:
            names = sorted({call["name"] for turn in options["turns"] for call in turn.get("tool_calls", ())})
            body["tools"] = [{"type": "function", "function": {"name": name}} for name in names]
            body["tool_mode"] = "server" if shape is Shape.TOOLS else "interactive"
            # A tool that may not run twice was at work when its worker was lost.
            may_fail |= {"tool_error"} if "once" in names else set()
    return Draft(shape=shape, body=body, expected=expected, may_fail=frozenset(may_fail), results=results)


def _said(
    draw: random.Random, number: int, texts: Sequence[tuple[Json, str]], shape: Shape
) -> tuple[Json, str, dict[str, str]]:
    """Options of `sim`, the text that they give, and the results of the tools it calls."""
    if shape in (Shape.TOOLS, Shape.INTERACTIVE):
        turns: list[Json] = []
        results: dict[str, str] = {}
        for turn in range(draw.randrange(1, 3)):
            calls = []
            for call in range(draw.randrange(1, 3)):
                name = draw.choice(("echo", "echo", "once"))
                call_id = f"call-{number}-{turn}-{call}"
                arguments = {"say": call_id, "seconds": draw.choice((0, 0, 0.3, 1.0))}
                calls.append({"id": call_id, "name": name, "arguments": arguments})
                results[call_id] = said_by(name, call_id)
            turns.append({"text": _numbered(draw, number, 5, 60) + "\n", "tool_calls": calls})
        turns.append({"text": _numbered(draw, number, 20, 150)})
        expected = "".join(turn["text"] for turn in turns)
        return {"turns": turns, "chunk_chars": draw.randrange(4, 12)}, expected, results
    if draw.random() < 0.4:
        options, expected = draw.choice(texts)
        return dict(options), expected, {}
    expected = _numbered(draw, number, 40, 400)
    return {"text": expected, "chunk_chars": draw.randrange(4, 12)}, expected, {}


def _numbered(draw: random.Random, number: int, least: int, most: int) -> str:
    return " ".join(f"{number}.{word}" for word in range(draw.randrange(least, most)))
