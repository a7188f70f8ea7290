"""What the pool asks of the system: the time, waiting, and worker processes.

All of it passes this one door, and nothing else of the pool does, so that a
simulation can stand behind it: a clock that does not run by itself, workers that
do whatever a seed tells them to.
"""

from __future__ import annotations

import os
import selectors
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol

from multiprocess import Pipe, connection

from memworker.pool import spawn, worker
from memworker.pool.arena import Region

_LINUX = sys.platform == "linux"
_CPUCLOCK_SCHED = 2
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096


class Channel(Protocol):
    """Our end of a worker's pipe. Nothing here waits: there is BlockingIOError instead."""

    def read(self, most: int) -> bytes:
        """Give what has come, `most` bytes at the most; nothing means that no more will."""

    def write(self, data: bytes) -> None:
        """Send all of `data`, or raise an OSError."""


class Child(Protocol):
    """A worker's process. `sentinel` can be waited for, as `channel` can: it has ended."""

    @property
    def pid(self) -> int: ...
    @property
    def channel(self) -> Channel: ...
    @property
    def sentinel(self) -> Any: ...
    @property
    def exit_code(self) -> int | None: ...
    def terminate(self) -> None: ...
    def kill(self) -> None: ...
    def ended(self, wait_s: float) -> bool:
        """Tell whether it has ended, waiting for that a while."""

    def close(self) -> None:
        """Release what the system holds of a process that has ended, and its channel."""


class Selector(Protocol):
    """`selectors.BaseSelector`, as far as it is used."""

    def register(self, fileobj: Any, events: int, data: Any) -> Any: ...
    def unregister(self, fileobj: Any) -> Any: ...
    def select(self, timeout: float | None) -> list[tuple[Any, int]]: ...
    def close(self) -> None: ...


class Alarm(Protocol):
    """Wakes the thread that waits for it in a selector; `ring` may come from any other."""

    def ring(self) -> None: ...
    def clear(self) -> None: ...
    def close(self) -> None: ...


class Outside(Protocol):
    """The system."""

    def monotonic(self) -> float: ...
    def selector(self) -> Selector: ...
    def alarm(self) -> Alarm: ...
    def thread(self, run: Callable[[], None], name: str) -> threading.Thread:
        """Make a thread that Ctrl-C is no concern of; it is not started."""

    def start_worker(self, number: int, region: Region, loader: worker.Loader) -> Child:
        """Start a worker's process; raises OSError."""

    def resident_bytes(self, pid: int) -> int:
        """Give what memory a process holds; 0 where that is not to be known."""

    def stopped(self, pid: int) -> bool:
        """Tell whether a signal has stopped a process; False where that is not to be known."""

    def cpu_s(self, pid: int) -> float | None:
        """Give the processor time of a process; None where that is not to be known."""


class System:
    """The system as it is."""

    def monotonic(self) -> float:
        return time.monotonic()

    def selector(self) -> Selector:
        return selectors.DefaultSelector()

    def alarm(self) -> Alarm:
        return _WakeUpPipe()

    def thread(self, run: Callable[[], None], name: str) -> threading.Thread:
        return threading.Thread(target=_undisturbed, args=(run,), name=name, daemon=True)

    def start_worker(self, number: int, region: Region, loader: worker.Loader) -> Child:
        ours, theirs = Pipe(duplex=True)
        try:
            args = (theirs, region, loader)
            process = spawn.start(
                worker.main, args, name=f"memworker-{number}", channel=theirs.fileno()
            )
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        return _ChildProcess(process, _PipeEnd(ours))

    def resident_bytes(self, pid: int) -> int:
        try:
            with open(f"/proc/{pid}/statm") as file:
                return int(file.read().split()[1]) * _PAGE_BYTES
        except (OSError, ValueError, IndexError):
            return 0  # no procfs, or gone: then there is no drift to see

    def stopped(self, pid: int) -> bool:
        try:
            with open(f"/proc/{pid}/stat") as file:
                # Behind the command's name, which may hold anything. A debugger's stop is another.
                return file.read().rpartition(")")[2].split()[0] == "T"
        except (OSError, ValueError, IndexError):
            return False

    def cpu_s(self, pid: int) -> float | None:
        try:
            # The clock of another process, as clock_getcpuclockid(3) makes its number: 1 µs.
            return time.clock_gettime(~pid << 3 | _CPUCLOCK_SCHED) if _LINUX else None
        except (OSError, OverflowError):
            return None


def _undisturbed(run: Callable[[], None]) -> None:
    # Processes inherit this mask: a Ctrl-C during a worker's start must not end it.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    run()


class _WakeUpPipe:
    def __init__(self) -> None:
        self._reads, self._writes = os.pipe()
        os.set_blocking(self._reads, False)
        os.set_blocking(self._writes, False)

    def fileno(self) -> int:
        return self._reads

    def ring(self) -> None:
        try:
            os.write(self._writes, b"\0")
        except BlockingIOError:
            pass  # the pipe is full, so a wake-up is on its way

    def clear(self) -> None:
        try:
            os.read(self._reads, 4096)
        except BlockingIOError:
            pass

    def close(self) -> None:
        os.close(self._reads)
        os.close(self._writes)


class _PipeEnd:
    def __init__(self, ours: Any) -> None:
        self._ours = ours
        os.set_blocking(ours.fileno(), False)

    def fileno(self) -> int:
        number: int = self._ours.fileno()
        return number

    def read(self, most: int) -> bytes:
        return os.read(self.fileno(), most)

    def write(self, data: bytes) -> None:
        # What fits in part only counts as not fitting: the pipe is not being read.
        if os.write(self.fileno(), data) < len(data):
            raise BlockingIOError

    def close(self) -> None:
        self._ours.close()


class _ChildProcess:
    """A process of `spawn`'s."""

    def __init__(self, process: Any, channel: _PipeEnd) -> None:
        self._process = process
        self.channel = channel
        self.pid: int = process.pid
        # The process's own sentinel is a pipe, which a child that it left may hold open.
        self._descriptor = _process_descriptor(self.pid)
        self.sentinel = process.sentinel if self._descriptor is None else self._descriptor

    @property
    def exit_code(self) -> int | None:
        code: int | None = self._process.exitcode
        return code

    def terminate(self) -> None:
        self._process.terminate()

    def kill(self) -> None:
        self._process.kill()

    def ended(self, wait_s: float) -> bool:
        if self._descriptor is None:
            self._process.join(wait_s)
        else:
            connection.wait([self._descriptor], wait_s)
        return not self._process.is_alive()

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
        self._process.close()
        self.channel.close()


def _process_descriptor(pid: int) -> int | None:
    if not hasattr(os, "pidfd_open"):
        return None
    try:
        return os.pidfd_open(pid)
    except OSError:
        return None  # an old kernel, or a sandbox
