"""A seed is a schedule: the same one, always, and one in which every kind has its turn."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest

from chaos.schedule import KINDS, Kind, Profile, plan

#: As long as the runs of which each profile must show every kind ten times, over three seeds.
LONG_SECONDS = 10 * 60


@pytest.mark.parametrize("profile", Profile)
def test_the_same_seed_gives_the_same_schedule(profile: Profile) -> None:
    assert plan(7, profile, 300) == plan(7, profile, 300)


@pytest.mark.parametrize("profile", Profile)
def test_a_shorter_run_is_the_beginning_of_a_longer_one(profile: Profile) -> None:
    short, long = plan(7, profile, 60), plan(7, profile, 300)
    assert short == long[: len(short)]


def test_another_seed_or_profile_gives_another_schedule() -> None:
    plans = [plan(seed, profile, 120) for seed in (1, 2) for profile in Profile]
    assert all(one != other for at, one in enumerate(plans) for other in plans[at + 1 :])


@pytest.mark.parametrize("profile", Profile)
def test_every_kind_of_a_profile_has_its_turn(profile: Profile) -> None:
    counted = Counter(fault.kind for fault in plan(1, profile, LONG_SECONDS))
    assert set(counted) == set(KINDS[profile])
    assert min(counted.values()) >= 3


@pytest.mark.parametrize("seeds", [(1, 2, 3), (11, 12, 13), (31, 41, 51)])
def test_half_an_hour_over_three_seeds_has_every_kind_often(seeds: tuple[int, ...]) -> None:
    """Eleven minutes a seed, shared by the profiles: some more than the ten of each that a proof wants, for a fault
    may turn out to be impossible when its time comes."""
    ours = [profile for profile in Profile if profile.is_ours]
    counted = Counter(
        fault.kind for seed in seeds for profile in ours for fault in plan(seed, profile, 11 * 60 / len(ours))
    )
    assert set(counted) == set(Kind)
    assert min(counted.values()) >= 12, counted


def test_some_profile_has_every_kind() -> None:
    assert {kind for kinds in KINDS.values() for kind in kinds} == set(Kind)


@pytest.mark.parametrize("profile", Profile)
def test_faults_of_the_store_never_overlap(profile: Profile) -> None:
    """Of two that do, nobody could say which one lost what."""
    faults = [fault for fault in plan(3, profile, LONG_SECONDS) if fault.kind.loses_data]
    for one, other in pairwise(faults):
        assert one.at + one.seconds < other.at


def test_faults_come_in_order_and_within_the_time() -> None:
    faults = plan(5, Profile.SINGLE, 120)
    times = [fault.at for fault in faults]
    assert times == sorted(times)
    assert times[-1] < 120


def test_a_run_may_be_limited_to_some_kinds() -> None:
    faults = plan(5, Profile.SINGLE, 60, kinds=(Kind.FLUSHALL, Kind.WORKER_KILL))
    assert {fault.kind for fault in faults} == {Kind.FLUSHALL, Kind.WORKER_KILL}
