"""How rows become 8-bit codes where each has a scale of its own: chosen by what a product loses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

TOP = 255
_CODE_LIMIT = 127
# What may stand for 0: in the middle of the codes, or nearer to their begin.
_ZEROS = (128, 96, 64, 32, 16, 8)
# How much of an input channel's size may move into the weights; none, unless that is worth it.
_SHARES, _WORTH = (0.4, 0.5, 0.6, 0.7), 0.9
_TRIAL_ROWS = 256


@dataclass(frozen=True, slots=True)
class Coding:
    """How rows become codes: each channel divided, if at all; the code of 0."""

    divisor: Floats | None
    zero: int

    def rows(self, rows: Floats) -> Floats:
        """Return what the codes of rows stand for, divided."""
        import numpy as np

        even = rows if self.divisor is None else rows / self.divisor
        most = np.maximum(even.max(1) / (TOP - self.zero), -even.min(1) / self.zero)
        scale = np.maximum(most, 1e-30)[:, None].astype(np.float32)
        stood: Floats = np.rint(even / scale) * scale
        return stood

    def weight(self, weight: Floats) -> Floats:
        """Return what divided rows are multiplied by."""
        return weight if self.divisor is None else weight * self.divisor[:, None]


def choose_coding(rows: Floats, weights: list[Floats]) -> Coding:
    """Choose what changes the products of some of the rows least."""
    import numpy as np

    weight = np.concatenate(weights, axis=1)
    trial = rows[:: max(len(rows) // _TRIAL_ROWS, 1)]
    plain = Coding(None, _ZEROS[0])
    even = [Coding(_divisor(rows, weight, share), _ZEROS[0]) for share in _SHARES]
    best = min(even, key=lambda coding: _error(coding, trial, weight))
    if _error(best, trial, weight) > _WORTH * _error(plain, trial, weight):
        best = plain
    zeros = [Coding(best.divisor, zero) for zero in _ZEROS]
    return min(zeros, key=lambda coding: _error(coding, trial, weight))


def _divisor(rows: Floats, weight: Floats, share: float) -> Floats:
    """Balance channels as `entry.choose_entry` does, in quarter powers of two for its reason."""
    import numpy as np

    strength = np.power(np.square(np.square(rows)).mean(0, dtype=np.float64), 0.25)
    balance = share * np.log2(np.maximum(strength, 1e-3))
    balance -= (1 - share) / 2 * np.log2(np.maximum(np.square(weight).mean(1), 1e-8))
    divisor: Floats = np.exp2(np.rint(4 * balance) / 4).astype(np.float32)
    return divisor


def _error(coding: Coding, rows: Floats, weight: Floats) -> float:
    """Return how far products of codes are from those of the numbers, in squares."""
    import numpy as np

    entering = coding.weight(weight)
    scale = np.maximum(np.abs(entering).max(0), 1e-30) / _CODE_LIMIT
    rounded = np.rint(entering / scale) * scale
    return float(np.square(coding.rows(rows) @ rounded - rows @ weight).sum())
