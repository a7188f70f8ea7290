"""What people use today, and memworker, each as a contestant that runs in its own process.

All compute from the same weights, truncate at the same token and may use the
same number of threads. Started by `bench.processes.Contestant`.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt

from bench import static_peers
from bench.openvino_peer import HINTS, openvino_expert
from bench.processes import Absent, Opener, Outcome, Run, Workload, serve
from bench.transformers_peers import feed, sentence_transformer, sentence_transformers

FASTEMBED_NAME = "sentence-transformers/all-MiniLM-L6-v2"
FASTEMBED_BATCH = 256
SORTED_BATCH = 8
TORCH_BATCH = 32
MUTEX_CALLERS = 10


@dataclass(frozen=True, slots=True)
class Peer:
    """A contestant: how it is opened, and what it pads together (`batch` rows at a time)."""

    open: Opener
    what: str
    batch: int = 1
    sorts: bool = False
    slow: bool = False
    needs: tuple[str, ...] = ()

    def padded_tokens(self, texts: Sequence[str], counts: npt.NDArray[np.int64]) -> int:
        """Count the tokens it computes, from the real token counts."""
        if self.sorts:
            counts = counts[_longest_first(texts)]
        starts = range(0, len(counts), self.batch)
        cuts = [counts[start : start + self.batch] for start in starts]
        return sum(int(cut.max()) * len(cut) for cut in cuts)

    def missing(self) -> str:
        """Name the first package it needs that is not installed."""
        return next((name for name in self.needs if not _installed(name)), "")


def _installed(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:  # the package that it is a part of
        return False


@contextmanager
def memworker_pool(load: Workload) -> Iterator[Run]:
    """Open this project's pool."""
    from memworker import EmbeddingPool
    from memworker.errors import ModelError, UsageError

    try:
        pool = EmbeddingPool(
            load.model, precision=load.precision, max_tokens=load.max_tokens, workers=load.threads
        )
    except (UsageError, ModelError) as error:
        raise Absent(f"not available: {error}") from error

    def run(texts: list[str]) -> Outcome:
        before = pool.work
        vectors = pool.embed(texts)
        work = pool.work
        return Outcome(
            vectors,
            real_tokens=work.real_tokens - before.real_tokens,
            padded_tokens=work.padded_tokens - before.padded_tokens,
        )

    with pool:
        yield run


@contextmanager
def fastembed_parallel(load: Workload) -> Iterator[Run]:
    """Open fastembed's own process pool, batch size as it comes."""
    model = _fastembed(load)

    def run(texts: list[str]) -> Outcome:
        started = time.perf_counter()
        list(model.embed(iter(texts[:1]), parallel=load.threads))
        startup_s = time.perf_counter() - started
        vectors = np.array(list(model.embed(iter(texts), parallel=load.threads)))
        # It starts its processes anew for every call: taken off here and in the call itself.
        return Outcome(vectors, apart_s=2 * startup_s)

    yield run


@contextmanager
def fastembed_one(load: Workload) -> Iterator[Run]:
    """Open fastembed as Mem0 uses it: one text a call."""
    model = _fastembed(load)
    yield lambda texts: Outcome(np.array([_one(model, text) for text in texts]))


@contextmanager
def fastembed_mutex(load: Workload) -> Iterator[Run]:
    """Open fastembed as AgentMem uses it: many callers, one model, one lock."""
    model, lock = _fastembed(load), threading.Lock()

    def locked(text: str) -> npt.NDArray[Any]:
        with lock:
            return _one(model, text)

    with ThreadPoolExecutor(MUTEX_CALLERS) as callers:
        yield lambda texts: Outcome(np.array(list(callers.map(locked, texts))))


@contextmanager
def fastembed_sorted(load: Workload) -> Iterator[Run]:
    """Open fastembed as an expert would: texts sorted by length by hand, small batches."""
    model = _fastembed(load)

    def run(texts: list[str]) -> Outcome:
        order = _longest_first(texts)
        found = np.array(list(model.embed([texts[i] for i in order], batch_size=SORTED_BATCH)))
        vectors = np.empty_like(found)
        vectors[order] = found
        return Outcome(vectors)

    yield run


@contextmanager
def one_session(load: Workload) -> Iterator[Run]:
    """Open one ONNX Runtime session on all threads, one text a call."""
    encode = plain_session(load.model_dir, load.max_tokens, threads=load.threads)
    yield lambda texts: Outcome(np.array([encode(text) for text in texts]))


@contextmanager
def shared_session(load: Workload) -> Iterator[Run]:
    """Open one single-threaded session that Python threads share, one text a call."""
    encode = plain_session(load.model_dir, load.max_tokens, threads=1)
    with ThreadPoolExecutor(load.threads) as callers:
        yield lambda texts: Outcome(np.array(list(callers.map(encode, texts))))


@contextmanager
def lancedb_registry(load: Workload) -> Iterator[Run]:
    """Open LanceDB's embedding registry; a run is a `table.add` into a new table."""
    import lancedb
    from lancedb.embeddings import get_registry
    from lancedb.pydantic import LanceModel, Vector

    with TemporaryDirectory() as folder:
        sentence_transformer(load).save(f"{folder}/model")
        function = get_registry().get("sentence-transformers").create(name=f"{folder}/model")

        class Row(LanceModel):  # type: ignore[misc]
            text: str = function.SourceField()
            vector: Vector(function.ndims()) = function.VectorField()  # type: ignore[valid-type]

        database = lancedb.connect(f"{folder}/db")

        def run(texts: list[str]) -> Outcome:
            table = database.create_table("bench", schema=Row, mode="overwrite")
            table.add([{"text": text} for text in texts])
            started = time.perf_counter()
            vectors = np.stack(table.to_arrow()["vector"].to_numpy())
            return Outcome(vectors, apart_s=time.perf_counter() - started)

        yield run


