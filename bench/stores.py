"""memworker's memory layer and Mem0's, each as a contestant that runs in its own process.

Both compute from the same weights, truncate at the same token and may use the
same number of threads. Started by `bench.processes.Contestant`; every line on
stdin asks for one operation.

Mem0 is set up as its documentation says, with local parts only: `infer=False`, so
that no language model is called; its fastembed provider, whose `TextEmbedding`
is given the same local ONNX file; local Qdrant on disk. Without network it has no
BM25 stop words and without spaCy no lemmas, so it is spared that work here. Threads
that share its local Qdrant get errors from SQLite, so concurrent callers
take turns behind a lock. Its two SQLite files are synced at every add, LanceDB's are
not: on a memory file system (TMPDIR=/dev/shm) neither side waits for a disk.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from bench.peers import FASTEMBED_NAME, SORTED_BATCH
from bench.processes import Absent, open_answers

LIMIT = 10
MODES = ("vector", "text", "hybrid")
TABLE = "memories"
WARM_UP_ADDS = 4
FILL_ROWS = 10_000
# A stored vector's cosine to the text it is a neighbour of is then about 0.9.
FILL_NOISE = 0.5

Floats: TypeAlias = npt.NDArray[np.float32]
Request: TypeAlias = dict[str, Any]
Answer: TypeAlias = dict[str, Any]


@dataclass(frozen=True, slots=True)
class StoreLoad:
    """What a contestant opens, and how many memories it holds before the first turn."""

    model: str
    precision: str
    max_tokens: int | None
    model_dir: str
    folder: str
    threads: int
    stored: int
    per_user: int
    texts: list[str]

    def save(self, path: Path) -> Path:
        path.write_text(json.dumps(asdict(self)))
        return path

    @classmethod
    def load(cls, path: Path) -> StoreLoad:
        return cls(**json.loads(path.read_text()))

    @property
    def users(self) -> list[str]:
        """The users that the stored memories belong to."""
        return [f"user-{number}" for number in range(-(-self.stored // self.per_user))]


@dataclass(frozen=True, slots=True)
class Store:
    """What is measured of a memory layer; every call returns when it is done."""

    add: Callable[[str, str], object]
    add_batch: Callable[[list[str], str], object]
    search: Callable[..., object]
    embed_query: Callable[[str], object]
    modes: Sequence[str] = ("vector",)
    recall: Callable[[str, str], float] | None = None


@dataclass(frozen=True, slots=True)
class Fill:
    """A chunk of memories that are stored before the first turn."""

    texts: list[str]
    vectors: Floats
    users: list[str]


def fill(load: StoreLoad, base: Floats) -> Iterator[Fill]:
    """Yield `load.stored` memories of mixed users: neighbours of real texts, float32[n, dim].

    Random directions would all be equally far from a query, and embedding so
    many texts takes a transformer half an hour.
    """
    random, users = np.random.default_rng(0), load.users
    for start in range(0, load.stored, FILL_ROWS):
        rows = range(start, min(start + FILL_ROWS, load.stored))
        near = random.integers(0, len(base), len(rows))
        noise = random.standard_normal((len(rows), base.shape[1]), np.float32)
        vectors = base[near] + noise * np.float32(FILL_NOISE / base.shape[1] ** 0.5)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        texts = [f"{load.texts[at]} ({row})" for at, row in zip(near, rows, strict=True)]
        yield Fill(texts, vectors, [users[row % len(users)] for row in rows])


@contextmanager
def memworker_store(load: StoreLoad) -> Iterator[Store]:
    """Open this project's memory layer on a filled and indexed table."""
    from memworker import EmbeddingPool, Memory, Table
    from memworker.errors import ModelError, UsageError

    try:
        pool = EmbeddingPool(
            load.model, precision=load.precision, max_tokens=load.max_tokens, workers=load.threads
        )
    except (UsageError, ModelError) as error:
        raise Absent(f"not available: {error}") from error
    with pool:
        with Memory(load.folder, table=TABLE, pool=pool):
            pass
        table = Table.open(load.folder, TABLE)
        if load.stored:
            fill_table(table, load, pool.embed(load.texts))
        with Memory(load.folder, table=TABLE, pool=pool) as memory:
            search = partial(_search, memory)
            yield Store(
                add=lambda text, user: memory.add(text, user_id=user),
                add_batch=lambda texts, user: memory.add_batch(texts, user_id=user),
                search=search,
                embed_query=lambda query: pool.embed([query], kind="query"),
                modes=MODES,
                recall=partial(_recall, search, pool, table),
            )


