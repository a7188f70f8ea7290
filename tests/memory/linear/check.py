"""Whether a history of concurrent operations could have come from one operation at a time.

Wing and Gong's question, answered a key at a time and in the order of the events, as Lowe
does it: a set of *configurations* is kept, each a state of the object and which of the
pending operations have taken effect in it. When an operation returns, those
configurations stay in which it has taken effect, at once or after some of the other pending
ones; none is left if the history cannot be explained. With few operations at a time there
are few configurations, so the work grows with the length of a history and not exponentially.

An operation whose outcome nobody knows, as its process was killed or it failed without saying,
may have taken effect at any moment between its call and that end, or not at all.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

State = Hashable
Step = Callable[[Any, "Op"], Iterable[Any]]
"""Given a state and an operation: the states in which it may leave it, seen its result."""


@dataclass(frozen=True, slots=True)
class Op:
    """One operation: called and ended at these times; `result` tells what it was answered.

    With `known` False the result means nothing, and the operation may not have happened.
    """

    name: str
    argument: Any
    result: Any
    called: int
    ended: int
    known: bool = True


@dataclass(frozen=True, slots=True)
class Refused:
    """What could not be explained: an operation, and the states that there were before it."""

    op: Op
    states: tuple[State, ...]
    pending: tuple[Op, ...]


_Config = tuple[State, frozenset[int]]


def refused(history: Sequence[Op], initial: State, step: Step) -> Refused | None:
    """Return the first operation that no order explains; None for a linearizable history."""
    pending: dict[int, Op] = {}
    configs: set[_Config] = {(initial, frozenset())}
    for place, returns in _events(history):
        op = history[place]
        if not returns:
            pending[place] = op
            continue
        reached = _with(place, configs, pending, step)
        kept = {(state, done - {place}) for state, done in reached}
        if not op.known:
            kept |= {config for config in configs if place not in config[1]}
        if not kept:
            states = tuple({state for state, _ in configs})
            return Refused(op, states, tuple(pending.values()))
        del pending[place]
        configs = kept
    return None


def _events(history: Sequence[Op]) -> Iterator[tuple[int, bool]]:
    """Yield (place, whether it returns) in the order of time; at the same moment calls first."""
    calls = ((op.called, False, place) for place, op in enumerate(history))
    ends = ((op.ended, True, place) for place, op in enumerate(history))
    for _, returns, place in sorted([*calls, *ends]):
        yield place, returns


def _with(place: int, configs: set[_Config], pending: dict[int, Op], step: Step) -> set[_Config]:
    """Return the configurations in which an operation has taken effect, and no other since."""
    reached: set[_Config] = set()
    seen = set(configs)
    waiting = list(configs)
    while waiting:
        state, done = waiting.pop()
        if place in done:
            reached.add((state, done))
            continue
        for other, op in pending.items():
            if other in done:
                continue
            for after in step(state, op):
                config = (after, done | {other})
                if config not in seen:
                    seen.add(config)
                    waiting.append(config)
    return reached
