"""Which call fails, and how: a case, and all the cases that a count of calls gives."""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Iterable, Iterator
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
