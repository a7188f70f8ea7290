"""A process as others can recognise it, and the proof that it is gone."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Process:
    """Which process, and where its pid means something.

    `realm` is one run of one kernel, and in it one name space of pids: containers and
    machines differ in it, and so does a machine from itself after a reboot. `started`
    tells a process from a later one of the same pid. Both are empty where unknown.
    """

    pid: int
    host: str = ""
    realm: str = ""
    started: str = ""

    @classmethod
    def current(cls) -> Process:
        """Return this process."""
        pid = os.getpid()
        return cls(pid, host(), _realm(pid), _started(pid) or "")

    @property
    def is_local(self) -> bool:
        """Whether it runs, or ran, where this process can look for it."""
        return bool(self.realm and self.started) and self.realm == _realm(os.getpid())

    @property
    def is_gone(self) -> bool:
        """Whether it is known to have ended; False also where that cannot be known."""
        return self.is_local and _started(self.pid) != self.started

    def __str__(self) -> str:
        there = self.host and self.host != host()
        return f"process {self.pid} on {self.host}" if there else f"process {self.pid}"


@lru_cache(maxsize=1)
def host() -> str:
    """Return this machine's name, for messages."""
    return socket.gethostname()


@lru_cache(maxsize=1)
def _realm(_pid: int) -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        # Elsewhere a start time is one of the calendar, so that a reboot needs no telling apart.
        return "" if os.path.isdir("/proc/self") else host()


def _started(pid: int) -> str | None:
    """Return when a process was started, in its system's own measure; None when it is gone."""
    try:
        # The second field is the command's name, which may hold blanks and brackets.
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        # A zombie holds nothing any more.
        return None if fields[0] in "ZX" else fields[19]
    except FileNotFoundError:
        return None if os.path.isdir("/proc/self") else _started_elsewhere(pid)
    except OSError:
        # Gone between opening and reading.
        return None


def _started_elsewhere(pid: int) -> str | None:
    import psutil

    try:
        return repr(psutil.Process(pid).create_time())
    except psutil.Error:
        return None
