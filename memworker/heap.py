"""What this process holds of memory, and giving back to the system what it has freed.

The C library and Arrow keep freed memory for the next who asks. Where rows pass in batches of
many sizes, that is more with every million. So whatever runs for long gives it back every
two seconds, which takes milliseconds; where the C library is not glibc, Arrow's alone.
"""

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

EVERY_S = 2.0


def give_back() -> None:
    """Give freed memory back to the system."""
    # Where Arrow was not imported, its pool holds nothing.
    arrow = sys.modules.get("pyarrow")
    if arrow is not None:
        arrow.default_memory_pool().release_unused()
    _trim()(0)


@contextmanager
def given_back(every_s: float = EVERY_S) -> Iterator[None]:
    """Give freed memory back every so often meanwhile, and at the end."""
    done = threading.Event()

    def run() -> None:
        while not done.wait(every_s):
            give_back()

    thread = threading.Thread(target=run, name="memworker-heap", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        give_back()


def private_bytes(pid: int | str = "self") -> int | None:
    """Return the memory that is private to a process and that the kernel cannot reclaim.

    Pages of files that it alone has mapped are not counted, for the system takes those back
    where memory is short. None where nothing tells.
    """
    return _rollup(pid, "Private_Dirty:")


def mapped_bytes(pid: int | str = "self") -> int | None:
    """Return how much of files a process alone has mapped now; None where nothing tells."""
    return _rollup(pid, "Private_Clean:")


def _rollup(pid: int | str, name: str) -> int | None:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return None
    return sum(int(line.split()[1]) for line in lines if line.startswith(name)) << 10


@cache
def _trim() -> Callable[[int], object]:
    try:
        # Without the interpreter's lock, unlike ctypes.PyDLL: others go on meanwhile.
        return ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError):
        return lambda _: None
