"""A few hundred simulated schedules; `scripts/simulate` runs as many as there is time for."""

from __future__ import annotations

import pytest

from tests.sim.mutations import MUTATIONS, ROOT
from tests.sim.schedule import run


@pytest.mark.parametrize("first", range(0, 600, 100))
def test_every_request_ends_once_and_rightly_whatever_workers_do(first):
    ends = [run(seed).ends for seed in range(first, first + 100)]
    assert sum(each.get("vectors", 0) for each in ends) > 100


def test_a_seed_replays_its_run():
    first, again = run(7, replay=True), run(7, replay=True)
    assert first.notes and first.notes == again.notes
    assert first.ends == again.ends


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda each: each.rule)
def test_the_rules_that_mutations_break_stand_where_they_say(mutation):
    """That the simulation finds them is seen by `scripts/simulate --mutations`."""
    assert mutation.broken(ROOT) != (ROOT / "memworker" / mutation.file).read_text()


@pytest.mark.parametrize("seed", [909_683, 5_012_809, 5_048_453])
def test_seeds_under_which_a_worker_that_was_well_was_once_ended(seed):
    """The pool's process, or its thread, stood still up to where a deadline was."""
    assert run(seed).ends
