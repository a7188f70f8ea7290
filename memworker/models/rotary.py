"""Encoders that turn queries and keys by their places (RoPE): their sizes and weights.

One description for BERT's heirs and for decoders that were trained to embed. A layer is two
blocks, attention and a gated feed-forward layer, each ``after(x + behind(f(before(x))))`` with
up to three normalisations:

=============== ======================= ==============================================
nomic-bert      after                   SwiGLU
ModernBERT      before                  GeGLU; two of three layers look at a window alone
Qwen3           before                  SwiGLU; causal, fewer heads for keys and values
Gemma 3         before and behind       GeGLU (tanh); five of six layers with a window
=============== ======================= ==============================================
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from memworker.models.tensors import Linear, Norm

if TYPE_CHECKING:
    from memworker.models.tensors import Matrix

# Tables of angles have so many rows at least: onnxruntime's operator wants no more texts in a
# run than the table has rows.
_LEAST_PLACES = 4096


class GateKind(StrEnum):
    """What the gate of a feed-forward layer goes through."""

    GELU = "gelu"
    GELU_TANH = "gelu_tanh"
    SILU = "silu"


@dataclass(frozen=True, slots=True)
class Turn:
    """How fast pair `i` of a head's numbers turns a token: ``theta ** (-2i / head) / factor``."""

    theta: float
    factor: float = 1.0


@dataclass(frozen=True, slots=True)
class Reach:
    """What a layer's attention sees: turned how, and keys at most `window` away (0: all)."""

    turn: Turn
    window: int = 0


@dataclass(frozen=True, slots=True)
class RotaryShape:
    """The sizes of an encoder, and where it differs from others; a `reach` for each layer.

    `head` is how many numbers a head has, `scale` what scores are multiplied by. `rms`
    normalisations divide by the root mean square and take no mean away.
    """

    hidden: int
    heads: int
    key_heads: int
    head: int
    feed_forward: int
    positions: int
    reach: tuple[Reach, ...]
    gate: GateKind
    norm_eps: float
    scale: float
    rms: bool = False
    causal: bool = False

    @property
    def layers(self) -> int:
        return len(self.reach)

    @property
    def turns(self) -> tuple[Turn, ...]:
        """The different turns of all layers."""
        return tuple(dict.fromkeys(reach.turn for reach in self.reach))

    @property
    def flops_per_token(self) -> float:
        """Two operations for each weight of the linear layers."""
        attention = 2 * self.hidden * self.head * (self.heads + self.key_heads)
        return 2.0 * self.layers * (attention + 3 * self.hidden * self.feed_forward)


@dataclass(frozen=True, slots=True)
class Norms:
    """The normalisations around one block; None where there is none."""

    before: Norm | None = None
    behind: Norm | None = None
    after: Norm | None = None


@dataclass(frozen=True, slots=True)
class RotaryLayer:
    """One layer; `query_norm` and `key_norm` are over a head's numbers, before they are turned."""

    query: Linear
    key: Linear
    value: Linear
    attention_out: Linear
    attention_norms: Norms
    gate: Linear
    up: Linear
    down: Linear
    feed_norms: Norms
    query_norm: Norm | None = None
    key_norm: Norm | None = None


@dataclass(frozen=True, slots=True)
class RotaryWeights:
    """All that a forward pass needs; `words`, ``[tokens, hidden]``, are scaled as they enter."""

    shape: RotaryShape
    words: Matrix
    norm: Norm | None
    layers: tuple[RotaryLayer, ...]
    last_norm: Norm | None


def angles(shape: RotaryShape, turn: Turn) -> tuple[Matrix, Matrix]:
    """Return cosines and sines by place and pair, float32[places, head / 2]."""
    import numpy as np

    pairs = np.arange(0, shape.head, 2, dtype=np.float64) / shape.head
    speed = (turn.theta**-pairs / turn.factor).astype(np.float32)
    # In float32, as the models were trained: far places differ from exact angles.
    places = np.arange(max(shape.positions, _LEAST_PLACES), dtype=np.float32)
    angle = places[:, None] * speed
    return np.cos(angle), np.sin(angle)
