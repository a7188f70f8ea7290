"""One OpenVINO model, its products in bf16: token ids to vectors in a given buffer.

OpenVINO compiles kernels for each shape of a run when it first comes, about 5 ms and 1 MB a
shape: costs name few (`Costs.lengths`), and it keeps few. What a lone text takes is there
before any text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from memworker import interpreters
from memworker.models import ReadyModel
from memworker.pool import plan
from memworker.pool.encoder import Floats, TokenEncoder, pool_rows
from memworker.pool.tokenize import TokenIds

_SETTINGS = {
    "PERFORMANCE_HINT": "LATENCY",
    "NUM_STREAMS": 1,
    "INFERENCE_NUM_THREADS": 1,
    "INFERENCE_PRECISION_HINT": "bf16",
    # Where several workers run, each on the core that the system gives it.
    "ENABLE_CPU_PINNING": False,
    # Kernels kept, of each kind. Making them anew costs 2 to 4 % where 5,000 are kept, whose
    # memory has no bound.
    "CPU_RUNTIME_CACHE_CAPACITY": 16,
}
_WARM_SHAPES = 4


@dataclass(frozen=True, slots=True)
class OpenVinoLoader:
    """Opens an `OpenVinoEncoder` in a worker: the model's files and what its texts cost."""

    model: ReadyModel
    costs: plan.Costs

    @property
    def dim(self) -> int:
        return self.model.spec.dim

    def __call__(self) -> OpenVinoEncoder:
        return OpenVinoEncoder(self.model, self.costs)


class OpenVinoEncoder(TokenEncoder):
    """Runs one compiled model on one thread."""

    def __init__(self, model: ReadyModel, costs: plan.Costs) -> None:
        super().__init__(model, costs)
        self._request: Any = _compiled(model).create_infer_request()
        for length in costs.lengths[:_WARM_SHAPES]:
            self.run([[0]], (1, length))

    def pooled(self, ids: Sequence[TokenIds], shape: tuple[int, int]) -> Floats:
        input_ids = np.zeros(shape, np.int32)
        mask = np.zeros(shape, np.float32)
        for row, tokens in enumerate(ids):
            input_ids[row, : len(tokens)] = tokens
            mask[row, : len(tokens)] = 1
        found = self._request.infer([input_ids, mask], share_inputs=True, share_outputs=True)
        rows = found[0][: len(ids)]
        if not self._model.pooled:
            rows = pool_rows(rows, mask[: len(ids)], self._spec.pooling)
        return np.asarray(rows, np.float32)


def _compiled(model: ReadyModel) -> Any:
    interpreters.without_telemetry()
    import openvino

    return openvino.Core().compile_model(str(model.graph), "CPU", _SETTINGS)