@contextmanager
def independent_session(load: Workload) -> Iterator[Run]:
    """Open one single-threaded session of memworker's own graph, fed with cut batches.

    No pool, no pipe, no other process: what a worker could do at best.
    """
    from memworker.models import ready_model
    from memworker.pool import Tokenizer, open_session

    model = ready_model(load.model, precision=load.precision, max_tokens=load.max_tokens)
    special = model.spec.add_special_tokens
    tokenize = Tokenizer(model.tokenizer, model.max_tokens, add_special_tokens=special)
    session = open_session(model)

    def run(texts: list[str]) -> Outcome:
        ids, _ = tokenize(texts)
        ends = np.cumsum(load.batches if len(texts) == sum(load.batches) else [len(texts)])
        found, start = [], 0
        for end in ends:
            found.append(run_padded(session, ids[start:end]))
            start = end
        tokens = sum(map(len, ids))
        return Outcome(np.concatenate(found), real_tokens=tokens, padded_tokens=tokens)

    yield run


_TORCH = ("torch", "sentence_transformers")

PEERS: dict[str, Peer] = {
    "fastembed-parallel": Peer(
        fastembed_parallel, "fastembed parallel=N, batch 256", FASTEMBED_BATCH, slow=True
    ),
    "fastembed-one": Peer(fastembed_one, "fastembed, one text a call"),
    "fastembed-mutex": Peer(fastembed_mutex, "fastembed behind a mutex, 10 threads"),
    "fastembed-sorted": Peer(
        fastembed_sorted, "fastembed, sorted by hand, batch 8", SORTED_BATCH, sorts=True
    ),
    "one-session": Peer(one_session, "one session on N threads, one text a call"),
    "shared-session": Peer(shared_session, "one session, 1 thread, shared by N"),
    "sentence-transformers": Peer(
        partial(sentence_transformers, backend="torch"),
        "sentence-transformers, torch",
        needs=_TORCH,
    ),
    "sentence-transformers-onnx": Peer(
        partial(sentence_transformers, backend="onnx"),
        "sentence-transformers, onnx O3",
        needs=(*_TORCH, "optimum.onnxruntime"),
    ),
    "sentence-transformers-openvino": Peer(
        partial(sentence_transformers, backend="openvino"),
        "sentence-transformers, openvino as it comes",
        needs=(*_TORCH, "optimum.intel", "openvino"),
    ),
    "sentence-transformers-openvino-int8": Peer(
        partial(sentence_transformers, backend="openvino", precision="int8"),
        "sentence-transformers, openvino int8",
        needs=(*_TORCH, "optimum.intel", "openvino", "nncf"),
    ),
    **{
        f"openvino-expert-{precision}": Peer(
            partial(openvino_expert, precision=precision),
            f"OpenVINO by an expert, {precision}",
            needs=(*_TORCH, "optimum.intel", "openvino", "nncf"),
        )
        for precision in HINTS
    },
    "lancedb-registry": Peer(
        lancedb_registry,
        "LanceDB embedding registry, table.add",
        TORCH_BATCH,
        sorts=True,
        needs=_TORCH,
    ),
}

# A mean of token vectors: nothing is computed for what is padded.
STATIC_PEERS: dict[str, Peer] = {
    "wordllama": Peer(static_peers.wordllama, "wordllama itself", needs=("wordllama",)),
    "model2vec": Peer(static_peers.model2vec, "model2vec's StaticModel", needs=("model2vec",)),
}

_OURS: dict[str, Opener] = {"memworker": memworker_pool, "independent": independent_session}


def _fastembed(load: Workload) -> Any:
    from fastembed import TextEmbedding

    return TextEmbedding(
        model_name=FASTEMBED_NAME, specific_model_path=load.model_dir, threads=load.threads
    )


def _one(model: Any, text: str) -> npt.NDArray[Any]:
    return next(iter(model.embed([text])))


def plain_session(model_dir: str, max_tokens: int, *, threads: int) -> Any:
    """Make a function of one text from plain onnxruntime, tokenizers and numpy."""
    import onnxruntime
    from tokenizers import Tokenizer

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(
        f"{model_dir}/model.onnx", options, providers=["CPUExecutionProvider"]
    )
    tokenizer = Tokenizer.from_file(f"{model_dir}/tokenizer.json")
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_tokens)
    # One text has no padding: its mean needs no mask.
    return partial(_encode_one, session, tokenizer)


def _encode_one(session: Any, tokenizer: Any, text: str) -> npt.NDArray[Any]:
    tokens = run_padded(session, [tokenizer.encode(text).ids])[0]
    mean = tokens.mean(axis=0)
    return mean / np.linalg.norm(mean)  # type: ignore[no-any-return]


def run_padded(session: Any, ids: list[list[int]]) -> npt.NDArray[np.float32]:
    """Run token ids as one batch, padded to the longest."""
    wanted = {given.name for given in session.get_inputs()}
    feeds = {name: value for name, value in feed(ids).items() if name in wanted}
    return session.run([session.get_outputs()[0].name], feeds)[0]  # type: ignore[no-any-return]


def _longest_first(texts: Sequence[str]) -> npt.NDArray[np.int64]:
    return np.argsort([-len(text) for text in texts], kind="stable")


if __name__ == "__main__":
    name, path = sys.argv[1:]
    peer = {**PEERS, **STATIC_PEERS}.get(name)
    serve(peer.open if peer else _OURS[name], Path(path))
