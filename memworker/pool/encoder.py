"""Token ids to vectors in a given buffer: what encoders share, and one ONNX Runtime session."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from memworker.models import Pooling, Precision, ReadyModel, apply_layers, read_layers
from memworker.pool import plan
from memworker.pool.arena import Form, RowStatus
from memworker.pool.tokenize import TokenIds, Tokenizer
from memworker.pool.worker import SlotResults, SlotTexts

Floats: TypeAlias = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class OnnxLoader:
    """Opens an `OnnxEncoder` in a worker: the model's files and what its texts cost."""

    model: ReadyModel
    costs: plan.Costs

    @property
    def dim(self) -> int:
        return self.model.spec.dim

    def __call__(self) -> OnnxEncoder:
        return OnnxEncoder(self.model, self.costs)


class TokenEncoder(ABC):
    """Tokenises, packs by token count, has the runs done, writes the vectors."""

    def __init__(self, model: ReadyModel, costs: plan.Costs) -> None:
        self.dim = model.spec.dim
        self._spec = model.spec
        self._model = model
        self._costs = costs
        self._layers = read_layers(model.spec.dense, model.home) if model.home else ()
        self._tokenizer = Tokenizer(
            model.tokenizer,
            model.max_tokens,
            add_special_tokens=model.spec.add_special_tokens,
            lowercase=model.spec.lowercase,
        )

    def encode(self, texts: SlotTexts, rows: SlotResults) -> Iterator[None]:
        """Encode a shard, a micro-batch at a time."""
        started = time.perf_counter()
        ids, truncated = self._token_ids(texts)
        counts = np.fromiter(map(len, ids), np.int64, len(ids))
        rows.tokens[:] = counts
        rows.status[:] = np.where(truncated, RowStatus.TRUNCATED, RowStatus.OK)
        rows.tokenize_s = time.perf_counter() - started
        for batch in plan.cut_micro_batches(counts, self._costs):
            started = time.perf_counter()
            length = self._costs.length(max(int(counts[batch[0]]), 1))
            shape = self._costs.rows(len(batch), length), length
            rows.vectors[batch] = self.run([ids[row] for row in batch], shape)
            rows.real_tokens += int(counts[batch].sum())
            rows.padded_tokens += shape[0] * shape[1]
            rows.encode_s += time.perf_counter() - started
            yield

    def _token_ids(self, texts: SlotTexts) -> tuple[Sequence[TokenIds], npt.NDArray[np.bool_]]:
        if texts.form is Form.TOKENS:
            return self._tokenizer.frame(*texts.token_ids())
        is_query = texts.form is Form.QUERY
        prefix = self._spec.query_prefix if is_query else self._spec.passage_prefix
        return self._tokenizer([prefix + text for text in texts.decode_all()])

    @abstractmethod
    def pooled(self, ids: Sequence[TokenIds], shape: tuple[int, int]) -> Floats:
        """Run the graph on one micro-batch, padded to `shape`; a row a text, float32[n, width]."""

    def run(self, ids: Sequence[TokenIds], shape: tuple[int, int]) -> Floats:
        """Run one micro-batch of token ids; do what the graph leaves undone; float32[n, dim]."""
        vectors = apply_layers(self._layers, self.pooled(ids, shape))
        # Here and not in the graph: one graph, and one calibration, serve any number of them.
        vectors = vectors[:, : self.dim]
        if self._model.needs_l2 or self._spec.cut_from:
            vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        return vectors


class OnnxEncoder(TokenEncoder):
    """Runs one ONNX Runtime session."""

    def __init__(self, model: ReadyModel, costs: plan.Costs) -> None:
        super().__init__(model, costs)
        self._session = open_session(model)
        self._inputs = {given.name for given in self._session.get_inputs()}
        self._output = self._session.get_outputs()[0].name

    def feeds(
        self, ids: Sequence[TokenIds], shape: tuple[int, int]
    ) -> dict[str, npt.NDArray[np.int64]]:
        """Give a micro-batch as the session may want it, int64[n, tokens] each."""
        input_ids = np.zeros(shape, np.int64)
        mask = np.zeros(shape, np.int64)
        for row, tokens in enumerate(ids):
            input_ids[row, : len(tokens)] = tokens
            mask[row, : len(tokens)] = 1
        feeds = {"input_ids": input_ids, "attention_mask": mask}
        if "token_type_ids" in self._inputs:
            feeds["token_type_ids"] = np.zeros_like(input_ids)
        return feeds

    def pooled(self, ids: Sequence[TokenIds], shape: tuple[int, int]) -> Floats:
        feeds = self.feeds(ids, shape)
        wanted = {name: value for name, value in feeds.items() if name in self._inputs}
        (output,) = self._session.run([self._output], wanted)
        mask = feeds["attention_mask"]
        pooled = output if self._model.pooled else pool_rows(output, mask, self._spec.pooling)
        return np.asarray(pooled, np.float32)


def pool_rows(
    tokens: npt.NDArray[Any], mask: npt.NDArray[Any], pooling: Pooling
) -> npt.NDArray[Any]:
    """Pool token rows [n, tokens, width] as a model does whose graph leaves it undone."""
    if pooling is Pooling.CLS:
        return tokens[:, 0]
    if pooling is Pooling.LAST:
        # Padding is on the right.
        last = np.maximum(mask.sum(1).astype(np.int64) - 1, 0)
        return np.asarray(tokens[np.arange(len(tokens)), last])
    weights = mask[:, :, None].astype(np.float32)
    return np.asarray((tokens * weights).sum(1) / np.maximum(weights.sum(1), 1e-9))


def open_session(model: ReadyModel) -> Any:
    """Open the model's session on one thread.

    Our own graph is fused already and stays at the basic level: more would turn
    Add + LayerNormalization back into the slower SkipLayerNormalization; so does what was
    made of a file from elsewhere in int8. That file itself gets every optimisation.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    if model.pooled or model.precision is Precision.INT8:
        level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    else:
        level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.graph_optimization_level = level
    return onnxruntime.InferenceSession(
        str(model.graph), options, providers=["CPUExecutionProvider"]
    )
