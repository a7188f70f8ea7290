"""How many workers, of which size, fit into a given amount of memory.

The amounts are measured (bench/memory_of_a_worker.py prints them again) and
rounded up; memory that processes share counts once.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from memworker.errors import UsageError
from memworker.values import whole

_MIB = 1 << 20
# Interpreter, pyarrow and the scheduler: a parent that does nothing but embed.
_PARENT_BYTES = 48 * _MIB
# Interpreter, ONNX Runtime, tokenizer, session with its weights mapped.
_WORKER_BYTES = 36 * _MIB
# Of it, and of other kinds of worker, what a tokenizer of 30,000 words takes.
_TOKENIZER_BYTES = 11 * _MIB
# What a word takes; in SentencePiece's Unigram each letter of it is a node of a tree.
_WORD_BYTES, _UNIGRAM_WORD_BYTES = 350, 1200
# Activations of a padded token, a dimension: feed-forward, attention, their copies.
_TOKEN_BYTES = 128
# LanceDB, readers, journal and committer; and of each row under way a second copy of its vector,
# ids, keys and metadata in Arrow, and LanceDB's own copies.
_STORE_BYTES = 56 * _MIB
_STORED_ROW_BYTES = 3584
# A row of a window beyond its vector: the text, and what is known of it.
_ROW_BYTES = 512
_WINDOW_ROWS = 8192
# Texts shorter than that on the average are rare, and their rows are small.
_SHORT_TOKENS = 32
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 1 << 10, "mi": 1 << 20, "gi": 1 << 30}


@dataclass(frozen=True, slots=True)
class Budget:
    """What a pool may use: processes, padded tokens a session run, windows under way."""

    workers: int
    batch_tokens: int
    windows_in_flight: int = 3

    def than(self, wanted: Budget) -> str:
        """Say what is less than was wanted."""
        parts = (
            ("workers", self.workers, wanted.workers),
            ("tokens a run", self.batch_tokens, wanted.batch_tokens),
            ("windows under way", self.windows_in_flight, wanted.windows_in_flight),
        )
        return ", ".join(f"{now} {name} instead of {was}" for name, now, was in parts if now != was)


@dataclass(frozen=True, slots=True)
class Footprint:
    """What is fixed about a model's memory, in bytes and dimensions.

    All workers share the weights; each has `worker_bytes`, `token_bytes` for each padded
    token of a session run and number of its row, of which there are `width` (0: as many as a
    vector has), and the region that its slots lie in. The longest text there may be takes
    `longest_bytes` by itself. A window has `window_tokens` a worker. `storing`: the parent
    also puts the rows into a table.
    """

    dim: int
    weights_bytes: int
    region_bytes: int = 0
    worker_bytes: int = _WORKER_BYTES
    token_bytes: int = _TOKEN_BYTES
    storing: bool = False
    window_tokens: int = 1 << 40
    width: int = 0
    longest_bytes: int = 0

    def estimate(self, budget: Budget) -> int:
        """Estimate the bytes that parent and workers hold together at their peak."""
        rows = min(_WINDOW_ROWS, budget.workers * self.window_tokens // _SHORT_TOKENS)
        row = 4 * self.dim + _ROW_BYTES
        parent = _PARENT_BYTES
        if self.storing:
            row += 4 * self.dim + _STORED_ROW_BYTES
            parent += _STORE_BYTES
        activations = budget.batch_tokens * self.token_bytes * (self.width or self.dim)
        activations = max(activations, self.longest_bytes)
        worker = self.worker_bytes + activations + self.region_bytes
        parent += rows * row * budget.windows_in_flight
        return parent + self.weights_bytes + budget.workers * worker


def worker_bytes(tokenizer: Path, beside: int = _WORKER_BYTES) -> int:
    """Return what a worker takes whose tokenizer is that file: each has its own.

    Multilingual ones have 250,000 words, which take 280 MB. `beside` is what a worker takes
    with a common one.
    """
    return beside + max(_tokenizer_bytes(tokenizer) - _TOKENIZER_BYTES, 0)


@cache
def _tokenizer_bytes(path: Path) -> int:
    text = path.read_bytes()
    # Words, and a BPE's merges, however the file is laid out: '["word", -3]', '"word": 3'.
    words = text.count(b'",') + text.count(b'":')
    return words * (_UNIGRAM_WORD_BYTES if b'"Unigram"' in text else _WORD_BYTES)


def fit(allowed_bytes: int, wanted: Budget, footprint: Footprint) -> Budget:
    """Give the largest budget up to `wanted` that stays under `allowed_bytes`.

    What costs least speed goes first: windows under way, then the size of a
    session run, then workers. Raises UsageError when not even the least fits.
    """
    steps = [wanted, replace(wanted, windows_in_flight=2)]
    for tokens in (wanted.batch_tokens // 2, wanted.batch_tokens // 4):
        steps.append(replace(steps[1], batch_tokens=max(tokens, 64)))
    for workers in range(wanted.workers, 0, -1):
        for step in steps:
            budget = replace(step, workers=workers)
            if footprint.estimate(budget) <= allowed_bytes:
                return budget
    least = footprint.estimate(replace(steps[-1], workers=1))
    raise UsageError(
        f"memory of {allowed_bytes / _MIB:,.0f} MiB is not enough: one worker with this model"
        f" needs about {least / _MIB:,.0f} MiB. Allow more, cut texts shorter (max_tokens=,"
        " --max-tokens), or choose a smaller model."
    )


def parse_bytes(amount: int | str) -> int:
    """Read an amount of memory: 4GB, 512MiB, 1.5g, or a number of bytes."""
    if (found := whole(amount)) is not None:
        return found
    if not isinstance(amount, str):
        raise UsageError(f"memory must be an amount such as 4GB or 512MiB, not {amount!r:.80}")
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmg]i?)?b?\s*", amount.lower())
    if match is None:
        raise UsageError(f"memory must be an amount such as 4GB or 512MiB, not {amount!r}")
    return int(float(match[1]) * _UNITS[match[2] or ""])
