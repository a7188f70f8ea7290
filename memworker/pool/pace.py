"""How fast the workers are, for deadlines that follow from the work."""

from __future__ import annotations

# Before anything is measured: slower than any model on any processor in use.
_SLOWEST = 50.0
_TELLING_TOKENS = 512


class Pace:
    """Tokens a second of the slowest shard seen, so that a slow machine is no fault."""

    def __init__(self) -> None:
        self._seen: float | None = None

    @property
    def tokens_per_s(self) -> float:
        return _SLOWEST if self._seen is None else self._seen

    def learn(self, tokens: float, seconds: float) -> None:
        """Note that a shard of so many tokens took so long."""
        if tokens < _TELLING_TOKENS:
            return  # all latency
        speed = max(tokens / max(seconds, 1e-3), _SLOWEST)
        self._seen = speed if self._seen is None else min(self._seen, speed)

    def forget(self) -> None:
        """Begin anew: what was learnt may come of a worker that is not to be believed."""
        self._seen = None
