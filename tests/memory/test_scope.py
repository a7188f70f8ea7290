"""Whose memories: what counts as saying so."""

from __future__ import annotations

import pytest

from memworker.errors import FilterError, ScopeMissing, UsageError
from memworker.memory.scope import Scope, scoped


@pytest.mark.parametrize(
    "filters",
    [
        {"user_id": "a"},
        {"agent_id": {"eq": "a"}},
        {"run_id": {"in": ["a", "b"]}},
        {"user_id": {"eq": "a", "ne": "b"}, "n": 1},
        {"AND": [{"n": 1}, {"user_id": "a"}]},
        {"AND": [{"AND": [{"run_id": "a"}]}], "OR": [{"n": 1}, {"n": 2}]},
    ],
)
def test_bound(filters):
    assert scoped(filters) is filters


@pytest.mark.parametrize(
    "filters",
    [
        None,
        {},
        {"n": 1},
        {"user_id": ""},
        {"user_id": " "},
        {"user_id": None},
        {"user_id": {"ne": "a"}},
        {"user_id": {"contains": "a"}},
        {"user_id": {"in": []}},
        {"user_id": {"in": ["a", ""]}},
        {"user_id": {"in": "abc"}},
        {"metadata.user_id": "a"},
        {"OR": [{"user_id": "a"}, {"n": 1}]},
        {"NOT": {"user_id": "a"}},
        {"AND": [{"NOT": [{"user_id": "a"}]}]},
    ],
)
def test_not_bound(memory, filters):
    with pytest.raises(ScopeMissing, match="filters={'user_id': 'alice'}"):
        memory.search("x", filters=filters)
    with pytest.raises(ScopeMissing):
        memory.get_all(filters=filters)


def test_filters_are_a_mapping():
    with pytest.raises(FilterError):
        scoped("user_id=a")


def test_count_alone_needs_none(memory):
    assert memory.count() == memory.count({"n": 1}) == 0


@pytest.mark.parametrize("bad", ["", "  ", 7, "\ud800"])
def test_a_bad_id_is_refused(bad):
    with pytest.raises(UsageError, match="agent_id"):
        Scope.of(None, bad, None)


def test_adding_needs_one(memory):
    with pytest.raises(ScopeMissing, match="user_id='alice'"):
        memory.add("x")
    with pytest.raises(ScopeMissing):
        memory.add_batch(["x"])
