"""The child's loop: read a header, encode the slot it names, answer with a header.

Between two micro-batches it looks at its pipe, so that an urgent shard waits
for one micro-batch and not for a bulk shard.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from memworker import failpoints
from memworker.diagnosis import refused_by_system, told
from memworker.pool import messages
from memworker.pool.arena import Form, Progress, Region, RowStatus, Slot

_PARENT_CHECK_S = 1.0
_PR_SET_PDEATHSIG = 1
URGENT_SLOT = 2


class SlotTexts(Sequence[str]):
    """The texts of a slot, decoded on access; `form` tells questions from passages."""

    def __init__(
        self,
        offsets: npt.NDArray[np.int32],
        data: npt.NDArray[np.uint8],
        *,
        form: Form = Form.PASSAGE,
    ) -> None:
        self.offsets = offsets
        self.data = data
        self.form = form

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: Any) -> Any:
        return bytes(self.data[self.offsets[index] : self.offsets[index + 1]]).decode()

    def part(self, start: int, end: int) -> SlotTexts:
        """Give some of the texts, over the same bytes."""
        return SlotTexts(self.offsets[start : end + 1], self.data, form=self.form)

    def decode_all(self) -> list[str]:
        """Decode every text at once."""
        return [raw.decode() for raw in self._raw()]

    def token_ids(self) -> tuple[npt.NDArray[np.int32], list[int]]:
        """Give the token ids of all rows, and where each ends, from 0; for the form TOKENS."""
        ends = (self.offsets - self.offsets[0]) >> 2
        raw = bytes(self.data[self.offsets[0] : self.offsets[-1]])
        return np.frombuffer(raw, np.int32), ends.tolist()

    def _raw(self) -> Iterator[bytes]:
        ends = self.offsets.tolist()
        raw, base = bytes(self.data[ends[0] : ends[-1]]), ends[0]
        return (raw[a - base : b - base] for a, b in zip(ends, ends[1:], strict=False))


@dataclass(slots=True)
class SlotResults:
    """Where an encoder writes the result of its texts, row by row.

    `vectors` is float32[n, dim], `tokens` int32[n], `status` uint8[n]
    (`RowStatus`); a FAILED row's vector is not looked at.
    """

    vectors: npt.NDArray[np.float32]
    tokens: npt.NDArray[np.int32]
    status: npt.NDArray[np.uint8]
    real_tokens: int = 0
    padded_tokens: int = 0
    tokenize_s: float = 0.0
    encode_s: float = 0.0
    reasons: dict[int, str] = field(default_factory=dict)

    def part(self, start: int, end: int) -> SlotResults:
        """Give some of the rows, over the same memory, counting from zero."""
        rows = slice(start, end)
        return SlotResults(self.vectors[rows], self.tokens[rows], self.status[rows])

    def fail(self, row: int, reason: str) -> None:
        """Mark a row as failed."""
        self.status[row] = RowStatus.FAILED
        self.reasons[row] = reason

    def add(self, part: SlotResults, start: int = 0) -> None:
        """Add the counts and reasons of a part that begins at `start`."""
        self.real_tokens += part.real_tokens
        self.padded_tokens += part.padded_tokens
        self.tokenize_s += part.tokenize_s
        self.encode_s += part.encode_s
        self.reasons |= {start + row: reason for row, reason in part.reasons.items()}


class Encoder(Protocol):
    """What a worker runs. `encode` yields after each micro-batch."""

    @property
    def dim(self) -> int: ...

    def encode(self, texts: SlotTexts, rows: SlotResults) -> Iterator[None]: ...


class Loader(Protocol):
    """Opens an encoder in the worker. Pickled by value, so it must be small."""

    @property
    def dim(self) -> int: ...

    def __call__(self) -> Encoder: ...


def main(pipe: Any, region: Region, loader: Callable[[], Encoder]) -> None:
    """Run a worker until it is told to stop or its parent is gone."""
    try:
        _settle_process()
        encoder = loader()
    except Exception as error:
        words = _sendable(_words(error), messages.ERROR_CHARS)
        pipe.send_bytes(messages.encode(messages.BootFailed(words)))
        return
    pipe.send_bytes(messages.encode(messages.Ready(dim=int(encoder.dim))))
    try:
        _Loop(pipe, region, encoder).run()
    except (EOFError, BrokenPipeError, ConnectionResetError):
        os._exit(0)


def _words(error: Exception) -> str:
    if refused_by_system(error):
        return told(error)
    return f"{type(error).__name__}: {error}"


def _settle_process() -> None:
    # Threads of the tokenizer would compete with the other workers for cores.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    # Ctrl-C reaches the whole process group; it is the parent's to handle.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM})
    _be_killed_with_parent()
    threading.Thread(target=_leave_with_parent, daemon=True, name="parent-watch").start()


def _be_killed_with_parent() -> None:
    """Let Linux end this process with its parent, also while it is stopped."""
    if sys.platform == "linux":
        # The kernel goes by the thread that started us: the pool's, which outlives its workers.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _leave_with_parent() -> None:
    from multiprocess import connection, parent_process

    parent = parent_process()
    assert parent is not None
    # A fork of the parent may keep the sentinel's pipe open: look at the parent's pid too.
    while not connection.wait([parent.sentinel], timeout=_PARENT_CHECK_S):
        if os.getppid() != parent.pid:
            break
    os._exit(0)


def _sendable(words: str, chars: int) -> str:
    """Cut an exception's words to what a message takes; a lone surrogate is none of it."""
    return words[:chars].encode(errors="replace").decode()


