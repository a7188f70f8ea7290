"""Shared memory: the one place that creates, maps and releases it.

One region a worker, made by the parent, anonymous (it has no name that could
leak), its pages taken up front so that a full system gives an error instead
of a SIGBUS later::

    region ┌── slot 0 (bulk) ──┬── slot 1 (bulk) ──┬── slot 2 (urgent) ──┐
    slot   │ progress │ offsets │ tokens │ status │ vectors │ UTF-8 text │
             int64      int32     int32    uint8    float32   bytes
                        [rows+1]  [rows]   [rows]   [rows,dim]

The parent writes offsets and text (Arrow's string layout); the worker writes
tokens, status and vectors. Its progress hints to the parent, after a worker's
death, which slot it was working on. All of it is the worker's to scribble on:
the parent keeps to itself what it must rely on, and reads nothing here as a
count or a place.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import tempfile
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
import numpy.typing as npt
from multiprocess import reduction

from memworker.errors import SharedMemoryExhausted

_ALIGN = 64


class RowStatus(IntEnum):
    """What became of one row of a slot."""

    OK = 0
    TRUNCATED = 1
    FAILED = 2


class Form(IntEnum):
    """What the rows of a slot are: texts of either kind, or token ids (int32) as bytes."""

    PASSAGE = 0
    QUERY = 1
    TOKENS = 2


class Progress(IntEnum):
    """How far a slot's shard has come, as its worker says."""

    FILLED = 0
    BEGUN = 1
    WRITTEN = 2


@dataclass(frozen=True, slots=True)
class SlotShape:
    """Capacity of a slot: rows, dimensions of a vector, UTF-8 bytes."""

    rows: int
    dim: int
    text_bytes: int

    def layout(self) -> tuple[dict[str, int], int]:
        """Give the byte offset of each part and the slot's size."""
        sizes = {
            "progress": 16,
            "offsets": 4 * (self.rows + 1),
            "tokens": 4 * self.rows,
            "status": self.rows,
            "vectors": 4 * self.rows * self.dim,
            "text": self.text_bytes,
        }
        starts, position = {}, 0
        for part, size in sizes.items():
            starts[part] = position
            position += -(-size // _ALIGN) * _ALIGN
        return starts, position


class Slot:
    """Views of one slot. They live inside `pool/` and die with the region."""

    def __init__(self, memory: memoryview, shape: SlotShape) -> None:
        starts, _ = shape.layout()

        def view(part: str, kind: Any, count: int) -> npt.NDArray[Any]:
            return np.frombuffer(memory, kind, count, starts[part])

        self.shape = shape
        self._progress = view("progress", np.int64, 2)
        self.offsets = view("offsets", np.int32, shape.rows + 1)
        self.tokens = view("tokens", np.int32, shape.rows)
        self.status = view("status", np.uint8, shape.rows)
        self.vectors = view("vectors", np.float32, shape.rows * shape.dim).reshape(-1, shape.dim)
        self.text = view("text", np.uint8, shape.text_bytes)

    @property
    def untouched(self) -> bool:
        """Whether the worker has not begun with what the slot was filled with, as it says."""
        return bool(self._progress[0] == Progress.FILLED)

    def reached(self, progress: Progress) -> None:
        """Note how far the work on this slot has come."""
        self._progress[0] = progress

    @property
    def steps(self) -> int:
        """How many steps the worker has done on this slot, as it says."""
        return int(self._progress[1])

    def stepped(self) -> None:
        """Note that a micro-batch is done: a worker's sign of life within a shard."""
        self._progress[1] += 1

    def fill(self, offsets: npt.NDArray[np.int32], text: npt.NDArray[np.uint8]) -> None:
        """Write texts in Arrow layout; `offsets` begin at 0 and end at len(text)."""
        rows = len(offsets) - 1
        self.offsets[: rows + 1] = offsets
        self.text[: len(text)] = text
        self.reached(Progress.FILLED)


class Region:
    """One worker's shared memory. Travels to the worker as a file descriptor at spawn."""

    def __init__(self, shapes: tuple[SlotShape, ...], fd: int | None = None) -> None:
        self._shapes = shapes
        size = sum(shape.layout()[1] for shape in shapes)
        self._fd = _allocate(size) if fd is None else fd
        try:
            self._map: mmap.mmap | None = mmap.mmap(self._fd, size)
        except OSError:
            os.close(self._fd)
            raise
        self.slots = self._views(self._map)

    def _views(self, mapped: mmap.mmap) -> list[Slot]:
        memory, position, slots = memoryview(mapped), 0, []
        for shape in self._shapes:
            size = shape.layout()[1]
            slots.append(Slot(memory[position : position + size], shape))
            position += size
        return slots

    def close(self) -> None:
        """Unmap and close. Safe to call twice."""
        if self._map is None:
            return
        self.slots = []
        mapped, self._map = self._map, None
        os.close(self._fd)
        try:
            mapped.close()
        except BufferError:
            # A frame of a failing caller may still hold a view; its end unmaps.
            del mapped

    def __reduce__(self) -> tuple[Any, ...]:
        return _attach, (self._shapes, reduction.DupFd(self._fd))


def _attach(shapes: tuple[SlotShape, ...], fd: Any) -> Region:
    return Region(shapes, fd.detach())


def _allocate(size: int) -> int:
    """Give a descriptor of `size` bytes of anonymous memory, all of it really there."""
    fd = _anonymous_file()
    try:
        _reserve(fd, size)
        _seal(fd)
    except OSError as error:
        os.close(fd)
        if error.errno not in (errno.ENOSPC, errno.ENOMEM, errno.EDQUOT, errno.EFBIG):
            raise
        raise SharedMemoryExhausted(
            f"a worker needs {size / 2**20:.1f} MiB of shared memory and the system refused it"
            f" ({os.strerror(error.errno or 0)}). Use fewer workers, or give the machine or"
            " container more memory (with Docker: --shm-size)."
        ) from error
    return fd


def _anonymous_file() -> int:
    folder = shared_folder()
    if folder is None:
        return _memfd()
    with tempfile.TemporaryFile(prefix="memworker-", dir=folder) as file:
        return os.dup(file.fileno())


def shared_folder() -> str | None:
    """Return where files stand in for anonymous memory; None where the system has that.

    Raises OSError where neither is to be had, as for too many open files.
    """
    if hasattr(os, "memfd_create"):
        try:
            os.close(_memfd())
            return None
        except OSError as error:
            # Some sandboxes forbid the call; all else (too many files) is the caller's.
            if error.errno not in (errno.ENOSYS, errno.EPERM, errno.EACCES):
                raise
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else tempfile.gettempdir()


def _memfd() -> int:
    return os.memfd_create("memworker", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)


def _reserve(fd: int, size: int) -> None:
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(fd, 0, size)
        return
    block = bytes(1 << 20)
    for start in range(0, size, len(block)):
        os.pwrite(fd, block[: size - start], start)


def _seal(fd: int) -> None:
    """Seal the size: if a worker made it smaller, our next read would end in a SIGBUS."""
    if not hasattr(fcntl, "F_ADD_SEALS"):
        return
    try:
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
    except OSError as error:
        # A file in place of a memfd takes no seals.
        if error.errno not in (errno.EINVAL, errno.EPERM):
            raise
