"""The sampled rows: read, laid out in a plane, and each with its nearest among them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from memworker.overview.counts import SCOPES
from memworker.store import Table

MOST_SAMPLED = 5000
NEAREST = 8
# What is longer is cut in the page, which says so.
TEXT_CHARACTERS = 600
_METADATA_CHARACTERS = 300
_READ = ("id", "text", "vector", "metadata", "created_at", *SCOPES, "chunk")
# As many as are looked up by an index, or in one look at the ids.
_IDS_A_LOOK = 250
_ROWS_A_BLOCK = 512

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class DrawnRows:
    """Rows as columns for the page, points in the plane, nearest as [place, likeness].

    `spread` is the share of the vectors' variance that the plane shows; `left_out` rows have no
    vector that could be compared.
    """

    columns: dict[str, list[Any]]
    points: list[tuple[float, float]] = field(default_factory=list)
    nearest: list[list[tuple[int, float]]] = field(default_factory=list)
    spread: float = 0.0
    left_out: int = 0

    @property
    def rows(self) -> int:
        return len(self.points)


def draw(table: Table, ids: Sequence[str], *, texts: bool) -> DrawnRows:
    """Read the rows of some ids, and lay them out; one that was deleted meanwhile is left out.

    Without `texts` nothing is told of what a row says.
    """
    there = table.columns
    columns = [name for name in _READ if name in there]
    looks = [ids[i : i + _IDS_A_LOOK] for i in range(0, len(ids), _IDS_A_LOOK)]
    parts = [table.rows({"id": {"in": list(look)}}, columns=columns) for look in looks]
    if not parts:
        return DrawnRows({})
    rows = pa.concat_tables(parts)
    rows, vectors, left_out = _with_vectors(rows, table.space.dim)
    if table.space.distance == "cosine":
        vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    points, spread = plane(vectors)
    told = _columns(rows, texts=texts)
    return DrawnRows(told, points, nearest(vectors, NEAREST), spread, left_out)


def _with_vectors(rows: pa.Table, dim: int) -> tuple[pa.Table, Floats, int]:
    """Leave out rows whose vector another program took away, or no search could find."""
    there = rows.filter(pc.is_valid(rows["vector"]))
    flat = pc.list_flatten(there["vector"].combine_chunks()).to_numpy(zero_copy_only=False)
    vectors: Floats = flat.astype(np.float32).reshape(-1, dim)
    good = np.isfinite(vectors).all(axis=1) & (np.abs(vectors).max(axis=1, initial=0) > 0)
    kept = there.filter(pa.array(good))
    return kept, vectors[good], rows.num_rows - kept.num_rows


def plane(vectors: Floats) -> tuple[list[tuple[float, float]], float]:
    """Give each vector's place on the two axes along which they differ most (PCA), in -1 … 1.

    The second value is the share of their variance that these axes hold.
    """
    n = len(vectors)
    if not n:
        return [], 0.0
    centred = (vectors - vectors.mean(axis=0)).astype(np.float64)
    total = float((centred**2).sum())
    if n < 2 or total < 1e-12:
        return [(0.0, 0.0)] * n, 1.0
    placed = _principal(centred)
    placed *= np.where(placed[np.abs(placed).argmax(axis=0), [0, 1]] < 0, -1.0, 1.0)
    spread = float((placed**2).sum()) / total
    scaled = placed / np.abs(placed).max()
    return [(round(float(x), 4), round(float(y), 4)) for x, y in scaled], min(spread, 1.0)


def _principal(centred: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Give float64[n, 2]: from the smaller of both products, so that no size is slow."""
    n, dim = centred.shape
    placed = np.zeros((n, 2))
    if n <= dim:
        values, axes = np.linalg.eigh(centred @ centred.T)
        found = axes[:, ::-1][:, :2] * np.sqrt(np.maximum(values[::-1][:2], 0.0))
    else:
        _, axes = np.linalg.eigh(centred.T @ centred)
        found = centred @ axes[:, ::-1][:, :2]
    placed[:, : found.shape[1]] = found
    return placed


def nearest(vectors: Floats, most: int) -> list[list[tuple[int, float]]]:
    """Give for each vector the places of the `most` nearest others and how like they are."""
    n, found = len(vectors), []
    k = min(most, n - 1)
    for start in range(0, n if k > 0 else 0, _ROWS_A_BLOCK):
        alike = vectors[start : start + _ROWS_A_BLOCK] @ vectors.T
        rows = np.arange(len(alike))
        alike[rows, start + rows] = -np.inf
        best = np.argpartition(-alike, k - 1, axis=1)[:, :k]
        for row, places in enumerate(best):
            order = sorted(places.tolist(), key=lambda place: (-alike[row, place], place))
            found.append([(place, round(float(alike[row, place]), 3)) for place in order])
    return found or [[] for _ in range(n)]


def _columns(rows: pa.Table, *, texts: bool) -> dict[str, list[Any]]:
    """Give what the page says of each row, of the columns there are."""
    there = rows.column_names
    told: dict[str, list[Any]] = {n: rows[n].to_pylist() for n in SCOPES if n in there}
    if "created_at" in there:
        # By numpy, for which no year is too far.
        moments = rows["created_at"].cast(pa.timestamp("us")).to_numpy()
        told["made"] = moments.astype("datetime64[D]").astype(str).tolist()
    if "text" in there:
        written = pc.fill_null(rows["text"], "")
        told["characters"] = pc.utf8_length(written).to_pylist()
        if texts:
            told["text"] = pc.utf8_slice_codeunits(written, 0, TEXT_CHARACTERS).to_pylist()
    if texts:
        told |= {name: rows[name].to_pylist() for name in ("id", "chunk") if name in there}
        if "metadata" in there:
            told["metadata"] = [_fields(text) for text in rows["metadata"].to_pylist()]
    return told


def _fields(metadata: str | None) -> list[tuple[str, str]]:
    """Give the fields of a row's metadata as text, whatever values they have."""
    try:
        found = json.loads(metadata) if metadata else {}
    except (ValueError, RecursionError):
        found = {"metadata": metadata}
    if not isinstance(found, dict):
        found = {"metadata": found}
    return [(name, _value(value)) for name, value in found.items()]


def _value(value: Any) -> str:
    told = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return told if len(told) <= _METADATA_CHARACTERS else f"{told[:_METADATA_CHARACTERS]}…"
