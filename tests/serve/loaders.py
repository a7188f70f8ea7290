"""An encoder that waits for a file, at its start or before each shard."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path

from memworker.pool.echo import EchoEncoder


def wait_for(gate):
    while not Path(gate).exists():
        threading.Event().wait(0.01)


@dataclass(frozen=True)
class Gated:
    """Loads at once, and encodes once `gate` is there; `begun` tells that it was asked."""

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
        wait_for(self.gate)
        yield from self.echo.encode(texts, rows)


@dataclass(frozen=True)
class LoadsUnless:
    """Loads while there is no file `marker`."""

    marker: str
    dim: int = 8

    def __call__(self):
        if Path(self.marker).exists():
            raise MemoryError("there is no more")
        return EchoEncoder(self.dim)


@dataclass(frozen=True)
class SlowStart:
    """Loads once `gate` is there."""

    gate: str
    dim: int = 8

    def __call__(self):
        wait_for(self.gate)
        return EchoEncoder(self.dim)
