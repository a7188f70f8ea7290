"""Worker processes as a seed has them: honest, slow, dying at any point, or lying.

One reads its real orders from the pipe and its real texts from the real memory, and
writes its vectors there; only that it is an actor on the virtual clock instead of a
process. What it does besides is drawn, or asked for by a text (see `texts`).
"""

from __future__ import annotations

import itertools
import struct
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from memworker.pool import messages
from memworker.pool.arena import Progress, Region, RowStatus
from memworker.pool.worker import URGENT_SLOT
from tests.sim import texts
from tests.sim.world import Actor, Life, Violation, World

DIM = texts.DIM
MEGABYTE = 1 << 20
_ORDERS_BYTES = 600
_INT64 = (-(1 << 63), -1, 0, 1, 2, 3, 1 << 40, (1 << 63) - 1)


@dataclass
class Weather:
    """How bad things are in one schedule, and what has come of it."""

    world: World
    trouble: float
    boot_trouble: float
    hard_start: bool
    storm: tuple[float, float]
    greed: float
    pids: itertools.count = field(default_factory=lambda: itertools.count(100))
    # Of each text, how often a worker ended that it was the first in, or even alone in.
    ends: Counter = field(default_factory=Counter)
    alone: Counter = field(default_factory=Counter)
    ended: int = 0

    @classmethod
    def drawn(cls, world: World) -> Weather:
        draw = world.random
        begins = 1000.0 + draw.choice((0.0, 5.0, draw.uniform(5, 60)))
        stormy = draw.random() < 0.2
        return cls(
            world,
            trouble=draw.choice((0.0, 0.02, 0.1, 0.1, 0.3, 0.9)),
            boot_trouble=draw.choice((0.0, 0.0, 0.1, 0.4)),
            hard_start=draw.random() < 0.1,
            storm=(begins, begins + draw.choice((1.0, 20.0, 200.0, 3000.0)))
            if stormy
            else (0.0, 0.0),
            greed=draw.choice((0.0, 0.0, 0.2)),
        )

    @property
    def storms(self) -> bool:
        """Whether nothing can start now."""
        return self.storm[0] <= self.world.now < self.storm[1]

    def no_processes(self) -> bool:
        return self.storms and self.world.now > 1000.5 and self.world.random.random() < 0.5


class SimChannel:
    """Both directions of a worker's pipe, and the parent's view of it."""

    def __init__(
        self, world: World, woken: Callable[[], None], ordered: Callable[[], None]
    ) -> None:
        self._world = world
        self._woken = woken
        self._ordered = ordered
        self.to_parent = bytearray()
        self.to_worker = bytearray()
        self.written = 0
        self.consumed = 0
        self.deaf = False
        self.closed_by_worker = False
        self.closed_by_parent = False

    def say(self, data: bytes) -> int:
        """Send bytes to the parent; give where they end in all that was ever sent."""
        self._world.stirred = True
        self.to_parent += data
        self.written += len(data)
        return self.written

    def ready(self) -> bool:
        return bool(self.to_parent) or self.closed_by_worker

    def read(self, most: int) -> bytes:
        self._world.breathe()
        if self.closed_by_parent:
            raise Violation("a closed pipe was read")
        if self._world.haunts:
            # Just before an answer is taken.
            for haunt in list(self._world.haunts):
                haunt()
        if not self.to_parent:
            if self.closed_by_worker:
                return b""
            raise BlockingIOError
        if self._world.random.random() < 0.1:
            most = self._world.random.randrange(1, 40)
        data = bytes(self.to_parent[:most])
        del self.to_parent[:most]
        self.consumed += len(data)
        return data

    def write(self, data: bytes) -> None:
        self._world.breathe()
        if self.closed_by_parent:
            raise Violation("a closed pipe was written to")
        self._ordered()
        if self.closed_by_worker:
            raise BrokenPipeError
        if self.deaf or len(self.to_worker) + len(data) > _ORDERS_BYTES:
            raise BlockingIOError
        self.to_worker += data
        self._woken()


class SimSentinel:
    def __init__(self) -> None:
        self.fired = False

    def ready(self) -> bool:
        return self.fired


