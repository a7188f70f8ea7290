"""An encoder's weights as the graphs of the BERT family want them, whatever files call them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from memworker.models.spec import Activation
from memworker.models.tensors import Linear, Norm

if TYPE_CHECKING:
    from memworker.models.tensors import Matrix


@dataclass(frozen=True, slots=True)
class BertShape:
    """The sizes of a BERT encoder, and where it differs from others.

    `positions` are those that a text's tokens can have; where it is `relative`, scores get
    a bias by how far a key stands from its query.
    """

    layers: int
    heads: int
    hidden: int
    feed_forward: int
    positions: int
    norm_eps: float
    relative: bool = False
    activation: Activation = Activation.GELU

    @property
    def scale(self) -> float:
        """What scores are multiplied by."""
        return float((self.hidden // self.heads) ** -0.5)

    @property
    def causal(self) -> bool:
        return False


@dataclass(frozen=True, slots=True)
class BertLayer:
    query: Linear
    key: Linear
    value: Linear
    attention_out: Linear
    attention_norm: Norm
    feed_in: Linear
    feed_out: Linear
    feed_norm: Norm


@dataclass(frozen=True, slots=True)
class BertWeights:
    """All that a forward pass needs; embeddings are ``[rows, hidden]``.

    `positions` begins at a text's first token, and `token_types` is one row of zeros where
    the model has none. `relative`, ``[heads, 2 * positions - 1]``, is what a relative model adds
    in every layer to the score of a key that stands so far behind its query: the middle
    column is for the query's own place, those before it for keys before it. A `typed` encoder
    is told each token's type; to others all are of type 0.
    """

    shape: BertShape
    words: Matrix
    positions: Matrix
    token_types: Matrix
    norm: Norm
    layers: tuple[BertLayer, ...]
    relative: Matrix | None = None
    typed: bool = False
