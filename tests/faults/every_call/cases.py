"""Which call fails, and how: a case, and all the cases that a count of calls gives."""

from __future__ import annotations

import errno
import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from tests.faults.every_call.shim import NOTHING, Action, Called, Fault, Kind

ALL = tuple(Kind)
# What takes room on a disk, and fails where there is none.
TAKES_ROOM = (Kind.CREATE, Kind.WRITE, Kind.MKDIR, Kind.RENAME, Kind.LINK, Kind.TRUNCATE)
# No system says of the others that there is no room.
NO_ROOM = (*TAKES_ROOM, Kind.FSYNC, Kind.CLOSE, Kind.UNLINK)
CHANGES_NAMES = (Kind.RENAME, Kind.LINK, Kind.UNLINK, Kind.MKDIR)


@dataclass(frozen=True, slots=True)
class Mode:
    """How calls fail. `ongoing`: all those of the kind that follow, too."""

    action: Action
    error: int = 0
    ongoing: bool = False
    kinds: tuple[Kind, ...] = ALL


MODES = {
    "eio": Mode(Action.FAIL, errno.EIO),
    "eio-on": Mode(Action.FAIL, errno.EIO, ongoing=True),
    "enospc": Mode(Action.FAIL, errno.ENOSPC, kinds=NO_ROOM),
    "enospc-on": Mode(Action.FAIL, errno.ENOSPC, ongoing=True, kinds=NO_ROOM),
    "kill": Mode(Action.KILL),
    # It was done, but its caller is told that it failed.
    "done-eio": Mode(Action.FAIL_DONE, errno.EIO, kinds=(*CHANGES_NAMES, Kind.WRITE)),
    # The disk is full in the midst of a write.
    "short-enospc-on": Mode(Action.SHORT, errno.ENOSPC, ongoing=True, kinds=(Kind.WRITE,)),
    "torn-kill": Mode(Action.TEAR, kinds=(Kind.WRITE,)),
}
# What can happen to any call comes before what happens to some kinds only.
_FIRST = ("eio", "kill", "eio-on", "enospc-on", "enospc")

# Any call, whatever its kind: from the n-th on the disk is gone, or full.
ANY = "any"
DISK = {
    "gone": Mode(Action.FAIL, errno.EIO, ongoing=True),
    "full": Mode(Action.FAIL, errno.ENOSPC, ongoing=True, kinds=TAKES_ROOM),
}


@dataclass(frozen=True, slots=True)
class Case:
    """One run: the n-th call of a kind fails in a mode; `where` narrows to paths that have it."""

    scenario: str
    kind: str
    nth: int
    mode: str
    where: str = ""

    @property
    def name(self) -> str:
        where = f"~{self.where}" if self.where else ""
        return f"{self.scenario}:{self.kind}{where}@{self.nth}:{self.mode}"

    @classmethod
    def of(cls, name: str) -> Case:
        """Read a case's name."""
        scenario, site, mode = name.split(":")
        call, _, nth = site.partition("@")
        kind, _, where = call.partition("~")
        return cls(scenario, kind, int(nth), mode, where)

    @property
    def fault(self) -> Fault:
        if not self.nth:
            return NOTHING
        if self.kind == ANY:
            mode = DISK[self.mode]
            kinds = mode.kinds
        else:
            mode, kinds = MODES[self.mode], (Kind[self.kind.upper()],)
        after = kinds if mode.ongoing else ()
        return Fault(kinds, self.nth, mode.action, mode.error, after, self.where)

    @property
    def messy(self) -> bool:
        """Whether files may be left behind: what would have removed them fails, or ends."""
        mode = DISK[self.mode] if self.kind == ANY else MODES[self.mode]
        return self.kind in ("unlink", ANY) or mode.action in (Action.KILL, Action.TEAR)

    @property
    def ongoing(self) -> bool:
        """Whether more calls than one fail."""
        return (DISK[self.mode] if self.kind == ANY else MODES[self.mode]).ongoing


def sites(scenario: str, calls: Iterable[Called]) -> Iterator[Case]:
    """Give every case that these calls allow: each of them, in each mode that it can have."""
    counted = Counter(call.kind for call in calls)
    for kind, count in sorted(counted.items()):
        for name, mode in MODES.items():
            if kind in mode.kinds:
                for nth in range(1, count + 1):
                    yield Case(scenario, kind.name.lower(), nth, name)
    for name, mode in DISK.items():
        for nth in range(1, sum(counted[kind] for kind in mode.kinds) + 1):
            yield Case(scenario, ANY, nth, name)


Placed = tuple[tuple[bool, int, int, float], Case]
"""A case, and before it what it is sorted by: see `Novelty.placed`."""


class Novelty:
    """Says which calls are like none before, so that they are failed first."""

    def __init__(self) -> None:
        self._likes: dict[str, set[object]] = defaultdict(set)

    def placed(
        self, scenario: str, calls: Sequence[Called], mixed: random.Random
    ) -> Iterator[Placed]:
        """Give each case of a scenario with its place.

        A call that is like no earlier one goes first, in every mode. Of the others each is
        failed once, before any is failed in a second mode; and earlier that which is like an
        earlier one and follows another call than that did, than what repeats these. What a
        durable scenario has in common with the other of its name is no news.
        """
        seen = self._likes[scenario.removesuffix("-durable")]
        ranked = list(_ranks(calls, seen))
        ranks = {ANY + name: _of(ranked, mode.kinds) for name, mode in DISK.items()}
        ranks |= {kind.name.lower(): _of(ranked, (kind,)) for kind in ALL}
        for case in sites(scenario, calls):
            rank = ranks[case.kind + (case.mode if case.kind == ANY else "")][case.nth - 1]
            late = _FIRST.index(case.mode) if case.mode in _FIRST else len(_FIRST)
            yield (rank > 0, late, rank, mixed.random()), case


def _ranks(calls: Iterable[Called], seen: set[object]) -> Iterator[tuple[Kind, int]]:
    """Rank each call: 0 its like was not there before, 1 not there after such a one."""
    before = None
    for call in calls:
        like = (call.kind, _shape(call.path))
        pair = (before, like)
        yield call.kind, 2 if pair in seen else 1 if like in seen else 0
        seen |= {like, pair}
        before = like


def _of(ranked: list[tuple[Kind, int]], kinds: tuple[Kind, ...]) -> list[int]:
    return [rank for kind, rank in ranked if kind in kinds]


def _shape(path: str) -> str:
    """Return what names of one sort have in common: neither numbers nor what is drawn by lot."""
    inside = path.rpartition("/watched/")[2]
    return re.sub(r"\.tmp\w{6}$|[0-9a-f]{8,}(-[0-9a-f]+)*|\d+", "*", inside)