class SimWorker:
    """A child process; `Child` to the pool."""

    def __init__(self, world: World, weather: Weather, number: int, region: Region) -> None:
        self._world = world
        self._random = world.random
        self._weather = weather
        self.number = number
        self.pid = next(weather.pids)
        self.exit_code: int | None = None
        self.resident = 50 * MEGABYTE
        self.channel = SimChannel(world, self._wake, self._die_early)
        self.sentinel = SimSentinel()
        self.is_ready = False
        self.released = False
        self._slots = region.slots
        self._bulk: deque[messages.Encode] = deque()
        self._urgent: deque[messages.Encode] = deque()
        # What it has not answered; and what the parent holds it to have, in the order of giving.
        self._held: dict[int, tuple[messages.Encode, list[bytes]]] = {}
        self._given: dict[int, list[bytes]] = {}
        self._answered: dict[int, int] = {}
        self._lied_at: int | None = None
        self._well = True
        self._counted = False
        self._stopping = False
        self._undead = self._random.random() < 0.1 * weather.trouble
        self._actor = Actor(world, self._life())
        world.note(f"worker {number} starts (pid {self.pid})")

    @property
    def undying(self) -> bool:
        """Whether it does not end when it is killed, but some time later."""
        return self._undead

    # ── what its parent does ──

    def terminate(self) -> None:
        self._world.breathe()
        if not self._random.random() < 0.1:
            self._world.after(self._world.latency(), lambda: self.die(-15))

    def kill(self) -> None:
        if self.sentinel.fired:
            self._must_be_heard()
        elif self._well:
            self._must_be_spared()
        self._world.breathe()
        self._count_end()
        if self._undead:
            self._world.after(self._random.choice((1.0, 3.0, 500.0)), lambda: self.die(-9))
            self._world.haunts.append(self._haunt)
        else:
            self.die(-9)

    def ended(self, wait_s: float) -> bool:
        self._world.breathe()
        if wait_s > 0:
            self._world.pass_until(lambda: self.sentinel.fired, self._world.now + wait_s)
        return self.sentinel.fired

    def close(self) -> None:
        if not self.sentinel.fired:
            raise Violation("a process that lives was released")
        if self.released:
            raise Violation("a process was released twice")
        self.released = True
        self.channel.closed_by_parent = True

    # ── its life ──

    def die(self, code: int) -> None:
        """End, at whatever point."""
        if self.sentinel.fired:
            return
        self._world.note(f"worker {self.number} (pid {self.pid}) ends with {code}")
        self._take_orders()
        self._actor.end()
        self.exit_code = code
        self.is_ready = False
        self.channel.closed_by_worker = True
        self.sentinel.fired = True
        self._world.stirred = True

    def _haunt(self) -> None:
        """Write into all that was its own, as a process may that is killed and does not die yet."""
        if self.sentinel.fired or self._world.scheduler._closing:
            self._world.haunts.remove(self._haunt)
            return
        for slot in self._slots:
            slot.vectors[:] = -1.0

    def _must_be_heard(self) -> None:
        """Hold that what one answered that died by itself was taken, before it is buried."""
        scheduler = self._world.scheduler
        if scheduler._closing or self._lied_at is not None:
            return
        handle = scheduler._supervisor.workers[self.number]
        unread = [end for end in self._answered.values() if end > self.channel.consumed]
        if unread and handle.pid == self.pid and not handle.ended_by:
            raise Violation(f"worker {self.number} (pid {self.pid}) died, its answer not read")

    def _must_be_spared(self) -> None:
        """Hold that one that is well is not taken for hung, however long its parent was stopped."""
        supervisor = self._world.scheduler._supervisor
        handle = supervisor.workers[self.number]
        # With less patience the pool's guess of how long work takes may be too short.
        patient = supervisor._watch_limits.stall_s >= 5.0
        if patient and handle.pid == self.pid and "no sign of life" in handle.ended_by:
            raise Violation(f"worker {self.number} (pid {self.pid}) is well, and {handle.ended_by}")

    def _count_end(self) -> None:
        """Note which texts the parent, which ends it now, may hold this end against."""
        if self._counted:
            return
        self._counted = True
        self._take_orders()
        for slot, end in self._answered.items():
            if end <= self.channel.consumed and (self._lied_at is None or end <= self._lied_at):
                del self._given[slot]
        self._weather.ended += 1
        if self._lied_at is not None:
            # What was believed of a liar nobody can tell here; it may be held against all it had.
            for rows in self._given.values():
                self._weather.ends.update(rows)
                self._weather.alone.update(rows)
            return
        for kind in (False, True):
            kept = [rows for slot, rows in self._given.items() if (slot >= URGENT_SLOT) == kind]
            if kept:
                self._weather.ends.update(kept[0])
                if len(self._given) == 1:
                    self._weather.alone.update(kept[0])

    def _wake(self) -> None:
        self._actor.wake()

    def _die_early(self) -> None:
        """Perhaps end when an order is on its way, with every slot looking as if begun."""
        if self._trouble(0.1):
            self._scribble(Progress.BEGUN)
            self.die(-11)

    def _scribble(self, what: int) -> None:
        for slot in self._slots:
            slot._progress[0] = what

    def _trouble(self, share: float = 1.0) -> bool:
        return self._random.random() < self._weather.trouble * share

    def _life(self) -> Life:
        yield from self._boot()
        while not self._stopping:
            self._take_orders()
            if self._urgent:
                yield from self._encode(self._urgent.popleft())
            elif self._bulk:
                yield from self._encode(self._bulk.popleft())
            elif self._trouble(0.02):
                yield from self._misbehave()
            else:
                yield None
        self.die(0)

    def _boot(self) -> Life:
        draw, weather = self._random, self._weather
        yield draw.choice((0.1, 0.3, 0.3, 2.0, 40.0 if weather.hard_start else 0.5))
        spared = self._world.now < 1003.0 and not weather.hard_start
        if not spared and (weather.storms or draw.random() < weather.boot_trouble):
            self._well = False
            how = draw.choice(("die", "die", "die", "failed", "hang", "lie"))
            if how == "die":
                self.die(draw.choice((-9, -11, 1, -40)))
            elif how == "failed":
                self._say(messages.BootFailed("MemoryError: no more"))
                yield self._world.latency()
                self.die(0)
            elif how == "lie":
                yield from self._lie()
            yield None
        yield from self._send(messages.encode(messages.Ready(DIM)))
        self.is_ready = True

    def _take_orders(self) -> None:
        """Read what has come, as a real worker does between two micro-batches."""
        data = self.channel.to_worker
        while len(data) >= 4:
            end = 4 + int.from_bytes(data[:4], "big")
            if len(data) < end:
                break
            order = messages.decode_for_worker(bytes(data[4:end]))
            del data[:end]
            if isinstance(order, messages.Shutdown):
                self._stopping = True
                continue
            # Of one that lies, an answer may have been taken that it gave too early.
            if order.slot in self._held and self._lied_at is None:
                raise Violation(f"slot {order.slot} was given while it is in use")
            rows = self._rows_of(order)
            self._held[order.slot] = (order, rows)
            self._given.pop(order.slot, None)
            self._given[order.slot] = rows
            self._answered.pop(order.slot, None)
            (self._urgent if order.slot >= URGENT_SLOT else self._bulk).append(order)

    def _rows_of(self, order: messages.Encode) -> list[bytes]:
        slot = self._slots[order.slot]
        ends = slot.offsets[: order.rows + 1].tolist()
        raw = slot.text[: ends[-1]].tobytes()
        return [raw[a:b] for a, b in zip(ends, ends[1:], strict=False)]

    # ── its work ──

    def _encode(self, order: messages.Encode) -> Life:
        slot, (_, rows) = self._slots[order.slot], self._held[order.slot]
        if self._trouble(0.1):
            yield from self._misbehave()
        slot.reached(Progress.BEGUN)
        seconds = self._random.choice((0.001, 0.001, 0.01, 0.1)) * len(rows)
        yield seconds / 2
        yield from self._obey(rows)
        if self._trouble(0.4):
            yield from self._misbehave()
        # Urgent work comes in between two micro-batches.
        self._take_orders()
        while self._urgent and order.slot < URGENT_SLOT:
            yield from self._encode(self._urgent.popleft())
        yield seconds / 2
        answers = [texts.answer(row) for row in rows]
        n = len(rows)
        slot.vectors[:n] = [vector for vector, _ in answers]
        slot.tokens[:n] = [max(1, len(row)) for row in rows]
        slot.status[:n] = [status for _, status in answers]
        slot.reached(Progress.WRITTEN)
        if self._trouble(0.2):
            yield from self._misbehave()
        reasons = {
            row: "ValueError: cannot encode this"
            for row, (_, status) in enumerate(answers)
            if status == RowStatus.FAILED
        }
        yield from self._send(self._done(order, reasons=reasons), answers=order.slot)
        if self._random.random() < self._weather.greed:
            self.resident += 40 * MEGABYTE
        if self._trouble(0.1):
            yield from self._misbehave()

    def _obey(self, rows: list[bytes]) -> Life:
        """Do what a text that is not right does to a worker."""
        for what in sorted({row[:2] for row in rows if row.startswith(b"!")}):
            if what == texts.KILLS:
                self.die(-11)
                yield None
            if what == texts.HANGS:
                self._well = False
                yield None  # nothing but a death ends this
                yield 1e6
            if what == texts.GREEDY and len(rows) > 2:
                self.die(-9)
                yield None
            if what == texts.LIES:
                yield from self._lie()

    # ── what it does wrong ──

    def _misbehave(self) -> Life:
        how = self._random.choice(("die", "die", "die", "hang", "lie", "lie", "scribble", "slow"))
        self._well = False
        self._world.note(f"worker {self.number} (pid {self.pid}) misbehaves: {how}")
        if how == "die":
            self.die(self._random.choice((-9, -9, -11, -6, 0, 1, -40)))
            yield None
        elif how == "hang":
            yield 1e6
        elif how == "lie":
            yield from self._lie()
        elif how == "scribble":
            self._scribble(self._random.choice(_INT64))
            if self._random.random() < 0.5:
                self.die(-11)
                yield None
        else:
            yield self._random.choice((1.0, 10.0))

    def _lie(self) -> Life:
        self._well = False
        if self._lied_at is None:
            self._lied_at = self.channel.written
        lie = self._random.choice(_LIES)
        self._world.note(f"worker {self.number} (pid {self.pid}) lies: {lie.__name__}")
        yield from lie(self)
        if self._random.random() < 0.3:
            self.die(-9)
            yield None

    def _lie_message(self) -> Life:
        """Say something that is well-formed, and wrong."""
        draw = self._random
        orders = [order for order, _ in self._held.values()] or [messages.Encode(0, 0, 0, 1)]
        order = draw.choice(orders)
        wrong = draw.choice((
            {"slot": draw.choice((-1, 0, 3, 7, 1 << 40)), "generation": -1},
            {"shard": order.shard + draw.choice((-1, 1, 5))},
            {"generation": order.generation + draw.choice((-1, 1, 1 << 50))},
            {"real_tokens": -1},
            {"padded_tokens": 1 << 50},
            {"tokenize_s": float("nan")},
            {"encode_s": draw.choice((-1.0, float("inf")))},
            {"reasons": {draw.choice((-1, 99, 1 << 40)): "why"}},
            {"reasons": {0: "x" * 301}},
        ))  # fmt: skip
        yield from self._send(self._done(order, **wrong))

    def _lie_status(self) -> Life:
        """Answer for rows whose status or tokens cannot be."""
        for order, rows in self._held.values():
            slot = self._slots[order.slot]
            if self._random.random() < 0.5:
                slot.status[: len(rows)] = self._random.randrange(3, 256)
            else:
                slot.status[: len(rows)] = 0
                slot.tokens[self._random.randrange(len(rows))] = -7
            yield from self._send(self._done(order))
            return

    def _lie_turn(self) -> Life:
        other = self._random.choice((messages.Ready(DIM), messages.Ready(DIM + 1)))
        for message in (other, messages.BootFailed("no")):
            yield from self._send(messages.encode(message))

    def _lie_bytes(self) -> Life:
        draw = self._random
        noise = draw.choice((
            draw.randbytes(draw.randrange(4, 60)),
            struct.pack("!i", 0),
            struct.pack("!I", draw.choice((1 << 30, 0xFFFFFFFF, 40_000))) + bytes(9),
            struct.pack("!i", 5) + b"\x92\xa5",
            struct.pack("!i", 3) + b"\xc1\xc1\xc1",
            (struct.pack("!i", 3) + b"\x93\x01\x02") * 50,
        ))  # fmt: skip
        self.channel.say(noise)
        yield draw.choice((0.0, 1e6))

    def _lie_closed(self) -> Life:
        self.channel.closed_by_worker = True
        self._world.stirred = True
        yield 1e6

    def _lie_deaf(self) -> Life:
        """Read nothing more, with no room left for orders: who waited for room would wait long."""
        self.channel.deaf = True
        yield 1e6

    def _done(self, order: messages.Encode, **wrong: object) -> bytes:
        known = {
            **{"shard": order.shard, "slot": order.slot, "generation": order.generation},
            **{"real_tokens": order.rows, "padded_tokens": order.rows},
            **{"tokenize_s": 0.0, "encode_s": 0.001, "reasons": {}},
        }
        return msgspec.msgpack.encode(["done", *(known | wrong).values()])

    def _say(self, message: messages.ToParent) -> None:
        data = messages.encode(message)
        self.channel.say(struct.pack("!i", len(data)) + data)

    def _send(self, message: bytes, answers: int | None = None) -> Life:
        """Send a message, mostly whole."""
        frame = struct.pack("!i", len(message)) + message
        if self._random.random() < 0.1:
            cut = self._random.randrange(1, len(frame))
            self.channel.say(frame[:cut])
            if self._trouble(0.5):
                yield from self._misbehave()
            yield self._world.latency()
            frame = frame[cut:]
        end = self.channel.say(frame)
        if answers is not None:
            # From here on the parent may give the slot anew.
            del self._held[answers]
            self._answered[answers] = end
        yield 0.0


_LIES = (
    SimWorker._lie_message,
    SimWorker._lie_message,
    SimWorker._lie_status,
    SimWorker._lie_turn,
    SimWorker._lie_bytes,
    SimWorker._lie_bytes,
    SimWorker._lie_closed,
    SimWorker._lie_deaf,
)
