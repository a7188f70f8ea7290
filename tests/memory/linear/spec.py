"""What one user's memories are, one operation at a time: the specification that Memory is held to.

A state is the live memories of one user: pairs of id and text, sorted. Texts of `add` come
from a small set, so that equal ones meet; those of `update` are new each time.
"""

from __future__ import annotations

from collections.abc import Iterator

from tests.memory.linear.check import Op

State = tuple[tuple[str, str], ...]

EMPTY: State = ()
NOT_FOUND = "not found"
# The id of a memory whose `add` did not return, until somebody reads it.
_UNNAMED = "?"


def step(state: State, op: Op) -> Iterator[State]:
    """Yield the states after an operation; nothing where its result cannot be."""
    if op.name == "add":
        yield from _add(state, op)
    elif op.name in ("update", "delete"):
        yield from _change(state, op)
    elif op.name == "get":
        yield from _get(state, op)
    elif op.name == "count":
        if not op.known or op.result == len(state):
            yield state
    elif op.known:
        yield from _all(state, op.result)
    else:
        yield state


def _add(state: State, op: Op) -> Iterator[State]:
    """Result: (event, id)."""
    text = op.argument
    there = [row for row, said in state if said == text]
    if not op.known:
        yield state if there else _sorted([*state, (_UNNAMED, text)])
        return
    event, row = op.result
    if event == "ADD" and not there:
        yield _sorted([*state, (row, text)])
    if event == "NONE" and there:
        yield from _named(state, row, text)


def _change(state: State, op: Op) -> Iterator[State]:
    """Argument: (id, new text or None). Result: None, or NOT_FOUND."""
    row, text = op.argument
    memories = dict(state)
    there = row in memories
    if not op.known or op.result is None:
        # Of a memory without a name nobody can know the id.
        if there:
            rest = [pair for pair in state if pair[0] != row]
            yield _sorted(rest if text is None else [*rest, (row, text)])
    elif not there:
        yield state


def _get(state: State, op: Op) -> Iterator[State]:
    """Result: the text, or None."""
    if not op.known or dict(state).get(op.argument) == op.result:
        yield state


def _all(state: State, result: list[list[str]]) -> Iterator[State]:
    """Result: all pairs of id and text."""
    seen = _sorted([(row, text) for row, text in result])
    unnamed = [pair for pair in state if pair[0] == _UNNAMED]
    named = [pair for pair in state if pair[0] != _UNNAMED]
    rest = [pair for pair in seen if pair not in named]
    # Their texts tell which is which: of an added text there is one at most.
    if len(seen) == len(state) and sorted(t for _, t in rest) == sorted(t for _, t in unnamed):
        yield seen


def _named(state: State, row: str, text: str) -> Iterator[State]:
    """Yield the state where the memory of a text has this id, which may come out only now."""
    if (row, text) in state:
        yield state
    elif (_UNNAMED, text) in state and row not in dict(state):
        rest = [pair for pair in state if pair != (_UNNAMED, text)]
        yield _sorted([*rest, (row, text)])


def _sorted(pairs: list[tuple[str, str]]) -> State:
    return tuple(sorted(pairs))