def encode_each(encoder: Encoder, texts: SlotTexts, rows: SlotResults) -> Iterator[None]:
    """Encode, and when that raises, halve until the text that does it stands alone and fails."""
    trial = rows.part(0, len(texts))
    try:
        yield from encoder.encode(texts, trial)
        rows.add(trial)
    except Exception as error:
        if len(texts) == 1:
            rows.fail(0, f"{type(error).__name__}: {error}")
            return
        half = len(texts) // 2
        for start, end in ((0, half), (half, len(texts))):
            part = rows.part(start, end)
            yield from encode_each(encoder, texts.part(start, end), part)
            rows.add(part, start)


class _Loop:
    """Takes shards from the pipe, urgent ones first."""

    def __init__(self, pipe: Any, region: Region, encoder: Encoder) -> None:
        self._pipe = pipe
        self._slots = region.slots
        self._encoder = encoder
        self._bulk: deque[messages.Encode] = deque()
        self._urgent: deque[messages.Encode] = deque()
        self._stopping = False

    def run(self) -> None:
        while not self._stopping:
            self._receive(block=not self._urgent and not self._bulk)
            if self._urgent:
                self._encode(self._urgent.popleft())
            elif self._bulk:
                self._encode(self._bulk.popleft())

    def _receive(self, *, block: bool) -> None:
        while block or self._pipe.poll(0):
            block = False
            message = messages.decode_for_worker(self._pipe.recv_bytes())
            if isinstance(message, messages.Shutdown):
                self._stopping = True
            elif message.slot >= URGENT_SLOT:
                self._urgent.append(message)
            else:
                self._bulk.append(message)

    def _encode(self, order: messages.Encode) -> None:
        slot, n = self._slots[order.slot], order.rows
        slot.reached(Progress.BEGUN)
        rows = SlotResults(slot.vectors[:n], slot.tokens[:n], slot.status[:n])
        texts = SlotTexts(slot.offsets[: n + 1], slot.text, form=Form(order.form))
        urgent = order.slot >= URGENT_SLOT
        for _ in encode_each(self._encoder, texts, rows):
            slot.stepped()
            failpoints.reach("mid_inference")
            self._receive(block=False)
            if self._stopping:
                return
            while self._urgent and not urgent:
                self._encode(self._urgent.popleft())
        self._answer(order, slot, rows)

    def _answer(self, order: messages.Encode, slot: Slot, rows: SlotResults) -> None:
        slot.reached(Progress.WRITTEN)
        done = messages.Done(
            shard=order.shard,
            slot=order.slot,
            generation=order.generation,
            # An encoder may have left numbers of numpy's here.
            real_tokens=int(rows.real_tokens),
            padded_tokens=int(rows.padded_tokens),
            tokenize_s=float(rows.tokenize_s),
            encode_s=float(rows.encode_s),
            reasons={
                row: _sendable(reason, messages.REASON_CHARS)
                for row, reason in rows.reasons.items()
            },
        )
        failpoints.reach("after_slot_write")
        failpoints.write("mid_message", self._pipe.fileno(), messages.framed(done))
        failpoints.reach("after_message")
