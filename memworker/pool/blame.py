"""Whose fault it was that a worker ended, and what becomes of the work it held.

A worker's word about that is a hint and no more. What a shard is refused for in the
end rests on what the parent saw itself: a shard that was blamed is tried again in a
worker that has nothing else in hand, so whatever ends that worker is its own doing.
"""

from __future__ import annotations

from enum import Enum, auto

from memworker.pool.handle import Shard, WorkerHandle

_BEFORE_SPLIT = 2
_BEFORE_QUARANTINE = 3
_DOUBTS = 3


class Verdict(Enum):
    """What becomes of a shard whose worker ended."""

    AGAIN = auto()
    SPLIT = auto()
    QUARANTINE = auto()


def blamed(handle: WorkerHandle) -> set[int]:
    """Count a worker's end against the shards that it was at, and give their slots.

    Where it was at none, as it says, those that were next come under doubt: this
    cannot go on for ever either.
    """
    slots = handle.begun()
    if not slots:
        for index in handle.in_hand():
            shard = handle.slots[index].shard
            shard.doubts += 1
            if shard.doubts % _DOUBTS == 0:
                slots.add(index)
    for index in slots:
        handle.slots[index].shard.blames += 1
    return slots


def verdict(shard: Shard, *, blamed: bool, out_of_memory: bool) -> Verdict:
    """Decide what becomes of a shard that has come back."""
    # Half a shard needs less memory, so what ran out of it is halved at once.
    too_much = blamed and out_of_memory
    if shard.rows > 1 and (too_much or shard.blames >= _BEFORE_SPLIT):
        return Verdict.SPLIT
    return Verdict.QUARANTINE if shard.blames >= _BEFORE_QUARANTINE else Verdict.AGAIN
