"""OpenVINO as an expert would drive it: sorted, packed to few padded tokens, a stream a core.

The strongest peer on a processor. It runs the graph that sentence-transformers exports, of the
same weights; its int8 is NNCF's.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.processes import Outcome, Run, Workload
from bench.transformers_peers import feed, openvino_file
from memworker import interpreters

# Padded tokens a run; the quickest on all texts is kept.
BUDGETS = (512, 1024, 2048)
HINTS = {"fp32": "f32", "bf16": "bf16", "int8": "f32"}


@contextmanager
def openvino_expert(load: Workload, precision: str) -> Iterator[Run]:
    """Open a compiled model with a stream a core, and pack texts for it.

    Each new input shape is compiled when it comes: all that the texts need are there before
    the first turn.
    """
    expert = _Expert(load, precision)
    budget = expert.best_budget(load.texts)

    def run(texts: list[str]) -> Outcome:
        vectors, real, padded = expert.embed(texts, budget)
        return Outcome(
            vectors, real_tokens=real, padded_tokens=padded, setting=f"{budget} tokens a run"
        )

    yield run


class _Expert:
    def __init__(self, load: Workload, precision: str) -> None:
        interpreters.without_telemetry()
        import openvino  # type: ignore[import-not-found]
        from tokenizers import Tokenizer

        self._tokenizer = Tokenizer.from_file(f"{load.model_dir}/tokenizer.json")
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(load.max_tokens)
        settings = {
            "PERFORMANCE_HINT": "THROUGHPUT",
            "NUM_STREAMS": load.threads,
            "INFERENCE_NUM_THREADS": load.threads,
            "INFERENCE_PRECISION_HINT": HINTS[precision],
        }
        graph = openvino_file(load, "int8" if precision == "int8" else "fp32")
        self._compiled = openvino.Core().compile_model(graph, "CPU", settings)
        self._inputs = {tensor.any_name for tensor in self._compiled.inputs}
        self._dim = int(self._compiled.output(0).partial_shape[-1].get_length())
        self._vectors = np.zeros((0, self._dim), np.float32)
        self._queue = openvino.AsyncInferQueue(self._compiled, 2 * load.threads)
        self._queue.set_callback(self._store)

    def best_budget(self, texts: list[str]) -> int:
        """Run all texts twice with each budget: the first time compiles their shapes."""
        took = {}
        for budget in BUDGETS:
            self.embed(texts, budget)
            began = time.perf_counter()
            self.embed(texts, budget)
            took[budget] = time.perf_counter() - began
        return min(took, key=lambda budget: took[budget])

    def embed(self, texts: Sequence[str], budget: int) -> tuple[npt.NDArray[np.float32], int, int]:
        """Return float32[n, dim], and how many tokens were real and how many computed."""
        ids = [found.ids for found in self._tokenizer.encode_batch(list(texts))]
        order = sorted(range(len(ids)), key=lambda row: -len(ids[row]))
        self._vectors = np.zeros((len(ids), self._dim), np.float32)
        start = padded = 0
        while start < len(order):
            rows = order[start : start + max(1, budget // len(ids[order[start]]))]
            given = feed([ids[row] for row in rows])
            padded += given["input_ids"].size
            mask = given["attention_mask"]
            self._queue.start_async(
                {name: array for name, array in given.items() if name in self._inputs},
                (rows, mask),
            )
            start += len(rows)
        self._queue.wait_all()
        return self._vectors, sum(map(len, ids)), padded

    def _store(self, request: Any, given: tuple[list[int], npt.NDArray[np.int64]]) -> None:
        rows, mask = given
        hidden = request.get_output_tensor(0).data
        mean = (hidden * mask[..., None]).sum(axis=1) / mask.sum(axis=1, keepdims=True)
        self._vectors[rows] = mean / np.linalg.norm(mean, axis=1, keepdims=True)
