"""The preloaded library as Python sees it: built, told what to fail, and read afterwards."""

from __future__ import annotations

import ctypes
import mmap
import os
import shutil
import subprocess
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

SOURCE = Path(__file__).with_name("shim.c")
VARIABLE = "FAULTS_CONTROL"
LOG_ENTRIES = 16_384
# Of a longer path its end is noted.
PATH_BYTES = 231


class Kind(IntEnum):
    """Kinds of calls; `enum kind` of shim.c."""

    OPEN = 0
    # An open that may make a file.
    CREATE = 1
    WRITE = 2
    FSYNC = 3
    RENAME = 4
    LINK = 5
    UNLINK = 6
    MMAP = 7
    MKDIR = 8
    FLOCK = 9
    CLOSE = 10
    TRUNCATE = 11


class Action(IntEnum):
    """What becomes of the n-th call; `enum action` of shim.c."""

    COUNT = 0
    FAIL = 1
    KILL = 2
    # It is carried out, and an error is returned all the same.
    FAIL_DONE = 3
    # Half of a write is written, and that is what the caller is told.
    SHORT = 4
    # Half of a write is written, and then the process is killed.
    TEAR = 5


WENT_WELL = 0
WAS_KILLED = -1


class _Entry(ctypes.Structure):
    _fields_ = [
        ("kind", ctypes.c_int32),
        ("pid", ctypes.c_int32),
        ("outcome", ctypes.c_int32),
        ("injected", ctypes.c_int32),
        ("bytes", ctypes.c_int64),
        ("path", ctypes.c_char * (PATH_BYTES + 1)),
    ]


class _Control(ctypes.Structure):
    _fields_ = [
        ("armed", ctypes.c_uint32),
        ("traps", ctypes.c_uint32),
        ("kinds", ctypes.c_uint32),
        ("action", ctypes.c_uint32),
        ("error", ctypes.c_uint32),
        ("after", ctypes.c_uint32),
        ("after_kinds", ctypes.c_uint32),
        ("nth", ctypes.c_int64),
        ("seen", ctypes.c_int64),
        ("acted", ctypes.c_int64),
        ("logged", ctypes.c_int64),
        ("capacity", ctypes.c_int64),
        ("prefix", (ctypes.c_char * 256) * 4),
        ("filter", ctypes.c_char * 256),
        ("log", _Entry * LOG_ENTRIES),
    ]


@dataclass(frozen=True, slots=True)
class Called:
    """One call that was noted: its kind, path, who made it, and how it went."""

    kind: Kind
    path: str
    pid: int
    outcome: int
    injected: Action
    bytes: int


@dataclass(frozen=True, slots=True)
class Fault:
    """Which call fails, counted from 1 among those of `kinds` whose path has `where` in it.

    With `after`, so do all later ones of these kinds. `nth` 0 only counts.
    """

    kinds: tuple[Kind, ...]
    nth: int
    action: Action = Action.FAIL
    error: int = 0
    after: tuple[Kind, ...] = ()
    where: str = ""


NOTHING = Fault((), 0, Action.COUNT)


class Control:
    """The file that tells preloaded processes what to do, and in which they note their calls."""

    def __init__(self, path: Path, *, there: bool = False) -> None:
        self.path = path
        with path.open("r+b" if there else "w+b") as file:
            if not there:
                file.truncate(ctypes.sizeof(_Control))
            self._map = mmap.mmap(file.fileno(), 0)
        self._all = _Control.from_buffer(self._map)
        self._all.capacity = LOG_ENTRIES

    @classmethod
    def existing(cls, path: Path) -> Control:
        """Map the one that another process has made."""
        return cls(path, there=True)

    def prepare(self, fault: Fault, prefixes: tuple[str, ...]) -> None:
        """Say what shall be done once `arm` is called; forget what was counted."""
        told = self._all
        told.armed = 0
        for place in range(len(told.prefix)):
            told.prefix[place].value = prefixes[place].encode() if place < len(prefixes) else b""
        told.filter = fault.where.encode()
        told.kinds, told.after_kinds = _mask(fault.kinds), _mask(fault.after)
        told.after = bool(fault.after)
        told.action, told.error, told.nth = fault.action, fault.error, fault.nth
        told.seen = told.acted = told.logged = 0

    def arm(self) -> None:
        self._all.armed = 1

    def disarm(self) -> None:
        self._all.armed = 0

    @property
    def acted(self) -> int:
        """How many calls were failed."""
        return self._all.acted

    @property
    def sees_all(self) -> bool:
        """Whether renames without libc, as those of Rust, are seen too: seccomp is there."""
        return bool(self._all.traps)

    def calls(self) -> Iterator[Called]:
        """Give the calls that were noted, in their order."""
        logged = min(self._all.logged, LOG_ENTRIES)
        for entry in self._all.log[:logged]:
            yield Called(
                Kind(entry.kind),
                os.fsdecode(entry.path),
                entry.pid,
                entry.outcome,
                Action(entry.injected),
                entry.bytes,
            )

    def environment(self, library: Path) -> dict[str, str]:
        """Return the variables under which a process obeys."""
        return {"LD_PRELOAD": str(library), VARIABLE: str(self.path)}


def compiler() -> str | None:
    """Return the machine's C compiler, if there is one."""
    named = (sysconfig.get_config_var("CC") or "").split()
    return next(filter(None, map(shutil.which, [*named[:1], "cc", "gcc", "clang"])), None)


def build(folder: Path) -> Path:
    """Compile the library; raises CalledProcessError with the compiler's words."""
    library = folder / "shim.so"
    flags = ["-O2", "-shared", "-fPIC"]
    command = [compiler() or "cc", *flags, "-o", str(library), str(SOURCE), "-ldl"]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return library


def _mask(kinds: tuple[Kind, ...]) -> int:
    return sum(1 << kind for kind in kinds)
