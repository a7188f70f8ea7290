"""The forward pass of an encoder with rotary positions in numpy, for calibration.

Texts lie one after another in a flat ``float32[all tokens, hidden]``; only attention looks at
where each one ends.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from memworker.models import forward
from memworker.models.rotary import (
    GateKind,
    Norms,
    Reach,
    RotaryLayer,
    RotaryShape,
    RotaryWeights,
    angles,
)
from memworker.models.tensors import Norm

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]


def embed(weights: RotaryWeights, ids: list[list[int]]) -> Floats:
    """Return the rows of all texts' words, float32[all tokens, hidden].

    Raises ModelCorrupt where the tokenizer gives ids that the table does not have.
    """
    return normalise(weights.shape, weights.norm, forward.word_rows(weights.words, ids))


def run_layer(
    shape: RotaryShape, reach: Reach, layer: RotaryLayer, rows: Floats, counts: list[int]
) -> forward.LayerInputs:
    """Run one layer over texts of `counts` tokens and keep what went into its products."""
    tokens = normalise(shape, layer.attention_norms.before, rows)
    context = _attend(shape, reach, layer, tokens, counts)
    projected = forward.apply(layer.attention_out, context)
    rows = _join(shape, layer.attention_norms, projected, rows)
    attended = normalise(shape, layer.feed_norms.before, rows)
    gate, up = forward.apply(layer.gate, attended), forward.apply(layer.up, attended)
    active = _opened(shape.gate, gate) * up
    result = _join(shape, layer.feed_norms, forward.apply(layer.down, active), rows)
    return forward.LayerInputs(tokens, context, attended, active, result)


def normalise(shape: RotaryShape, norm: Norm | None, rows: Floats) -> Floats:
    """Return each row normalised over the last axis; as it is where there is no `norm`."""
    import numpy as np

    if norm is None:
        return rows
    if not shape.rms:
        return forward.normalise(norm, shape.norm_eps, rows)
    size = np.sqrt(np.square(rows).mean(-1, keepdims=True) + np.float32(shape.norm_eps))
    result: Floats = rows / size * norm.scale
    return result


def _join(shape: RotaryShape, norms: Norms, computed: Floats, rows: Floats) -> Floats:
    return normalise(shape, norms.after, rows + normalise(shape, norms.behind, computed))


def _attend(
    shape: RotaryShape, reach: Reach, layer: RotaryLayer, rows: Floats, counts: list[int]
) -> Floats:
    import numpy as np

    def by_head(flat: Floats, norm: Norm | None = None) -> Floats:
        return normalise(shape, norm, flat.reshape(len(flat), -1, shape.head))

    query = by_head(forward.apply(layer.query, rows), layer.query_norm)
    key = by_head(forward.apply(layer.key, rows), layer.key_norm)
    value = by_head(forward.apply(layer.value, rows))
    turning = angles(shape, reach.turn)
    context = np.empty((len(rows), shape.heads, shape.head), np.float32)
    start, times = 0, shape.heads // shape.key_heads
    for count in counts:
        text = slice(start, start := start + count)
        asking = _turned(query[text], turning).swapaxes(0, 1)
        asked = _turned(key[text], turning).swapaxes(0, 1).repeat(times, 0)
        given = value[text].swapaxes(0, 1).repeat(times, 0)
        scores = asking @ asked.swapaxes(1, 2) * np.float32(shape.scale)
        scores[:, _unseen(shape, reach, count)] = -np.inf
        shares = np.exp(scores - scores.max(-1, keepdims=True))
        shares /= shares.sum(-1, keepdims=True)
        context[text] = (shares @ given).swapaxes(0, 1)
    return context.reshape(len(rows), -1)


def _turned(rows: Floats, turning: tuple[Floats, Floats]) -> Floats:
    """Turn ``[tokens, heads, head]`` by the places of one text."""
    import numpy as np

    cosines, sines = (table[: len(rows), None] for table in turning)
    first, second = np.split(rows, 2, axis=-1)
    return np.concatenate(
        [first * cosines - second * sines, second * cosines + first * sines], axis=-1
    )


def _unseen(shape: RotaryShape, reach: Reach, count: int) -> NDArray[np.bool_]:
    """Say which keys each query of a text does not see, bool[count, count]."""
    import numpy as np

    behind = np.arange(count)[:, None] - np.arange(count)
    unseen = behind < 0 if shape.causal else np.zeros_like(behind, bool)
    if reach.window:
        unseen |= np.abs(behind) > reach.window
    return unseen


def _opened(gate: GateKind, rows: Floats) -> Floats:
    import numpy as np

    opened: Floats
    match gate:
        case GateKind.GELU:
            return forward.gelu(rows)
        case GateKind.GELU_TANH:
            cubed = rows + np.float32(0.044715) * rows * rows * rows
            opened = rows * np.float32(0.5) * (1 + np.tanh(np.float32(np.sqrt(2 / np.pi)) * cubed))
        case GateKind.SILU:
            opened = rows / (1 + np.exp(-rows))
    return opened
