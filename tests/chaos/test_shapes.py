"""What the chaos suite asks for is the same for the same seed, is something a server takes, and is of every shape."""

from __future__ import annotations

import json
import random
from collections import Counter

import httpx
import pytest

from api.submit import validate
from broker.settings import Settings
from chaos.shapes import DEAD, Draft, Shape, draft
from chaos.toolbox import Toolbox, said_by

TEXTS = [({"tokens": 3, "seed": 1}, "Some text.")]
SETTINGS = Settings(providers=("sim", DEAD), openai_compatible={DEAD: {"base_url": "http://127.0.0.1:1"}})


def drafts(seed: int, *, shapes: tuple[Shape, ...] = tuple(Shape)) -> list[Draft]:
    draw = random.Random(seed)
    return [draft(draw, number, TEXTS, shapes) for number in range(300)]


def test_the_same_seed_asks_for_the_same_jobs() -> None:
    assert drafts(3) == drafts(3)
    assert drafts(3) != drafts(4)


def test_every_shape_comes_up_often() -> None:
    counted = Counter(each.shape for each in drafts(1))
    assert set(counted) == set(Shape)
    assert min(counted.values()) >= 15


@pytest.mark.parametrize("seed", [1, 2])
def test_every_job_is_one_that_a_server_takes(seed: int) -> None:
    for each in drafts(seed):
        validate(each.body, SETTINGS)


def test_a_stack_that_only_has_the_sim_provider_is_asked_for_nothing_else() -> None:
    shapes = tuple(shape for shape in Shape if not shape.needs_the_deployment)
    alone = Settings(providers=("sim",))
    for each in drafts(5, shapes=shapes):
        validate(each.body, alone)


async def test_a_tool_that_ran_twice_is_told_only_where_it_may_not() -> None:
    toolbox = await Toolbox.start()
    url = json.loads(toolbox.declared)["echo"]["url"].removesuffix("echo")
    try:
        async with httpx.AsyncClient(trust_env=False) as client:
            for tool, times in (("echo", 2), ("once", 1)):
                for _ in range(times):
                    headers = {"Idempotency-Key": f"gen_1:{tool}"}
                    said = await client.post(url + tool, json={"say": "x", "seconds": 0}, headers=headers)
                    assert said.text == said_by(tool, "x")
            assert toolbox.ran_twice() == []
            await client.post(url + "once", json={"say": "x", "seconds": 0}, headers={"Idempotency-Key": "gen_1:once"})
            assert toolbox.ran_twice() == [("gen_1", "once")]
    finally:
        await toolbox.aclose()
