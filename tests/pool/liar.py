"""An encoder that does to its parent whatever its texts tell it to.

It reaches for what a worker has of its parent's, its pipe and its shared memory, as
native code gone wrong could. A text ``lie KIND FLAG`` is obeyed once, by whoever makes
the file FLAG; ``lie KIND`` always.
"""

from __future__ import annotations

import os
import random
import signal
import socket
import struct
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from memworker.pool.echo import EchoEncoder

DIM = 8
INT64 = (-(1 << 63), -1, 0, 1, 2, 3, 255, 1 << 31, (1 << 63) - 1)


@dataclass(frozen=True)
class Liar:
    """Loads a `LiarEncoder`; `boot` names a lie that is told at once."""

    dim: int = DIM
    boot: str = ""

    def __call__(self):
        main = sys._getframe(1).f_locals
        encoder = LiarEncoder(main["pipe"], main["region"])
        if self.boot:
            getattr(encoder, self.boot)(random.Random(0))
        return encoder


class LiarEncoder:
    dim = DIM

    def __init__(self, pipe, region):
        self.pipe, self.region = pipe, region
        self.echo = EchoEncoder(DIM)
        self.late = []

    def encode(self, texts, rows):
        self.rows = rows
        loop = sys._getframe(2)
        while "order" not in loop.f_locals:
            loop = loop.f_back
        self.order = loop.f_locals["order"]
        self.late = []
        for text in texts.decode_all():
            word, _, rest = text.partition(" ")
            if word == "lie":
                self.obey(*rest.partition(" ")[::2])
        yield from self.echo.encode(texts, rows)
        for lie in self.late:
            lie()

    def obey(self, kind, flag):
        if flag:
            try:
                Path(flag).touch(exist_ok=False)
            except FileExistsError:
                return
        name, _, seed = kind.partition(":")
        getattr(self, name)(random.Random(kind if seed else name))

    # ── what it writes ──

    def progress(self, rng):
        for slot in self.region.slots:
            slot._progress[0] = rng.choice(INT64)

    def scribble(self, rng):
        """Write nonsense over everything but the vectors, and die of it."""
        for slot in self.region.slots:
            for part in (slot._progress, slot.offsets, slot.tokens, slot.status, slot.text):
                part.view(np.uint8)[:] = np.frombuffer(rng.randbytes(1), np.uint8)
        os.kill(os.getpid(), signal.SIGSEGV)

    def blame_all(self, rng):
        for slot in self.region.slots:
            slot._progress[0] = 1
        os.kill(os.getpid(), signal.SIGKILL)

    def status(self, rng):
        row, value = rng.randrange(len(self.rows.status)), rng.randrange(3, 256)
        self.late.append(lambda: self.rows.status.__setitem__(row, value))

    def tokens(self, rng):
        value = -rng.randrange(1, 1 << 31)
        self.late.append(lambda: self.rows.tokens.__setitem__(0, value))

    def truncate(self, rng):
        """Take the memory away under the parent's feet."""
        for fd in map(int, os.listdir("/proc/self/fd")):
            try:
                if "memfd:memworker" in os.readlink(f"/proc/self/fd/{fd}"):
                    os.ftruncate(fd, 0)
            except OSError:
                continue

    # ── what it says ──

    def done(self, **other):
        order = self.order
        known = {
            **{"shard": order.shard, "slot": order.slot, "generation": order.generation},
            **{"real_tokens": 1, "padded_tokens": 1, "tokenize_s": 0.0, "encode_s": 0.0},
            "reasons": {},
        }
        return ["done", *(known | other).values()]

    def say(self, *fields):
        self.pipe.send_bytes(msgspec.msgpack.encode(list(fields)))

    def other_slot(self, rng):
        self.say(*self.done(slot=rng.choice([-1, 1, 2, 3, 7, 1 << 31, 1 << 62])))

    def other_shard(self, rng):
        self.say(*self.done(shard=rng.choice([0, -1, self.order.shard + 1, 1 << 62])))

    def other_generation(self, rng):
        self.say(*self.done(generation=rng.choice([0, -1, self.order.generation + 1])))

    def twice(self, rng):
        self.late.append(lambda: self.say(*self.done()))

    def counts(self, rng):
        amount = rng.choice([-1, 1 << 41, 1 << 63])
        self.say(*self.done(**{rng.choice(["real_tokens", "padded_tokens"]): amount}))

    def seconds(self, rng):
        amount = rng.choice([-1.0, float("nan"), float("inf"), 1e300])
        self.say(*self.done(**{rng.choice(["tokenize_s", "encode_s"]): amount}))

    def reasons(self, rng):
        row, length = rng.choice([(-1, 1), (1 << 20, 1), (0, 1 << 16), (1 << 40, 5)])
        self.say(*self.done(reasons={row: "x" * length}))

    def ready(self, rng):
        self.say("ready", rng.choice([DIM, 0, -1, DIM + 1, 1 << 62]))

    def boot_failed(self, rng):
        self.say("boot_failed", "no such thing" * rng.choice([1, 10_000]))

    def longer(self, rng):
        self.say(*self.done(), *[[]] * rng.randrange(1, 9))

    def deep(self, rng):
        self.pipe.send_bytes(b"\x9a\xa4done" + b"\x91" * 100_000)

    def twice_ready(self, rng):
        for _ in range(2):
            self.say("ready", DIM)

    # ── how it says it ──

    def write(self, data):
        while data:
            data = data[os.write(self.pipe.fileno(), data) :]

    def noise(self, rng):
        self.write(rng.randbytes(rng.randrange(4, 5000)))

    def huge_frame(self, rng):
        size = rng.choice([(1 << 31) - 1, 1 << 30, 0x80000000, 0xFFFFFFFF])
        self.write(struct.pack("!I", size) + bytes(8))

    def empty(self, rng):
        self.write(struct.pack("!i", 0))

    def half_then_death(self, rng):
        frame = struct.pack("!i", 40) + msgspec.msgpack.encode(self.done())
        self.write(frame[: rng.randrange(1, 20)])
        os.kill(os.getpid(), signal.SIGKILL)

    def half_then_silence(self, rng):
        self.write(struct.pack("!i", 40) + b"x" * rng.randrange(30))
        threading.Event().wait()

    def drip(self, rng):
        self.write(struct.pack("!i", 100_000))
        while True:
            self.write(b"x")
            threading.Event().wait(0.01)

    def flood(self, rng):
        message = struct.pack("!i", 3) + rng.choice([b"\x92\xa5r", b"\xc1\xc1\xc1", bytes(3)])
        while True:
            self.write(message * 1000)

    # ── how it ends ──

    def closed_pipe(self, rng):
        socket.socket(fileno=self.pipe.fileno()).shutdown(socket.SHUT_RDWR)
        threading.Event().wait()

    def closed_all(self, rng):
        os.closerange(3, 1000)
        threading.Event().wait()

    def heir(self, rng):
        """Die, and leave a child that holds open all that the parent could wait for."""
        if os.fork() == 0:
            signal.alarm(20)
            threading.Event().wait()
        os._exit(0)

    def nameless_signal(self, rng):
        os.kill(os.getpid(), 40)

    def exits(self, rng):
        os._exit(rng.randrange(256))


KINDS = [
    name
    for name in vars(LiarEncoder)
    if not name.startswith("_") and name not in ("dim", "encode", "obey", "done", "say", "write")
]
