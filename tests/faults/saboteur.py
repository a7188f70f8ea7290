"""An echo encoder that does to its process what its texts, or its loader, tell it to."""

from __future__ import annotations

import os
import signal
import threading
import time
from dataclasses import dataclass

from memworker.pool.echo import EchoEncoder

GREEDY_ROWS = 4
WAITS_S = {"hang": None, "busy": 0.2}
SIGNALS = {"segv": signal.SIGSEGV, "kill": signal.SIGKILL, "stop": signal.SIGSTOP}
LEAK_BYTES = 8 << 20


@dataclass(frozen=True)
class Saboteur:
    """Loads a `SaboteurEncoder`, or fails at it."""

    dim: int = 8
    boot: str = ""

    def __call__(self):
        if self.boot == "raise":
            raise RuntimeError("no such session")
        if self.boot == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        return SaboteurEncoder(self.dim)


class SaboteurEncoder:
    """Obeys texts such as "segv", "raise", "leak" and "once FILE ACTION"."""

    def __init__(self, dim):
        self.dim = dim
        self.echo = EchoEncoder(dim)
        self.leaked = []

    def encode(self, texts, rows):
        for text in texts.decode_all():
            self.obey(text, len(texts))
            if text == "steps":
                for _ in range(8):
                    spin(1.0)
                    yield
        yield from self.echo.encode(texts, rows)

    def obey(self, text, rows):
        word, _, rest = text.partition(" ")
        if word == "once":
            flag, _, text = rest.partition(" ")
            if os.path.exists(flag):
                return
            open(flag, "w").close()
        if text in SIGNALS:
            os.kill(os.getpid(), SIGNALS[text])
        elif text in WAITS_S:
            threading.Event().wait(WAITS_S[text])
        elif text == "spin":
            spin(float("inf"))
        elif text == "raise":
            raise ValueError("cannot encode this")
        elif text == "greedy" and rows > GREEDY_ROWS:
            os.kill(os.getpid(), signal.SIGKILL)
        elif text == "leak":
            self.leaked.append(bytearray(os.urandom(1)) * LEAK_BYTES)


def spin(cpu_s):
    """Compute for so long, of processor time."""
    end = time.thread_time() + cpu_s
    while time.thread_time() < end:
        pass
