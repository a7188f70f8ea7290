"""The parts that bf16 graphs share, in OpenVINO's plain operators: products, norms, pooling.

::

    input_ids int32[n, tokens], attention_mask float32[n, tokens]
      └ rows of a family's own graph ─ pooling ─ L2 ─ embedding  float32[n, dim]
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memworker import interpreters
from memworker.models.family import family_of, read_config
from memworker.models.head import Head
from memworker.models.spec import Pooling
from memworker.models.tensors import Linear, Norm

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

# What is added to the score of a masked token: its share becomes 0, and all masked stay finite.
MASKED = -1e4


def write(weights: Path, head: Head, path: Path) -> None:
    """Read a model of any family, and save its graph to `path`; weights come to lie beside it."""
    interpreters.without_telemetry()
    import openvino

    config = read_config(weights.parent)
    family = family_of(config)
    model = family.openvino_model(family.read(weights, config), head)
    openvino.save_model(model, path, compress_to_fp16=False)


def model_of(token_rows: Callable[[Any, Any], Any], head: Head, name: str) -> Any:
    """Return the model that pools what `token_rows` makes of ids and mask."""
    import numpy as np
    from openvino import Model, opset15 as op

    ids = op.parameter([-1, -1], np.int32, name="input_ids")
    mask = op.parameter([-1, -1], np.float32, name="attention_mask")
    pooled = _pool(head.pooling, token_rows(ids, mask), mask)
    if head.normalize:
        pooled = op.normalize_l2(pooled, ints(1), 1e-12, "max")
    model = Model([op.result(pooled, name="embedding")], [ids, mask], name)
    for given, name in zip(model.inputs, ("input_ids", "attention_mask"), strict=True):
        given.get_tensor().set_names({name})
    return model


def _pool(pooling: Pooling, rows: Any, mask: Any) -> Any:
    from openvino import opset15 as op

    if pooling is Pooling.CLS:
        return op.gather(rows, axis(0), axis(1))
    if pooling is Pooling.LAST:
        counted = op.convert(op.reduce_sum(mask, ints(1), True), "i64")
        place = op.maximum(op.subtract(counted, ints(1)), ints(0))
        return op.squeeze(op.gather(rows, place, axis(1), 1), ints(1))
    sums = op.matmul(op.unsqueeze(mask, ints(1)), rows, False, False)
    count = op.maximum(op.reduce_sum(mask, ints(1), True), floats(1.0))
    return op.divide(op.squeeze(sums, ints(1)), count)


def masked_scores(mask: Any) -> Any:
    """Return what is added to all scores of masked tokens, float32[n, 1, 1, tokens]."""
    from openvino import opset15 as op

    below = op.multiply(op.subtract(floats(1.0), mask), floats(MASKED))
    return op.unsqueeze(below, ints(1, 2))


def linear(rows: Any, by: Linear) -> Any:
    """Multiply rows, and add the bias where there is one."""
    import numpy as np
    from openvino import opset15 as op

    product = op.matmul(rows, constant(np.ascontiguousarray(by.weight.T)), False, True)
    return op.add(product, constant(by.bias)) if by.bias.any() else product


def layer_norm(rows: Any, norm: Norm, eps: float) -> Any:
    """Normalise each row over its last axis."""
    from openvino import opset15 as op

    even = op.mvn(rows, ints(-1), True, eps, "INSIDE_SQRT")
    scaled = op.multiply(even, constant(norm.scale))
    return op.add(scaled, constant(norm.shift)) if norm.shift.any() else scaled


def ints(*values: int) -> Any:
    """Return int64[len(values)]."""
    import numpy as np

    return constant(np.array(values, np.int64))


def axis(value: int) -> Any:
    """Return one int64, without dimensions."""
    import numpy as np

    return constant(np.int64(value))


def floats(value: float) -> Any:
    """Return one float32, without dimensions."""
    import numpy as np

    return constant(np.float32(value))


def constant(value: ArrayLike) -> Any:
    """Return a constant of the graph."""
    from openvino import opset15 as op

    return op.constant(value)