@contextmanager
def mem0_store(load: StoreLoad) -> Iterator[Store]:
    """Open Mem0 on a filled local Qdrant collection."""
    memory, lock = _open_mem0(load), threading.Lock()
    if load.stored:
        base = memory.embedding_model.dense_model.embed(load.texts, batch_size=SORTED_BATCH)
        _close_mem0(memory)
        _fill_qdrant(load, np.array(list(base), np.float32))
        memory = _open_mem0(load)

    def add(content: Any, user: str) -> object:
        with lock:
            return memory.add(content, user_id=user, infer=False)

    try:
        yield Store(
            add=add,
            add_batch=lambda texts, user: add(
                [{"role": "user", "content": t} for t in texts], user
            ),
            search=lambda query, user, mode: memory.search(
                query, filters={"user_id": user}, top_k=LIMIT
            ),
            embed_query=lambda query: memory.embedding_model.embed(query, "search"),
        )
    finally:
        _close_mem0(memory)


STORES: dict[str, Callable[[StoreLoad], AbstractContextManager[Store]]] = {
    "memworker": memworker_store,
    "mem0": mem0_store,
}


def answer(store: Store, request: Request) -> Answer:
    """Do one operation as often as the request says, and time every call."""
    return _OPERATIONS[request["kind"]](store, request)


def _add(store: Store, request: Request) -> Answer:
    add = partial(_timed, lambda text: store.add(text, request["user"]))
    started = time.perf_counter()
    if request["callers"] == 1:
        latencies = [add(text) for text in request["texts"]]
    else:
        with ThreadPoolExecutor(request["callers"]) as callers:
            latencies = list(callers.map(add, request["texts"]))
    return {"seconds": time.perf_counter() - started, "latencies_ms": latencies}


def _add_batch(store: Store, request: Request) -> Answer:
    texts, rows = request["texts"], request["rows"]
    batches = [texts[start : start + rows] for start in range(0, len(texts), rows)]
    add = partial(_timed, lambda batch: store.add_batch(batch, request["user"]))
    latencies = [add(batch) for batch in batches]
    return {"seconds": sum(latencies) / 1e3, "latencies_ms": latencies}


def _search_all(store: Store, request: Request) -> Answer:
    """Time every search, and right before it the embedding of its query alone."""
    mode, embeds, latencies = request["mode"], [], []
    for query, user in zip(request["texts"], request["users"], strict=True):
        embeds.append(_timed(store.embed_query, query) if mode != "text" else 0.0)
        latencies.append(_timed(partial(store.search, user=user, mode=mode), query))
    return {"seconds": sum(latencies) / 1e3, "latencies_ms": latencies, "embed_ms": embeds}


def _recall_all(store: Store, request: Request) -> Answer:
    if store.recall is None:
        return {}
    pairs = zip(request["texts"], request["users"], strict=True)
    return {"recall": [store.recall(query, user) for query, user in pairs]}


_OPERATIONS: dict[str, Callable[[Store, Request], Answer]] = {
    "add": _add,
    "add_batch": _add_batch,
    "search": _search_all,
    "recall": _recall_all,
}


def _timed(call: Callable[[Any], object], argument: object) -> float:
    started = time.perf_counter()
    call(argument)
    return (time.perf_counter() - started) * 1e3


def fill_table(table: Any, load: StoreLoad, base: Floats) -> None:
    import pyarrow as pa

    from memworker import records

    for chunk in fill(load, base):
        users = {"user_id": pa.array(chunk.users)}
        table.append(records(None, pa.array(chunk.texts), chunk.vectors, scopes=users))
    table.optimize()


