"""How rows enter a product: divided by channel, and with a bias riding on them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from memworker.models.tensors import Linear, Norm

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Entry:
    """How hidden rows x enter a product: as ``(x + offset) / divisor``, float32[hidden] each.

    The normalisation before emits them so at no cost. `offset` is the bias of
    what is added to x afterwards: times the divisor, the rows bring it along.
    """

    divisor: Floats
    offset: Floats

    def of_rows(self, rows: Floats) -> Floats:
        """Return plain rows as they enter."""
        entering: Floats = (rows + self.offset) / self.divisor
        return entering

    def of_norm(self, norm: Norm) -> Norm:
        """Return the normalisation that emits rows as they enter."""
        return Norm(norm.scale / self.divisor, (norm.shift + self.offset) / self.divisor)

    def of_linear(self, linear: Linear) -> Linear:
        """Return the product that gives of entering rows what `linear` gives of plain ones."""
        # Nothing is divided in fp32, whose weights are not copied for it.
        plain = bool((self.divisor == 1).all())
        weight = linear.weight if plain else linear.weight * self.divisor[:, None]
        return Linear(weight, linear.bias - self.offset @ linear.weight)


def choose_entry(rows: Floats, linears: tuple[Linear, ...], offset: Floats, share: float) -> Entry:
    """Balance each input channel between activations and weights, |x|^a / |w|^(1-a).

    After SmoothQuant (Xiao et al. 2022, equation 4), but with the fourth-power
    mean of x and the square mean of w for their maxima: one odd token of the
    calibration texts no longer decides. Rounded to quarter powers of two, so
    that the last bits of one processor's sums cannot make another model of it.
    """
    import numpy as np

    strength = np.power(np.square(np.square(rows + offset)).mean(0, dtype=np.float64), 0.25)
    weight = np.mean([np.square(part.weight).mean(1) for part in linears], axis=0)
    balance = share * np.log2(np.maximum(strength, 1e-3))
    balance -= (1 - share) / 2 * np.log2(np.maximum(weight, 1e-8))
    return Entry(np.exp2(np.rint(4 * balance) / 4).astype(np.float32), offset)
