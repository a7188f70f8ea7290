"""Starts a fresh interpreter for a worker, without running the caller's script again.

Spawn imports the parent's main module into every child. That breaks scripts
without a ``__main__`` guard, notebooks and code on stdin, and a worker has no
use for it: what it needs travels by value (multiprocess pickles with dill).

What memworker and its libraries are is settled before anything of the caller's
is looked at: they are imported on our own path. Only then, and only for a loader
that is the caller's, the worker gets the caller's path, to find that loader.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import Any

from multiprocess import context, get_start_method, popen_spawn_posix, reduction, spawn, util
from multiprocess.process import ORIGINAL_DIR, current_process

from memworker.interpreters import QUIET, on_our_path, our_path


def start(target: Callable[..., None], args: tuple[Any, ...], *, name: str, channel: int) -> Any:
    """Start `target(*args)` in a spawned daemon process and return the process object.

    `channel` is the descriptor of the pipe among `args` on which the process
    says so if it does not come as far as `target`.
    """
    process = _WorkerProcess(target=target, args=args, name=name, daemon=True)
    process.channel = channel
    process.start()
    return process


# Where memory or threads are short even an import may fail: the message is put together by hand,
# a `BootFailed` in MessagePack behind its length. Ctrl-C is the parent's to answer.
_PROGRAM = """
import os, signal
signal.signal(signal.SIGINT, signal.SIG_IGN)
os.environ |= {settings}
# One worker, one thread: numpy's would start one a core, and end the process where it may not.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
try:
    import memworker.pool.worker
    from multiprocess.spawn import spawn_main
    spawn_main(**{handles})
except Exception as error:
    words = f"{{type(error).__name__}}: {{error}}"[:1000].encode("utf-8", "replace")
    body = b"\\x92\\xabboot_failed\\xda" + len(words).to_bytes(2, "big") + words
    os.write({channel}, len(body).to_bytes(4, "big") + body)
    os._exit(1)
"""


class _WorkerProcess(context.SpawnProcess):  # type: ignore[misc]
    @staticmethod
    def _Popen(process: Any) -> Any:  # noqa: N802 - the name multiprocess calls
        return _Popen(process)


class _Popen(popen_spawn_posix.Popen):  # type: ignore[misc]
    """A spawn whose preparation data leaves the parent's main module out.

    In a child that the parent forks it is none of that child's: multiprocess would else end it,
    and wait for it, when that child ends.
    """

    def poll(self, flag: int = os.WNOHANG) -> int | None:
        """Return the exit code; in another process than its parent, any."""
        if os.getpid() != self._parent:
            return 0
        code: int | None = super().poll(flag)
        return code

    def _send_signal(self, sig: int) -> None:
        if os.getpid() == self._parent:
            super()._send_signal(sig)

    def _launch(self, process: Any) -> None:
        self._parent = os.getpid()
        payload = self._payload(process)
        with ExitStack() as child_ends:
            ours: list[int] = []
            # The write end stays open: its closing tells the worker that we are gone.
            self.finalizer = util.Finalize(self, _close_all, (ours,))
            child_reads, parent_writes = _pipe(ours, child_ends, ours_reads=False)
            parent_reads, child_writes = _pipe(ours, child_ends, ours_reads=True)
            command = _command_line(child_reads, process.channel)
            passed = [*self._fds, child_reads, child_writes]
            self.pid = util.spawnv_passfds(spawn.get_executable(), command, passed)
            self.sentinel = parent_reads
            # Closed now, or a child that dies without reading would leave us writing for ever.
            child_ends.close()
            # One that has died by now is told by its sentinel, as any other death.
            with suppress(BrokenPipeError), open(parent_writes, "wb", closefd=False) as pipe:
                pipe.write(payload)

    def _payload(self, process: Any) -> bytes:
        preparation = _preparation(process)
        buffer = io.BytesIO()
        context.set_spawning_popen(self)
        try:
            reduction.dump(preparation, buffer)
            reduction.dump(process, buffer)
        finally:
            context.set_spawning_popen(None)
        return buffer.getvalue()


def _preparation(process: Any) -> dict[str, Any]:
    """Say what the worker shares with us: its working directory it inherits anyway."""
    # A pool that is made while a worker imports its loader would have no end.
    spawn._check_not_importing_main()
    told = {
        "name": process.name,
        "authkey": current_process().authkey,
        "sys_argv": sys.argv,
        "sys_path": _callers_path() if _needs_callers_path(process) else our_path(),
        "orig_dir": ORIGINAL_DIR,
    }
    if method := get_start_method(allow_none=True):
        told["start_method"] = method
    return told


def _needs_callers_path(process: Any) -> bool:
    rooms = {str(getattr(part, "__module__", "")).partition(".")[0] for part in process._args}
    return not rooms <= {"memworker", "multiprocess"}


def _callers_path() -> list[str]:
    return [entry or ORIGINAL_DIR or "." for entry in sys.path]


def _command_line(pipe_handle: int, channel: int) -> list[Any]:
    # No resource tracker: nothing of ours has a name that one could clean up.
    handles = {"tracker_fd": None, "pipe_handle": pipe_handle}
    if getattr(sys, "frozen", False):
        return list(spawn.get_command_line(**handles))
    program = _PROGRAM.format(settings=QUIET, handles=handles, channel=channel)
    code = on_our_path() + program
    flags = util._args_from_interpreter_flags()
    return [spawn.get_executable(), *flags, "-P", "-c", code, "--multiprocessing-fork"]


def _pipe(ours: list[int], child_ends: ExitStack, *, ours_reads: bool) -> tuple[int, int]:
    """Make a pipe, one end ours and one for the child, each with its closing seen to."""
    reads, writes = os.pipe()
    ours.append(reads if ours_reads else writes)
    child_ends.callback(os.close, writes if ours_reads else reads)
    return reads, writes


def _close_all(descriptors: list[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
