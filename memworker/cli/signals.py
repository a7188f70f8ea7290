"""What Ctrl-C and its like do: first drain, then stop now; never wait for ever.

::

    first signal, a job is listening   ─► its `Stop` is set: it drains and commits
    first signal, nothing to drain     ─► Interrupted is raised
    second signal, or no end in sight  ─► the process ends at once

Ending at once is safe: workers end when their parent is gone, the system
frees the locks, and the next run finds what was committed.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType
from typing import NoReturn

from memworker.ingestion import Stop

# Beyond the job's own grace: time for its last commit, and for the workers to end.
LAST_RESORT_S = 20.0
# GNU timeout signals its child and then its group, which is twice within a millisecond.
_ECHO_S = 0.1
_SHOW_CURSOR = b"\x1b[?25h"


class Interrupted(BaseException):
    """A signal asked the command to end; not an Exception, so that nothing swallows it."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.exit_code = 128 + number


@dataclass(slots=True)
class _Received:
    """The process's signals: handlers are its own as a whole, so this is too."""

    stop: Stop | None = None
    number: int = 0
    at: float = 0.0


_received = _Received()


def install() -> None:
    """Answer Ctrl-C, SIGTERM, and SIGHUP unless it is ignored, as under nohup."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _on_signal)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        signal.signal(signal.SIGHUP, _on_signal)
    signal.signal(signal.SIGALRM, _on_alarm)


@contextmanager
def drained() -> Iterator[Stop]:
    """Give the `Stop` that the first signal sets while a job listens to it."""
    _received.stop = Stop()
    try:
        yield _received.stop
    finally:
        _received.stop = None


def received() -> int:
    """Return the number of the first signal that came, 0 if none did."""
    return _received.number


def _on_signal(number: int, _: FrameType | None) -> None:
    if _received.number:
        if number != signal.SIGHUP and time.monotonic() - _received.at > _ECHO_S:
            _end_now(number)
        return
    _received.number, _received.at = number, time.monotonic()
    stop = _received.stop
    draining = stop is not None and stop.heard
    grace_s = stop.grace_s if stop is not None and draining else 0.0
    signal.setitimer(signal.ITIMER_REAL, grace_s + LAST_RESORT_S)
    if stop is None or not draining:
        raise Interrupted(number)
    _say(b"finishing what is in flight and committing it; once more to stop at once")
    stop.set()


def _on_alarm(_: int, __: FrameType | None) -> None:
    _end_now(_received.number)


def _end_now(number: int) -> NoReturn:
    _say(b"stopped at once; what was committed is safe. Run the same command again to go on.")
    os._exit(128 + number)


def _say(message: bytes) -> None:
    # Straight to the descriptor: a handler may have interrupted a write to sys.stderr.
    with suppress(OSError):
        cursor = _SHOW_CURSOR if os.isatty(2) else b""
        os.write(2, cursor + b"memworker: " + message + b"\n")
