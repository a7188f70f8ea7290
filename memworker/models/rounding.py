"""Floats to 8 bits: which codes activations get, and how weights are rounded to theirs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]
    Doubles = NDArray[np.float64]

# AVX2 multiplies u8 by s8 and adds each two neighbouring products in 16 bits, which saturate:
# 255 * 128 still fits. Two weights of one sign may therefore sum up to 128 in size, which gives
# a column steps half as large again as keeping every weight within 63. Processors that could
# take more do not, so that they all give the same vectors.
PAIR_LIMIT = 128
_CODE_LIMIT = 127
_TOP = 255
# A range's ends are looked for among at most so many steps a side, each of so many cells of a
# histogram, which so many rows fill.
_RANGE_STEPS, _STEP_CELLS, _RANGE_ROWS = 32, 64, 2048
_LEAST_SHARE = 0.3
_DAMPING = 0.01
_BLOCK = 96


@dataclass(frozen=True, slots=True)
class Grid:
    """The codes of activations: ``x = (code - zero) * scale``, code 0 to 255."""

    scale: np.float32
    zero: int

    def centred(self, rows: Floats) -> Floats:
        """Return what the codes of `rows` stand for, in steps of `scale`."""
        import numpy as np

        codes = np.clip(np.rint(rows / self.scale) + np.float32(self.zero), 0, _TOP)
        centred: Floats = codes - np.float32(self.zero)
        return centred


def choose_grid(rows: Floats, weight: Floats) -> Grid:
    """Choose the range whose codes change ``rows @ weight`` least, in squares.

    Values beyond it are clipped: a few large ones must not coarsen the steps of all.
    The ends are multiples of a power of two, so that the last bits of one processor's
    sums cannot make another model of it.
    """
    import numpy as np

    rows = rows[:: max(len(rows) // _RANGE_ROWS, 1)]
    least, most = min(float(rows.min()), 0.0), max(float(rows.max()), 1e-6)
    step = float(np.exp2(np.ceil(np.log2(max(most, -least) / _RANGE_STEPS))))
    first, last = int(np.floor(least / step)), int(np.ceil(most / step))
    cells = _STEP_CELLS * (last - first)
    importance = np.broadcast_to(np.square(weight).sum(1), rows.shape)
    count, edges = np.histogram(
        rows, bins=cells, range=(first * step, last * step), weights=importance
    )
    middle, found = (edges[1:] + edges[:-1]) / 2, (np.inf, Grid(np.float32(1), 0))
    for low in range(first, min(int(first * _LEAST_SHARE), 0) + 1):
        for high in range(max(int(last * _LEAST_SHARE), 1), last + 1):
            grid = _grid(low * step, high * step)
            error = grid.centred(middle) * grid.scale - middle
            loss = float((np.square(error) * count).sum())
            found = min(found, (loss, grid), key=lambda one: one[0])
    return found[1]


def _grid(low: float, high: float) -> Grid:
    import numpy as np

    scale = (high - low) / _TOP
    return Grid(np.float32(scale), round(-low / scale))


@dataclass(frozen=True, slots=True)
class Int8Weight:
    """A matrix as ``codes * scale``: int8[in, out], float32[out]."""

    codes: NDArray[np.int8]
    scale: Floats


def quantise(weight: Floats, inputs: Floats) -> Int8Weight:
    """Round a matrix to codes in steps of each column's own, safe on AVX2.

    `inputs` are rows that it multiplies, in any unit: each rounding error is made up for by the
    rows of the matrix that are still to be rounded (GPTQ, Frantar et al. 2022).
    """
    import numpy as np

    even, odd = weight[0::2], weight[1::2]
    with_partner = even[: len(odd)]
    together = np.where(with_partner * odd > 0, np.abs(with_partner) + np.abs(odd), 0)
    steps = np.maximum(together.max(0, initial=0) / PAIR_LIMIT, np.abs(weight).max(0) / _CODE_LIMIT)
    scale = np.maximum(steps, 1e-30).astype(np.float32)
    return Int8Weight(_round(weight / scale, _making_up(inputs)), scale)


def _making_up(inputs: Floats) -> Floats:
    """Return by how much the error of a row moves each later row, [in, in].

    The upper root of the inverse Hessian, each row divided by its first number: the inverse
    of the Hessian's own upper root, which takes a third of the products of inverting it whole.
    """
    import numpy as np

    hessian = (inputs.T @ inputs).astype(np.float64)
    hessian[np.diag_indices_from(hessian)] += _DAMPING * np.diag(hessian).mean() + 1e-9
    lower = np.linalg.cholesky(hessian[::-1, ::-1])
    root = _inverse_of_upper(lower[::-1, ::-1].astype(np.float64, copy=False))
    root /= np.diag(root)[:, None]
    making_up: Floats = root.astype(np.float32)
    return making_up


def _inverse_of_upper(matrix: Doubles) -> Doubles:
    """Invert an upper triangular matrix, half by half: the rest is products."""
    import numpy as np

    if len(matrix) <= _BLOCK:
        return np.triu(np.linalg.inv(matrix))
    half = len(matrix) // 2
    inverse = np.zeros_like(matrix)
    first = inverse[:half, :half] = _inverse_of_upper(matrix[:half, :half])
    last = inverse[half:, half:] = _inverse_of_upper(matrix[half:, half:])
    inverse[:half, half:] = -(first @ matrix[:half, half:]) @ last
    return inverse


def _round(wanted: Floats, making_up: Floats) -> NDArray[np.int8]:
    """Round row after row; errors reach the rows of a block at once, those beyond it after it."""
    import numpy as np

    codes = np.zeros(wanted.shape, np.float32)
    for start in range(0, len(wanted), _BLOCK):
        end = min(start + _BLOCK, len(wanted))
        for row in range(start, end):
            codes[row] = _nearest(wanted[row], codes[row - 1] if row % 2 else None)
            error = wanted[row] - codes[row]
            wanted[row + 1 : end] -= np.outer(making_up[row, row + 1 : end], error)
        errors = wanted[start:end] - codes[start:end]
        wanted[end:] -= making_up[start:end, end:].T @ errors
    return codes.astype(np.int8)


def _nearest(wanted: Floats, partner: Floats | None) -> Floats:
    """Round to codes; together with its partner's, each may sum up to PAIR_LIMIT in size."""
    import numpy as np

    codes: Floats = np.clip(np.rint(wanted), -_CODE_LIMIT, _CODE_LIMIT)
    if partner is None:
        return codes
    return np.clip(codes, -PAIR_LIMIT - np.minimum(partner, 0), PAIR_LIMIT - np.maximum(partner, 0))
