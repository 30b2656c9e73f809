"""The mutations of the chaos suite still fit the code: run by hand, they would go stale unseen."""

from __future__ import annotations

import pytest

from chaos.schedule import KINDS, Kind, Profile
from tests.chaos.mutations import MUTATIONS, TREE, Mutation


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.rule.split(":")[0])
def test_a_mutation_finds_each_piece_that_it_replaces_once(mutation: Mutation) -> None:
    for file, old, new in mutation.changes:
        assert (TREE / file).read_text().count(old) == 1, (file, old)
        assert new != old


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.rule.split(":")[0])
def test_a_mutation_is_looked_for_under_faults_that_its_profile_has(mutation: Mutation) -> None:
    kinds = {Kind(name) for name in mutation.faults.split(",")}
    assert kinds <= set(KINDS[Profile(mutation.profile)])
