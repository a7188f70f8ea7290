"""A process that has imported everything and forks a child a case, which costs no start.

::

    driver ─► line of JSON ─► zygote ─fork─► child: arms the faults, runs the real command
           ◄─ line of JSON ◄─ waits, with a watchdog; takes in what the child left behind

The zygote is preloaded with the shim and stays dormant; it has imported LanceDB and
never connected, for LanceDB's runtime starts anew in a child only then.
"""

from __future__ import annotations

import ctypes
import faulthandler
import gc
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.faults.every_call.shim import VARIABLE, Control

ROOT = Path(__file__).parents[3]
_PR_SET_CHILD_SUBREAPER = 36
# Workers end when they see that their parent has; what is there later was left behind.
_LEFT_AFTER_S = 5.0


@dataclass(frozen=True, slots=True)
class Order:
    """A scenario to run in `folder`, of which `watched` is what the faults concern."""

    scenario: str
    folder: str
    watched: str
    timeout_s: float


@dataclass(frozen=True, slots=True)
class Ended:
    """How a child ended: its exit status, -9 for a kill; and which processes it left."""

    status: int
    hung: bool
    left: int
    seconds: float


class Zygote:
    """The driver's side."""

    def __init__(self, control: Control, library: Path) -> None:
        command = [sys.executable, "-m", __spec__.name]
        self._process = subprocess.Popen(
            command,
            cwd=ROOT,
            # As the command line sets it, before it imports LanceDB.
            env=os.environ | {"LANCEDB_LOG": "error"} | control.environment(library),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, order: Order) -> Ended:
        """Have a child forked that runs it, and wait for its end."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(asdict(order)) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"the zygote ended with {self._process.wait()}")
        return Ended(**json.loads(answer))

    def close(self) -> None:
        self._process.communicate()

    def __enter__(self) -> Zygote:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def main() -> None:
    """Serve orders until stdin ends; in a child, run one and return."""
    _prepare()
    control = Control.existing(Path(os.environ[VARIABLE]))
    for line in sys.stdin:
        order = Order(**json.loads(line))
        pid = os.fork()
        if not pid:
            _become(order, control)
            # The interpreter ends as it does after a command of its own.
            return
        print(json.dumps(asdict(_awaited(pid, order.timeout_s))), flush=True)  # noqa: T201


def _prepare() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    # LanceDB says at a fork that it may hang; the watchdog would tell.
    warnings.filterwarnings("ignore", "lancedb fork support", RuntimeWarning)
    from tests.faults.every_call import scenarios

    scenarios.warm_up()
    # A child's last collection would otherwise copy every page of what was imported.
    gc.collect()
    gc.freeze()


def _become(order: Order, control: Control) -> None:
    folder = Path(order.folder)
    for fd, name, flags in (
        (0, os.devnull, os.O_RDONLY),
        (1, folder / "out", os.O_WRONLY | os.O_CREAT | os.O_TRUNC),
        (2, folder / "err", os.O_WRONLY | os.O_CREAT | os.O_TRUNC),
    ):
        opened = os.open(name, flags, 0o600)
        os.dup2(opened, fd)
        os.close(opened)
    faulthandler.dump_traceback_later(0.9 * order.timeout_s)
    watched = Path(order.watched)
    os.environ |= {"TMPDIR": str(watched / "tmp"), "MEMWORKER_CACHE": str(watched / "cache")}
    tempfile.tempdir = None
    from tests.faults.every_call.scenarios import SCENARIOS

    SCENARIOS[order.scenario].run(folder, control.arm)


def _awaited(pid: int, timeout_s: float) -> Ended:
    began = time.monotonic()
    fd = os.pidfd_open(pid)
    hung = not select.select([fd], [], [], timeout_s)[0]
    if hung:
        os.kill(pid, signal.SIGKILL)
    os.close(fd)
    _, status = os.waitpid(pid, 0)
    seconds = time.monotonic() - began
    return Ended(os.waitstatus_to_exitcode(status), hung, _left_behind(), round(seconds, 3))


def _left_behind() -> int:
    """Wait for the children of the child, which are ours now; kill and count what stays."""
    deadline = time.monotonic() + _LEFT_AFTER_S
    while time.monotonic() < deadline:
        if not _reaped():
            return 0
        time.sleep(0.005)
    left = 0
    for child in _children():
        os.kill(child, signal.SIGKILL)
        left += 1
    while _reaped():
        time.sleep(0.005)
    return left


def _reaped() -> bool:
    """Take in what has ended; tell whether there are children still."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return False
    return True


def _children() -> list[int]:
    told = Path(f"/proc/self/task/{os.getpid()}/children").read_text()
    return [int(pid) for pid in told.split()]


if __name__ == "__main__":
    main()
