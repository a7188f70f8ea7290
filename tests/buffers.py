"""What cycles hold: with the collector off, memory must come back by reference counts alone."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

# What is smaller is no window's vectors, texts or rows.
LARGE_BYTES = 4096


@contextmanager
def collector_off() -> Iterator[None]:
    """Switch the collector off; at the end no cycle may hold a large buffer."""
    gc.collect()
    gc.disable()
    try:
        yield
        held = held_by_cycles()
        assert not held, f"cycles hold {len(held)} large buffers: {held[:5]}"
    finally:
        gc.enable()


def held_by_cycles() -> list[str]:
    """Collect, and describe the large buffers that only this has freed."""
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        gc.collect()
        garbage = list(gc.garbage)
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
    # Arrays and strings have no references of their own, so the collector does not list them.
    seen, found = set(), []
    for holder in garbage:
        for thing in [holder, *gc.get_referents(holder)]:
            if id(thing) not in seen and (size := _bytes(thing)) >= LARGE_BYTES:
                found.append(f"{size:,} bytes of {type(thing).__name__} in {_said(holder)}")
            seen.add(id(thing))
    return found


def _bytes(thing: object) -> int:
    if isinstance(thing, np.ndarray | pa.Array | pa.ChunkedArray | pa.Table | pa.RecordBatch):
        return thing.nbytes
    return len(thing) if isinstance(thing, bytes | bytearray | str) else 0


def _said(holder: object) -> str:
    # A class keeps its docstring; frames and containers say most by their type and beginning.
    return f"{type(holder).__name__} {str(holder)[:120]}"


def private_bytes(pid: int | str = "self") -> int:
    """Give a process's own memory, files and shared memory apart (RssAnon)."""
    status = Path(f"/proc/{pid}/status")
    if not status.exists():
        pytest.skip("needs procfs")
    for line in status.read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"{status} does not tell RssAnon")
