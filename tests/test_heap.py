"""Freed memory goes back to the system, and how much is held is known."""

from __future__ import annotations

import ctypes
import threading

import pytest

from memworker import heap
from tests.faults.harness import wait_for

COUNT, SIZE, PINNED_EACH = 100_000, 1000, 500


@pytest.fixture
def freed():
    """Free 100 MB among which a few pieces stay, so that the heap cannot simply end earlier."""
    if heap.private_bytes() is None or not hasattr(ctypes.CDLL(None), "malloc_trim"):
        pytest.skip("needs procfs and glibc")
    pieces = [bytes(SIZE) for _ in range(COUNT)]
    pinned = pieces[::PINNED_EACH]
    del pieces
    yield heap.private_bytes()
    del pinned


def test_it_is_given_back(freed):
    heap.give_back()
    assert heap.private_bytes() < freed - COUNT * SIZE // 2


def test_it_is_given_back_every_so_often_meanwhile(freed):
    with heap.given_back(0.05):
        wait_for(lambda: heap.private_bytes() < freed - COUNT * SIZE // 2)
    assert "memworker-heap" not in [thread.name for thread in threading.enumerate()]
