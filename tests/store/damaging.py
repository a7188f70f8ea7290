"""Tables to be damaged, ways to do it, and what is left of their rows."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pyarrow as pa

from memworker.store import Table, VectorSpace, records
from memworker.store.manifest import manifest_path, read_manifest

DIM = 48
SPACE = VectorSpace("all-MiniLM-L6-v2", "fp32", 256, DIM, "f" * 16)
WORDS = "memory agent coffee paris london seven brown likes river number quick letter".split()


def batch(start: int, stop: int) -> pa.Table:
    """Rows as a model that normalises gives them; what is in them follows from their number."""
    vectors = np.empty((stop - start, DIM), np.float32)
    texts = []
    for row, number in enumerate(range(start, stop)):
        random = np.random.default_rng(number)
        vectors[row] = random.normal(size=DIM)
        texts.append(" ".join(random.choice(WORDS, random.integers(3, 30))) + f" {number}")
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    metadata = [json.dumps({"n": n, "tag": f"t{n % 9}"}) for n in range(start, stop)]
    return records(
        pa.array([f"id-{n}" for n in range(start, stop)], pa.string()),
        pa.array(texts, pa.string()),
        vectors,
        scopes={"user_id": pa.array([f"user-{n % 5}" for n in range(start, stop)], pa.string())},
        metadata_json=pa.array(metadata, pa.string()),
    )


def make(db: Path, *sizes: int, name: str = "t") -> Table:
    """A table of so many fragments of so many rows."""
    table = Table.open_or_create(db, name, SPACE)
    start = 0
    for size in sizes:
        table.append(batch(start, start + size))
        start += size
    return table


def folder(db: Path, name: str = "t") -> Path:
    return db / f"{name}.lance"


def manifest(db: Path, name: str = "t"):
    return read_manifest(folder(db, name), Table.open(db, name).version)


def data_files(db: Path, name: str = "t") -> list[Path]:
    return [folder(db, name) / f.files[0].path for f in manifest(db, name).fragments]


def newest_manifest(db: Path, name: str = "t") -> Path:
    return manifest_path(folder(db, name), Table.open(db, name).version)


def zero(path: Path, at: int, count: int = 16_384) -> None:
    raw = bytearray(path.read_bytes())
    raw[at : at + count] = bytes(len(raw[at : at + count]))
    path.write_bytes(raw)


def flip(path: Path, at: int, bit: int = 0) -> None:
    raw = bytearray(path.read_bytes())
    raw[at] ^= 1 << bit
    path.write_bytes(raw)


def flip_padding(path: Path) -> None:
    """Change a byte between two pages, which no row shows."""
    gaps = re.finditer(rb"H{8,}", path.read_bytes())
    flip(path, next(gap.start() + 4 for gap in gaps if gap.end() % 64 == 0))


def cut(path: Path, keep: float = 0.5) -> None:
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])


def one_by_one(db: Path, name: str = "t") -> dict[int, dict | None]:
    """Read each row by its address; None where that cannot be."""
    handle = Table.open(db, name)._handle
    found: dict[int, dict | None] = {}

    def read(addresses: list[int]) -> None:
        try:
            rows = handle.take_row_ids(addresses).with_row_id().to_arrow().to_pylist()
        except Exception:
            if len(addresses) == 1:
                found[addresses[0]] = None
                return
            half = len(addresses) // 2
            read(addresses[:half])
            read(addresses[half:])
            return
        for row in rows:
            vector = np.float32(row["vector"]).tobytes()
            found[row.pop("_rowid")] = row | {"vector": vector}

    for fragment in manifest(db, name).fragments:
        first = fragment.id << 32
        read(list(range(first, first + fragment.physical_rows)))
    return found


def named(damages, *, readable: bool = False) -> set[int]:
    """The addresses of all rows that are called damaged."""
    chosen = (d for d in damages if d.readable == readable)
    return {row for damage in chosen for run in damage.rows for row in run}
