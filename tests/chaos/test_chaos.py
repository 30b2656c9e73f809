"""A short run of the chaos suite under fixed seeds: real processes, real faults, and no character lost or repeated.

`legato chaos` does the same for as long as one likes, with every fault and every shape of store.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from chaos.report import table
from chaos.run import Result, run
from chaos.schedule import Kind, Profile

#: Under seed 1 each kind of either test comes up within this time.
SECONDS = 15.0
USERS = 5


async def survived(profile: Profile, kinds: tuple[Kind, ...], directory: Path) -> Result:
    result = await run(profile, seed=1, seconds=SECONDS, users=USERS, kinds=kinds, directory=directory)
    print(table(result))
    assert not result.verdict.violations, table(result)
    assert not [done for done in result.done if done.problem], table(result)
    assert result.verdict.texts > USERS
    return result


@pytest.mark.timeout(300)
async def test_no_character_is_lost_when_processes_paths_and_the_store_fail(tmp_path: Path) -> None:
    kinds = (Kind.WORKER_KILL, Kind.VIEWERS_CUT_AT, Kind.STORE_CUT_AT, Kind.STORE_KILL, Kind.API_TERM, Kind.STORE_HELD)
    result = await survived(Profile.SINGLE, kinds, tmp_path)
    assert set(result.faults) == {kind.value for kind in kinds}


@pytest.mark.timeout(300)
async def test_no_character_is_lost_when_a_cluster_moves_slots_and_workers_pause(tmp_path: Path) -> None:
    kinds = (Kind.RESHARD, Kind.WORKER_PAUSE, Kind.STORE_CUT, Kind.SCRIPT_FLUSH, Kind.VIEWERS_CUT, Kind.WORKER_TERM)
    result = await survived(Profile.CLUSTER, kinds, tmp_path)
    assert set(result.faults) == {kind.value for kind in kinds}
