"""The Python of docs/how-to/use-openai-sdk.md, taken from the page and run."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.support.stack import Stack
from worker.providers.sim import sim_text

PAGE: Final = Path(__file__).parents[2] / "docs" / "how-to" / "use-openai-sdk.md"
ADDRESS: Final = "http://127.0.0.1:8700"
BLOCKS: Final = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def stack(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with Stack.start(redis_url, tmp_path_factory.mktemp("how_to")) as running:
        yield running


@pytest.mark.parametrize("block", BLOCKS, ids=[str(number) for number in range(len(BLOCKS))])
async def test_the_page_s_code_prints_the_answer(stack: Stack, block: str) -> None:
    """Whole, as a script of its own."""
    assert ADDRESS in block
    script = [sys.executable, "-W", "error", "-c", block.replace(ADDRESS, stack.urls[0])]
    ran = await asyncio.to_thread(subprocess.run, script, capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr
    assert sim_text(64, 0) in ran.stdout
