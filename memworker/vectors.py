"""What makes a vector usable: asked of a model's vectors by the pool, of a table's by the store."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def bad_vectors(vectors: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
    """Return the indices of rows that hold NaN or infinity, or are zero.

    Such rows would be found for every query or for none. One pass without a
    temporary: the squared length of a row is finite and above zero otherwise.
    """
    # Lengths beyond 1e19 overflow here; LanceDB's own cosine could not compare them either.
    with np.errstate(all="ignore"):
        lengths = np.einsum("ij,ij->i", vectors, vectors)
    return np.flatnonzero(~((lengths > 0) & (lengths < np.inf)))
