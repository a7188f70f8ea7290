"""Commits that succeed and then raise, or fail, at random: nothing twice, nothing lost."""

from __future__ import annotations

import pytest

from tests.store import unknown


@pytest.mark.parametrize("first", range(0, 40, 10))
def test_a_write_that_raises_is_known_by_looking(tmp_path, first):
    assert sum(unknown.run(seed, tmp_path) for seed in range(first, first + 10)) > 5
