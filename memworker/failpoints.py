"""Named points at which a test ends, stops or fails this process on purpose.

``MEMWORKER_FAIL=after_add:kill@3`` kills the process with SIGKILL when it
passes the point `after_add` for the third time; several are parted by commas.
Actions: ``kill`` (SIGKILL), ``soon`` (SIGKILL 2 ms later, in the midst of what
follows), ``exit`` (status 70, no clean-up), ``pause`` (SIGSTOP, until SIGCONT),
``raise`` (Failpoint). With ``MEMWORKER_FAIL_ONCE=FILE`` only the process that
makes FILE acts, so that a worker's successor lives. With
``MEMWORKER_FAIL_LOG=FILE`` every act is first noted there, a line each.

Without the variable a point costs one test of an empty dictionary.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass

ACTIONS = ("kill", "soon", "exit", "pause", "raise")
EXIT_STATUS = 70
_SOON_S = 0.002


class Failpoint(RuntimeError):
    """Raised by the action ``raise``; not an error of memworker's own tree, as no bug is."""


@dataclass(slots=True)
class _Armed:
    act: Callable[[str], None]
    passings_left: int


def reach(name: str) -> None:
    """Pass the point `name`; acts when it is armed and its turn has come."""
    if not _armed:
        return
    point = _armed.get(name)
    if point is None:
        return
    point.passings_left -= 1
    if point.passings_left == 0 and _is_first():
        _note(name)
        point.act(name)


def write(name: str, descriptor: int, data: bytes) -> None:
    """Write all of `data`; where the point `name` is armed, it is passed in the midst of that."""
    if name in _armed:
        data = data[os.write(descriptor, data[: len(data) // 2]) :]
        reach(name)
    while data:
        data = data[os.write(descriptor, data) :]


def parse(given: str) -> dict[str, _Armed]:
    """Read ``name:action[@n],…``; raises ValueError for what it does not know."""
    points = {}
    for item in filter(None, given.split(",")):
        name, colon, rest = item.partition(":")
        action, _, passing = rest.partition("@")
        if not (name and colon and action in ACTIONS and (passing or "1").isdecimal()):
            raise ValueError(f"MEMWORKER_FAIL={item!r} is not NAME:{'|'.join(ACTIONS)}[@N]")
        points[name] = _Armed(_ACTS[action], int(passing or "1"))
    return points


def _is_first(environment: Mapping[str, str] = os.environ) -> bool:
    token = environment.get("MEMWORKER_FAIL_ONCE")
    if token is None:
        return True
    try:
        os.close(os.open(token, os.O_CREAT | os.O_EXCL, 0o600))
    except FileExistsError:
        return False
    return True


def _note(name: str, environment: Mapping[str, str] = os.environ) -> None:
    log = environment.get("MEMWORKER_FAIL_LOG")
    if log is None:
        return
    fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        os.write(fd, f"{os.getpid()} {name}\n".encode())
    finally:
        os.close(fd)


def _kill(_: str) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _kill_soon(_: str) -> None:
    threading.Timer(_SOON_S, os.kill, (os.getpid(), signal.SIGKILL)).start()


def _exit(_: str) -> None:
    os._exit(EXIT_STATUS)


def _pause(_: str) -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def _raise(name: str) -> None:
    raise Failpoint(f"failpoint {name!r}")


_ACTS = dict(zip(ACTIONS, (_kill, _kill_soon, _exit, _pause, _raise), strict=True))
_armed = parse(os.environ.get("MEMWORKER_FAIL", ""))
