"""The checker, on histories to be believed and to be refused; and a short run of the real thing."""

from __future__ import annotations

import json
from itertools import permutations

import pytest
from hypothesis import given, settings, strategies as st

from tests.memory.linear import __main__ as linearize, spec
from tests.memory.linear.check import Op, refused


def op(name, argument, result, called, ended, known=True):
    return Op(name, argument, result, called, ended, known)


def add(row, text, called, ended, event="ADD", known=True):
    return op("add", text, (event, row), called, ended, known)


def lost(name, argument, called, ended):
    """An operation whose process was killed."""
    return op(name, argument, None, called, ended, known=False)


def everything(pairs, called, ended):
    return op("get_all", None, [list(pair) for pair in pairs], called, ended)


BELIEVED = {
    "one after the other": [
        add("a", "red", 0, 1),
        op("update", ["a", "new"], None, 2, 3),
        op("get", "a", "new", 4, 5),
        op("delete", ["a", None], None, 6, 7),
        op("get", "a", None, 8, 9),
        op("delete", ["a", None], spec.NOT_FOUND, 10, 11),
    ],
    "a read beside a write sees it or not": [
        add("a", "red", 0, 10),
        op("get", "a", None, 1, 2),
        op("get", "a", "red", 3, 4),
    ],
    "of two equal adds one is first, whichever returned first": [
        add("a", "red", 0, 10, "NONE"),
        add("a", "red", 1, 12),
    ],
    "an add without an answer may have come": [
        lost("add", "red", 0, 5),
        everything([("a", "red")], 6, 7),
        add("a", "red", 8, 9, "NONE"),
    ],
    "an add without an answer may have failed": [
        lost("add", "red", 0, 5),
        everything([], 6, 7),
        add("b", "red", 8, 9),
    ],
    "reads without an answer say nothing": [
        add("a", "red", 0, 1),
        lost("get", "a", 2, 3),
        lost("search", "vector", 2, 3),
        everything([("a", "red")], 4, 5),
    ],
    "a delete without an answer came late": [
        add("a", "red", 0, 1),
        lost("delete", ["a", None], 2, 9),
        op("get", "a", "red", 3, 4),
        op("get", "a", None, 5, 6),
    ],
}
REFUSED = {
    "a lost update": [
        add("a", "red", 0, 1),
        op("update", ["a", "new"], None, 2, 3),
        op("get", "a", "red", 4, 5),
    ],
    "a read that goes back": [
        add("a", "red", 0, 1),
        op("update", ["a", "new"], None, 2, 10),
        op("get", "a", "new", 3, 4),
        op("get", "a", "red", 5, 6),
    ],
    "a memory that comes back": [
        add("a", "red", 0, 1),
        op("delete", ["a", None], None, 2, 3),
        everything([("a", "red")], 4, 5),
    ],
    "two equal adds that were both first": [add("a", "red", 0, 5), add("b", "red", 1, 6)],
    "a duplicate of nothing": [add("a", "red", 0, 1, "NONE")],
    "an acknowledged add that is gone": [add("a", "red", 0, 1), everything([], 2, 3)],
    "a delete of what is there that finds nothing": [
        add("a", "red", 0, 1),
        op("delete", ["a", None], spec.NOT_FOUND, 2, 3),
    ],
    "a list that was never true": [
        add("a", "red", 0, 1),
        # While it is read, another is added and then the first deleted.
        everything([], 2, 9),
        add("b", "blue", 3, 4),
        op("delete", ["a", None], None, 5, 6),
    ],
    "an effect after the death of its process": [
        add("a", "red", 0, 1),
        lost("delete", ["a", None], 2, 4),
        op("get", "a", "red", 5, 6),
        op("get", "a", None, 7, 8),
    ],
    "an update of a memory by half": [
        add("a", "red", 0, 1),
        lost("update", ["a", "new"], 2, 4),
        everything([("a", "red"), ("a", "new")], 5, 6),
    ],
}


@pytest.mark.parametrize("history", BELIEVED.values(), ids=BELIEVED)
def test_what_some_order_explains_is_believed(history):
    assert refused(history, spec.EMPTY, spec.step) is None


@pytest.mark.parametrize("history", REFUSED.values(), ids=REFUSED)
def test_what_no_order_explains_is_refused(history):
    assert refused(history, spec.EMPTY, spec.step) is not None


@st.composite
def histories(draw):
    """Give a few overlapping operations on one register, with answers drawn at random."""
    ops = []
    for number in range(draw(st.integers(1, 5))):
        called = draw(st.integers(0, 12))
        ended = called + draw(st.integers(1, 8))
        name = draw(st.sampled_from(("write", "read")))
        value = number if name == "write" else draw(st.integers(-1, 4))
        ops.append(op(name, value, value, called, ended, draw(st.booleans())))
    return ops


@settings(deadline=None)
@given(histories())
def test_it_agrees_with_trying_every_order(ops):
    assert (refused(ops, -1, _register) is None) == any(map(_explains, _orders(ops)))


def _register(state, one):
    if one.name == "write":
        yield one.argument
    elif not one.known or one.result == state:
        yield state


def _orders(ops):
    """Yield every order of every choice of operations that may have happened."""
    sure = [one for one in ops if one.known]
    maybe = [one for one in ops if not one.known]
    for chosen in range(2 ** len(maybe)):
        happened = sure + [one for at, one in enumerate(maybe) if chosen >> at & 1]
        yield from permutations(happened)


def _explains(order):
    state, latest = -1, -1
    for one in order:
        # Each takes effect after its call, after those before it, and not after its end. Two
        # events at one moment are in the order that lets both be: calls come first.
        latest = max(latest, one.called)
        states = list(_register(state, one))
        if latest > one.ended or not states:
            return False
        state = states[0]
    return True


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_memory_of_several_processes_is_linearizable(capsys):
    given = ["--operations", "200", "--processes", "2", "--kills", "2", "--users", "2", "--json"]
    code = linearize.main(given)
    told = json.loads(capsys.readouterr().out)
    assert code == 0, told
    assert told["operations"] >= 200 and told["kills"] + told["stops"] >= 1
