"""Encoders that do not end, for parents to be killed meanwhile."""

from __future__ import annotations

import fcntl
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from memworker.pool.echo import EchoEncoder


@dataclass(frozen=True)
class Endless:
    """Encodes for ever, and says so by making a file."""

    begun: str
    dim: int = 8

    def __call__(self):
        return EndlessEncoder(self.begun, self.dim)


class EndlessEncoder:
    def __init__(self, begun, dim):
        self.begun, self.dim = begun, dim

    def encode(self, texts, rows):
        Path(self.begun).touch()
        while True:
            sum(range(1000))
        yield


@dataclass(frozen=True)
class Gated:
    """An echo encoder that waits, before each shard, until a file is there."""

    gate: str
    begun: str
    dim: int = 8

    def __call__(self):
        return GatedEncoder(self.gate, self.begun, self.dim)


class GatedEncoder:
    def __init__(self, gate, begun, dim):
        self.gate, self.begun, self.dim = gate, begun, dim
        self.echo = EchoEncoder(dim)

    def encode(self, texts, rows):
        Path(self.begun).touch()
        while not Path(self.gate).exists():
            sum(range(1000))
        yield from self.echo.encode(texts, rows)


@dataclass(frozen=True)
class Unhurried:
    """An echo encoder that sleeps so long a text, so that there is time to disturb it."""

    pause_s: float
    dim: int = 8

    def __call__(self):
        return UnhurriedEncoder(self.pause_s, self.dim)


class UnhurriedEncoder:
    def __init__(self, pause_s, dim):
        self.pause_s, self.dim = pause_s, dim
        self.echo = EchoEncoder(dim)

    def encode(self, texts, rows):
        time.sleep(self.pause_s * len(texts))
        yield from self.echo.encode(texts, rows)


BAD = "a text that cannot be embedded"


@dataclass(frozen=True)
class Choosy:
    """An echo encoder that takes a moment a text, and raises where `BAD` is among them."""

    dim: int = 8

    def __call__(self):
        return ChoosyEncoder(self.dim)


class ChoosyEncoder:
    def __init__(self, dim):
        self.dim = dim
        self.echo = EchoEncoder(dim)

    def encode(self, texts, rows):
        raw = texts._raw()
        for _ in range(len(texts)):
            sum(range(200))
            if next(raw) == BAD.encode():
                raise ValueError("one of the texts is bad")
        yield from self.echo.encode(texts, rows)


@dataclass(frozen=True)
class Mortal:
    """An echo encoder whose process kills itself at its start while a file `marker` is there."""

    marker: str
    dim: int = 8

    def __call__(self):
        if Path(self.marker).exists():
            os.kill(os.getpid(), signal.SIGKILL)
        return EchoEncoder(self.dim)


@dataclass(frozen=True)
class OnlyOne:
    """An echo encoder that, while `gate` is there, starts in one process at a time.

    As where there is memory for one; the others leave.
    """

    gate: str
    dim: int = 8

    def __call__(self):
        if Path(self.gate).exists():
            try:
                # Held open, and so locked, until the process ends.
                fcntl.flock(os.open(self.gate, os.O_RDWR), fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os._exit(3)
        return EchoEncoder(self.dim)
