"""The texts of the simulation: each tells what its vector is, and what it does to a worker."""

from __future__ import annotations

import random
from zlib import crc32

from memworker.pool.arena import RowStatus

DIM = 2
KILLS, HANGS, GREEDY, LIES, RAISES = b"!k", b"!h", b"!g", b"!l", b"!e"
GUILTY = (KILLS, HANGS, LIES)


def drawn(draw: random.Random, name: str, guilt: float) -> str:
    """Draw a text of its own; `guilt` is the chance that it is not right."""
    filler = "x" * draw.choice((0, 0, 1, 3, 8, 8, 20, 120))
    if draw.random() >= guilt:
        return f"{name}{filler}" + "~" * (draw.random() < 0.1)
    return draw.choice((KILLS, KILLS, HANGS, GREEDY, LIES, RAISES)).decode() + name + filler


def answer(text: bytes) -> tuple[tuple[float, float], int]:
    """Give a text's vector and status."""
    if text.startswith(RAISES):
        return (0.0, 0.0), RowStatus.FAILED
    status = RowStatus.TRUNCATED if text.endswith(b"~") else RowStatus.OK
    return (float(crc32(text) % 65_521), float(1 + len(text))), status
