"""How fast the workers are, for deadlines that follow from the work."""

from __future__ import annotations

# Before anything is measured: slower than any model on any processor in use.
_SLOWEST = 50.0
_TELLING_TOKENS = 512
# What is computed without a step is so many times what the slowest such work took, and so much
# of reading texts: a tokenizer takes a third of that for the worst of them.
_COMPUTE_MARGIN = 5
_BYTE_S = 5e-6


class Pace:
    """Tokens a second of the slowest shard seen, so that a slow machine is no fault.

    The same of processor time, which no other program can lengthen by much, apart for shards
    of a few tokens, which are all latency.
    """

    def __init__(self) -> None:
        self._seen: float | None = None
        self._computed: dict[bool, float] = {}

    @property
    def tokens_per_s(self) -> float:
        return _SLOWEST if self._seen is None else self._seen

    def learn(self, tokens: float, seconds: float) -> None:
        """Note that a shard of so many tokens took so long."""
        if tokens < _TELLING_TOKENS:
            return  # all latency
        speed = max(tokens / max(seconds, 1e-3), _SLOWEST)
        self._seen = speed if self._seen is None else min(self._seen, speed)

    def learn_computing(self, tokens: float, cpu_s: float) -> None:
        """Note that a shard of so many tokens took so much processor time."""
        speed = max(tokens, 1.0) / max(cpu_s, 1e-3)
        large = tokens >= _TELLING_TOKENS
        self._computed[large] = min(self._computed.get(large, speed), speed)

    def computing_s(self, tokens: float, size: int) -> float | None:
        """Give the processor time that such a shard is allowed; None where nothing tells yet.

        The first call of an encoder may load and compile; until one has come to its end
        nothing is held against another.
        """
        if not self._computed:
            return None
        slowest = min(self._computed.values())
        large = tokens >= _TELLING_TOKENS
        speed = self._computed.get(large, slowest)
        return _COMPUTE_MARGIN * max(tokens, 1.0) / speed + _BYTE_S * size

    def forget(self) -> None:
        """Begin anew: what was learnt may come of a worker that is not to be believed."""
        self._seen = None
        self._computed.clear()