def _search(memory: Any, query: str, user: str, mode: str) -> list[Any]:
    found = memory.search(query, filters={"user_id": user}, limit=LIMIT, mode=mode)
    return found["results"]  # type: ignore[no-any-return]


def _recall(
    search: Callable[..., list[Any]], pool: Any, table: Any, query: str, user: str
) -> float:
    """Give the share of the exactly nearest rows that the search finds."""
    vector = pool.embed([query], kind="query")[0]
    exact = table.search(
        vector, limit=LIMIT, where={"user_id": user}, exact=True, columns=["created_at"]
    )
    found = {hit["id"] for hit in search(query, user, "vector")}
    return sum(hit.id in found for hit in exact) / max(len(exact), 1)


def _open_mem0(load: StoreLoad) -> Any:
    """Make Mem0 from a config; its fastembed provider gets our ONNX file. Raises Absent."""
    os.environ |= {"MEM0_TELEMETRY": "False", "MEM0_DIR": load.folder, "HF_HUB_OFFLINE": "1"}
    try:
        import mem0.embeddings.fastembed as provider
        from fastembed import TextEmbedding
        from mem0 import Memory
    except ImportError as error:
        raise Absent(f"not installed ({error}): pip install mem0ai fastembed") from error
    # The provider hands over a name alone, and would look for the files in the network.
    provider.TextEmbedding = partial(
        TextEmbedding, specific_model_path=load.model_dir, threads=load.threads
    )
    store = {"path": f"{load.folder}/qdrant", "collection_name": TABLE, "on_disk": True}
    store["embedding_model_dims"] = 384
    return Memory.from_config(
        {
            "embedder": {
                "provider": "fastembed",
                "config": {"model": FASTEMBED_NAME, "embedding_dims": 384},
            },
            "vector_store": {"provider": "qdrant", "config": store},
            # Made, never called.
            "llm": {"provider": "openai", "config": {"api_key": "unused"}},
            "history_db_path": f"{load.folder}/history.db",
        }
    )


def _close_mem0(memory: Any) -> None:
    memory.vector_store.client.close()
    memory.close()


def _fill_qdrant(load: StoreLoad, base: Floats) -> None:
    """Write the points to the disk as local Qdrant does, without its sync a point.

    Through Mem0's insert 200,000 take half an hour.
    """
    from qdrant_client.local.persistence import CollectionPersistence
    from qdrant_client.models import PointStruct

    now = datetime.now(UTC).isoformat()
    points = CollectionPersistence(f"{load.folder}/qdrant/collection/{TABLE}")
    points.storage.execute("PRAGMA synchronous=OFF")
    points.storage.execute("PRAGMA journal_mode=MEMORY")
    for chunk in fill(load, base):
        for text, vector, user in zip(
            chunk.texts, chunk.vectors.tolist(), chunk.users, strict=True
        ):
            payload = {"data": text, "user_id": user, "role": "user"}
            payload |= {"created_at": now, "updated_at": now}
            points.persist(PointStruct(id=str(uuid.uuid4()), vector={"": vector}, payload=payload))
    points.close()


def serve(name: str, load: StoreLoad) -> None:
    """Be the child: open, fill, then an answer for every line on stdin."""
    answers = open_answers()
    try:
        with STORES[name](load) as store:
            print(json.dumps({"first_ms": _warm_up(store)}), file=answers)
            for line in sys.stdin:
                print(json.dumps(answer(store, json.loads(line))), file=answers)
    except Absent as absence:
        print(json.dumps({"absent": str(absence)}), file=answers)


def _warm_up(store: Store) -> dict[str, float]:
    """Add and search a little; gives what the first search of a mode took, in ms."""
    first: dict[str, float] = {}
    for number in range(WARM_UP_ADDS):
        store.add(f"This is said before anything is measured ({number}).", "warm-up")
        for mode in store.modes:
            search = partial(store.search, user="warm-up", mode=mode)
            first.setdefault(mode, _timed(search, "before anything is measured"))
    return first


if __name__ == "__main__":
    serve(sys.argv[1], StoreLoad.load(Path(sys.argv[2])))
