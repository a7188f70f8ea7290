"""What a lone caller's Memory is held against, each in a process of its own.

`lancedb`: LanceDB by itself, on the same rows in the same columns with the same indices, the
vectors at hand. `many`: as many memories added one by one and at once, with the echo encoder.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from bench.processes import open_answers
from bench.stores import LIMIT, TABLE, Answer, Floats, Request, StoreLoad, fill_table
from memworker import EmbeddingPool, Memory, Table, records
from memworker.pool import EchoLoader
from memworker.store import VectorSpace

DIM = 384
HIT_COLUMNS = ("id", "text", "metadata", "user_id", "created_at", "updated_at", "_distance")
_ASKED = 128
_USER = "somebody"


def lancedb_alone(load: StoreLoad) -> Callable[[Request], Answer]:
    """Open LanceDB's own table, and give what times its calls."""
    import lancedb

    table = Table.create(load.folder, TABLE, VectorSpace("none", "fp32", 0, DIM, "none", "cosine"))
    vectors = _directions(4096)
    if load.stored:
        fill_table(table, load, vectors[: len(load.texts)])
    # It sees what others commit, as ours does.
    theirs = lancedb.connect(load.folder, read_consistency_interval=timedelta(0)).open_table(TABLE)

    def search(query: Floats, user: str) -> list[Any]:
        asked = theirs.search(query).distance_type("cosine").limit(LIMIT)
        asked = asked.where(f"user_id = '{user}'", prefilter=True)
        found: list[Any] = asked.select(list(HIT_COLUMNS)).to_arrow().to_pylist()
        return found

    def turn(request: Request) -> Answer:
        texts, user = request["texts"], request["user"]
        near = vectors[np.random.default_rng(len(texts)).integers(0, len(vectors), len(texts))]
        if request["kind"] == "search":
            calls = zip(near, request["users"], strict=True)
            return {"latencies_ms": [_timed(search, *call) for call in calls]}
        rows = [
            records(
                pa.array([f"{user}-{number}"]),
                pa.array([text]),
                near[number : number + 1],
                scopes={"user_id": user},
            )
            for number, text in enumerate(texts)
        ]
        return {"latencies_ms": [_timed(theirs.add, row) for row in rows]}

    return turn


def many(load: StoreLoad) -> Callable[[Request], Answer]:
    """Give what adds memories one by one and at once, and searches both."""

    def turn(request: Request) -> Answer:
        count = request["count"]
        texts = [f"{load.texts[n % len(load.texts)]} ({n})" for n in range(count)]
        with EmbeddingPool(EchoLoader(DIM), workers=1) as pool:
            with Memory(f"{load.folder}/slowly", pool=pool) as memory:
                adds = [
                    _timed(lambda text: memory.add(text, user_id=_USER), text) for text in texts
                ]
                slowly = _figures(memory, load, "slowly")
            with Memory(f"{load.folder}/at-once", pool=pool) as memory:
                memory.add_batch(texts, user_id=_USER)
                Table.open(f"{load.folder}/at-once", "memories").optimize()
                at_once = _figures(memory, load, "at-once")
        add_p50, add_p99 = np.percentile(adds, (50, 99)).tolist()
        return {
            "count": count,
            "add_p50_ms": add_p50,
            "add_p99_ms": add_p99,
            "one_by_one": slowly,
            "at_once": at_once,
        }

    return turn


def _figures(memory: Memory, load: StoreLoad, name: str) -> Answer:
    """Search, as the table is; then what it takes on the disk, before and after upkeep."""
    table = Table.open(Path(load.folder, name), "memories")
    asked = [f"what of {n}" for n in range(_ASKED)]

    def search(text: str) -> object:
        return memory.search(text, filters={"user_id": _USER}, limit=LIMIT)

    took = [_timed(search, text) for text in asked]
    p50, p99 = np.percentile(took, (50, 99)).tolist()
    before = table.info()
    # What a version that was superseded minutes ago takes is not the data's.
    table.optimize(keep_versions=timedelta(0))
    return {
        "search_p50_ms": p50,
        "search_p99_ms": p99,
        "bytes": before.bytes_on_disk,
        "fragments": before.fragments,
        "bytes_tended": table.info().bytes_on_disk,
    }


def _directions(count: int) -> Floats:
    vectors = np.random.default_rng(0).standard_normal((count, DIM), np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


def _timed(call: Callable[..., Any], *given: Any) -> float:
    started = time.perf_counter()
    call(*given)
    return (time.perf_counter() - started) * 1e3


def serve(name: str, load: StoreLoad) -> None:
    """Be the child: open, fill, then an answer for every line on stdin."""
    answers = open_answers()
    turn = {"lancedb": lancedb_alone, "many": many}[name](load)
    print(json.dumps({}), file=answers)
    for line in sys.stdin:
        print(json.dumps(turn(json.loads(line))), file=answers)


if __name__ == "__main__":
    serve(sys.argv[1], StoreLoad.load(Path(sys.argv[2])))
