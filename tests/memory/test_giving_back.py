"""What was freed goes back to the system while a Memory is at work."""

from __future__ import annotations

import ctypes
import time

import pytest

from memworker.memory import upkeep
from tests import PATIENCE_S
from tests.buffers import private_bytes

BLOCK, COUNT = 100_000, 1500


@pytest.fixture
def freed():
    """Free 150 MB that the C library keeps, since what lies behind it is still in use."""
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "malloc_trim") or private_bytes() is None:
        pytest.skip("the C library is not glibc, or /proc tells nothing")
    libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
    blocks = [libc.malloc(BLOCK) for _ in range(COUNT)]
    for block in blocks:
        ctypes.memset(block, 1, BLOCK)
    before = private_bytes()
    for block in blocks[:-1]:
        libc.free(block)
    yield before
    libc.free(blocks[-1])


def test_upkeep_gives_back_what_was_freed(memory, freed, monkeypatch):
    monkeypatch.setattr(upkeep, "_GIVE_BACK_S", 0.0)
    deadline, turn = time.monotonic() + PATIENCE_S, 0
    while private_bytes() > freed - BLOCK * COUNT // 2:
        assert time.monotonic() < deadline
        memory.add_batch([f"text {turn} {n}" for n in range(64)], user_id="u")
        turn += 1
