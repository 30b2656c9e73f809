"""Golden files: what each wire is sent, and what is read from it, to the byte."""

from __future__ import annotations

import asyncio

import pytest

from tests.providers.golden import HERE, made_of_request, made_of_stream, request_cases, stream_cases
from tests.providers.wires import WIRES, Wire

REQUESTS = [pytest.param(wire, case, id=f"{wire.name}-{case}") for wire, case in request_cases()]
STREAMS = [pytest.param(wire, case, id=f"{wire.name}-{case}") for wire, case in stream_cases()]


@pytest.mark.parametrize(("wire_of", "case"), REQUESTS)
async def test_a_request_is_sent_as_its_file_says(wire_of: Wire, case: str) -> None:
    """`python -m tests.providers.golden` writes it anew; look at the difference."""
    path, text = await asyncio.to_thread(made_of_request, wire_of, case)
    assert path.read_text() == text


@pytest.mark.parametrize(("wire_of", "case"), STREAMS)
@pytest.mark.parametrize("piece_bytes", [0, 1], ids=["as it comes", "single bytes"])
async def test_a_stream_is_read_as_its_file_says(wire_of: Wire, case: str, piece_bytes: int) -> None:
    """However it is cut."""
    path, text = await asyncio.to_thread(made_of_stream, wire_of, case, piece_bytes=piece_bytes)
    assert path.read_text() == text


def test_no_file_belongs_to_no_case() -> None:
    """Each wire has both, and a case that is gone leaves nothing behind."""
    assert {(wire.name, case) for wire, case in request_cases()} == {
        (wire.name, path.stem) for wire in WIRES for path in (HERE / wire.name / "requests").glob("*.json")
    }
    assert {wire.name for wire, _ in stream_cases()} == {wire.name for wire in WIRES}
