"""BERT and what differs from it by names and constants only: one graph for all of them.

========== ====================================================================
RoBERTa    positions are counted after the padding token's own
MPNet      the same, and a bias by how far a key stands from its query; no token types
DistilBERT other names; no token types
========== ====================================================================
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memworker.errors import ModelCorrupt, ModelUnsupported
from memworker.models.family import Config, Family, family_of, read_config, refuse_others, size
from memworker.models.head import Head
from memworker.models.spec import Activation, Precision
from memworker.models.tensors import Tensors
from memworker.models.weights import BertLayer, BertShape, BertWeights

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from memworker.models.tensors import Matrix


@dataclass(frozen=True, slots=True)
class LayerNames:
    """What files call the parts of one encoder layer, and all layers in front of its number."""

    at: str = "encoder.layer"
    query: str = "attention.self.query"
    key: str = "attention.self.key"
    value: str = "attention.self.value"
    attention_out: str = "attention.output.dense"
    attention_norm: str = "attention.output.LayerNorm"
    feed_in: str = "intermediate.dense"
    feed_out: str = "output.dense"
    feed_norm: str = "output.LayerNorm"


@dataclass(frozen=True, slots=True)
class SizeKeys:
    """What config.json calls the sizes."""

    layers: str = "num_hidden_layers"
    heads: str = "num_attention_heads"
    hidden: str = "hidden_size"
    feed_forward: str = "intermediate_size"
    activation: str = "hidden_act"


@dataclass(frozen=True, slots=True)
class BertLike:
    """One family: its names, and where it leaves BERT.

    `pad_position` is the padding token's id where config.json names none, for families that
    count positions from the one behind it; None for those that begin at 0. Of `handled` keys
    the first value is the one that is meant where config.json says nothing.
    """

    model_types: tuple[str, ...]
    names: LayerNames = LayerNames()
    keys: SizeKeys = SizeKeys()
    pad_position: int | None = None
    token_types: bool = True
    relative: bool = False
    handled: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)

    def check(self, config: Config) -> None:
        self._shape(config)

    def dim(self, config: Config) -> int:
        found = config.get(self.keys.hidden)
        return found if isinstance(found, int) else 0

    def position_limit(self, config: Config) -> int:
        try:
            return max(self._positions_there(config), 0)
        except ModelCorrupt:
            return 0

    def flops_per_token(self, config: Config) -> float:
        shape = self._shape(config)
        weights = 4 * shape.hidden * shape.hidden + 2 * shape.hidden * shape.feed_forward
        return 2.0 * shape.layers * weights

    def recipe(self, precision: Precision) -> str:
        from memworker.models import graph, graph_bf16, graph_int8

        recipes = {Precision.INT8: graph_int8.RECIPE, Precision.BF16: graph_bf16.RECIPE}
        return recipes.get(precision, graph.RECIPE)

    def layout(self, precision: Precision) -> str:
        from memworker.models import graph

        return graph.LAYOUT if precision is Precision.FP32 else ""

    def read(self, path: Path, config: Config) -> BertWeights:
        shape = self._shape(config)
        tensors = Tensors(path, "embeddings.word_embeddings.weight")
        bert = BertWeights(
            shape=shape,
            words=tensors.take("embeddings.word_embeddings.weight", (None, shape.hidden)),
            positions=self._positions(tensors, config, shape),
            token_types=self._token_types(tensors, shape),
            norm=tensors.norm("embeddings.LayerNorm", shape.hidden),
            layers=tuple(self._layer(tensors, i, shape) for i in range(shape.layers)),
            relative=self._relative(tensors, shape) if self.relative else None,
        )
        tensors.refuse_untaken("embeddings.", but=("position_ids", "token_type_ids"))
        for number in range(shape.layers):
            tensors.refuse_untaken(f"{self.names.at}.{number}.")
        return bert

    def vocabulary(self, read: BertWeights) -> int:
        return len(read.words)

    def write_fp32(self, read: BertWeights, head: Head, path: Path) -> None:
        from memworker.models.graph import build_bert

        build_bert(read, head, path)

    def write_int8(self, read: BertWeights, head: Head, texts: list[list[int]], path: Path) -> None:
        from memworker.models.graph_int8 import build_bert_int8
        from memworker.models.quantise import quantise_bert

        build_bert_int8(read, quantise_bert(read, texts), head, path)

    def openvino_model(self, read: BertWeights, head: Head) -> Any:
        from memworker.models.graph_bf16 import build_bert_bf16

        return build_bert_bf16(read, head)

    def _shape(self, config: Config) -> BertShape:
        keys = self.keys
        hidden, heads = size(config, keys.hidden), size(config, keys.heads)
        handled = {keys.activation: tuple(_ACTIVATIONS), "embedding_size": (hidden,)}
        refuse_others(config, handled | dict(self.handled))
        if hidden % heads or self._positions_there(config) < 1:
            raise ModelCorrupt(
                f"config.json has sizes that do not fit: {heads} heads of {hidden} numbers, "
                f"{self._positions_there(config)} positions for tokens."
            )
        return BertShape(
            layers=size(config, keys.layers),
            heads=heads,
            hidden=hidden,
            feed_forward=size(config, keys.feed_forward),
            positions=self._positions_there(config),
            norm_eps=_norm_eps(config),
            relative=self.relative,
            activation=_ACTIVATIONS[config.get(keys.activation, "gelu")],
        )

    def _positions_there(self, config: Config) -> int:
        return size(config, "max_position_embeddings") - self._first_position(config)

    def _first_position(self, config: Config) -> int:
        if self.pad_position is None:
            return 0
        return size(config, "pad_token_id", self.pad_position, least=0) + 1

    def _positions(self, tensors: Tensors, config: Config, shape: BertShape) -> Matrix:
        first = self._first_position(config)
        name = "embeddings.position_embeddings.weight"
        return tensors.take(name, (first + shape.positions, shape.hidden))[first:]

    def _token_types(self, tensors: Tensors, shape: BertShape) -> Matrix:
        import numpy as np

        if not self.token_types:
            return np.zeros((1, shape.hidden), np.float32)
        return tensors.take("embeddings.token_type_embeddings.weight", (None, shape.hidden))

    def _layer(self, tensors: Tensors, number: int, shape: BertShape) -> BertLayer:
        hidden, inner, names = shape.hidden, shape.feed_forward, self.names
        at = f"{names.at}.{number}"
        return BertLayer(
            query=tensors.linear(f"{at}.{names.query}", hidden, hidden),
            key=tensors.linear(f"{at}.{names.key}", hidden, hidden),
            value=tensors.linear(f"{at}.{names.value}", hidden, hidden),
            attention_out=tensors.linear(f"{at}.{names.attention_out}", hidden, hidden),
            attention_norm=tensors.norm(f"{at}.{names.attention_norm}", hidden),
            feed_in=tensors.linear(f"{at}.{names.feed_in}", hidden, inner),
            feed_out=tensors.linear(f"{at}.{names.feed_out}", inner, hidden),
            feed_norm=tensors.norm(f"{at}.{names.feed_norm}", hidden),
        )

    def _relative(self, tensors: Tensors, shape: BertShape) -> Matrix:
        """Spread the bias of each bucket to the distances in it, ``[heads, distances]``."""
        import numpy as np

        table = tensors.take("encoder.relative_attention_bias.weight", (_BUCKETS, shape.heads))
        return np.ascontiguousarray(table[buckets(shape.positions)].T)


def read_bert(folder: Path, weights: str = "model.safetensors") -> BertWeights:
    """Read an encoder of one of these families from a folder with config.json and safetensors.

    Raises ModelUnsupported for another architecture and ModelCorrupt where
    tensors are missing or have other sizes than config.json says.
    """
    config = read_config(folder)
    family = family_of(config)
    if not isinstance(family, BertLike):
        raise ModelUnsupported(f"{folder} has a model that is nothing like BERT.")
    return family.read(folder / weights, config)


def _norm_eps(config: Config) -> float:
    try:
        return float(config.get("layer_norm_eps", 1e-12))
    except (TypeError, ValueError) as error:
        raise ModelCorrupt(f"config.json has a wrong layer_norm_eps: {error}") from error


def buckets(positions: int) -> NDArray[np.int64]:
    """Return the bucket of each distance from ``1 - positions`` to ``positions - 1``.

    Keys before a query have the first half of the buckets, keys after it the other. One half of
    each is for one distance a bucket; in the rest they grow by a factor up to distance 128, and
    the last takes all beyond (Raffel et al. 2020, section 2.1; MPNet, Song et al. 2020).
    """
    import numpy as np

    distance = np.arange(1 - positions, positions)
    half, far = _BUCKETS // 2, np.abs(distance)
    exact = half // 2
    # In float32, as the models were trained: a bucket's ends are where that rounds to.
    growth = np.log(np.maximum(far, 1).astype(np.float32) / np.float32(exact))
    steps = growth / np.float32(np.log(_MOST_DISTANCE / exact)) * np.float32(half - exact)
    grown = np.minimum(exact + steps.astype(np.int64), half - 1)
    bucket: NDArray[np.int64] = np.where(far < exact, far, grown) + np.where(distance > 0, half, 0)
    return bucket


_BUCKETS, _MOST_DISTANCE = 32, 128
_ACTIVATIONS = {
    "gelu": Activation.GELU,
    "gelu_python": Activation.GELU,
    "gelu_new": Activation.GELU_TANH,
    "gelu_fast": Activation.GELU_TANH,
    "gelu_pytorch_tanh": Activation.GELU_TANH,
    "relu": Activation.RELU,
}
_ENCODER_ONLY: dict[str, tuple[Any, ...]] = {
    "position_embedding_type": ("absolute",),
    "is_decoder": (False,),
    "add_cross_attention": (False,),
}
FAMILIES: tuple[Family, ...] = (
    BertLike(("bert", "electra"), handled=_ENCODER_ONLY),
    BertLike(("ernie",), handled=_ENCODER_ONLY | {"use_task_id": (False,)}),
    BertLike(
        ("roberta", "xlm-roberta", "camembert", "data2vec-text"),
        pad_position=1,
        handled=_ENCODER_ONLY,
    ),
    BertLike(
        ("mpnet",),
        names=LayerNames(
            query="attention.attn.q",
            key="attention.attn.k",
            value="attention.attn.v",
            attention_out="attention.attn.o",
            attention_norm="attention.LayerNorm",
        ),
        pad_position=1,
        token_types=False,
        relative=True,
        # What its own code computes with, whatever the config says.
        handled={"relative_attention_num_buckets": (_BUCKETS,), "pad_token_id": (1,)},
    ),
    BertLike(
        ("distilbert",),
        names=LayerNames(
            at="transformer.layer",
            query="attention.q_lin",
            key="attention.k_lin",
            value="attention.v_lin",
            attention_out="attention.out_lin",
            attention_norm="sa_layer_norm",
            feed_in="ffn.lin1",
            feed_out="ffn.lin2",
            feed_norm="output_layer_norm",
        ),
        keys=SizeKeys(
            layers="n_layers",
            heads="n_heads",
            hidden="dim",
            feed_forward="hidden_dim",
            activation="activation",
        ),
        token_types=False,
    ),
)
