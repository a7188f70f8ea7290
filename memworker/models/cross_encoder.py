"""Cross-encoders: an encoder that reads two texts as one, and a head that makes one number of it.

The encoder's first row goes through the layers that the model's own code has behind it; these
become the `Head` of its graph. A text's tokens are of type 0, those of the other of type 1.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memworker.errors import ModelUnsupported
from memworker.models.family import Config, read_config
from memworker.models.head import Head, Layer
from memworker.models.spec import Activation, ModelEntry, Pooling
from memworker.models.tensors import Tensors
from memworker.models.weights import BertWeights

if TYPE_CHECKING:
    from memworker.models.tensors import Linear

# What stands between the encoder's first row and the number, by model_type: names of two layers,
# and what follows the first.
_POOLED = ("pooler.dense", "classifier", Activation.TANH)
_OF_ROBERTA = ("classifier.dense", "classifier.out_proj", Activation.TANH)
_HEADS: dict[str, tuple[str, str, Activation]] = {
    "bert": _POOLED,
    "ernie": _POOLED,
    "electra": ("classifier.dense", "classifier.out_proj", Activation.GELU),
    "roberta": _OF_ROBERTA,
    "xlm-roberta": _OF_ROBERTA,
    "camembert": _OF_ROBERTA,
    "data2vec-text": _OF_ROBERTA,
    "mpnet": _OF_ROBERTA,
    "distilbert": ("pre_classifier", "classifier", Activation.RELU),
}


def as_cross_encoder(entry: ModelEntry) -> ModelEntry:
    """Return a folder's entry as that of a cross-encoder; ModelUnsupported where it is none."""
    if entry.directory is None:
        raise ModelUnsupported(
            f"{entry.spec.name} embeds texts; a reranker is a cross-encoder, such as"
            " cross-encoder/ms-marco-MiniLM-L6-v2, by its name on the hub or its folder."
        )
    config = read_config(entry.directory)
    kinds = config.get("architectures") or []
    if not any(str(kind).endswith("ForSequenceClassification") for kind in kinds):
        raise ModelUnsupported(
            f"{entry.directory} is no cross-encoder: config.json has architectures={kinds!r},"
            " and a reranker is one ForSequenceClassification."
        )
    labels = _labels(config)
    if labels != 1:
        raise ModelUnsupported(
            f"{entry.directory} gives {labels} numbers a pair (num_labels, id2label); a reranker"
            " gives one."
        )
    spec = replace(
        entry.spec,
        dim=1,
        pair_width=entry.spec.width,
        pooling=Pooling.CLS,
        normalize=False,
        query_prefix="",
        passage_prefix="",
        matryoshka=False,
        dense=(),
        similarity="",
        prompts=(),
    )
    return replace(entry, spec=spec)


def as_pairs(read: Any, path: Path, config: Config) -> tuple[BertWeights, Head]:
    """Return an encoder's weights as those that read pairs, and the head behind it."""
    kind = config.get("model_type", "bert")
    if not isinstance(read, BertWeights) or kind not in _HEADS:
        raise ModelUnsupported(
            f"memworker builds no cross-encoder of model_type={kind!r}; an ONNX export of the"
            " model in its folder runs as it is."
        )
    first, last, activation = _HEADS[kind]
    layers = (
        _layer(path, first, read.shape.hidden, read.shape.hidden, activation),
        _layer(path, last, read.shape.hidden, 1, Activation.IDENTITY),
    )
    typed = len(read.token_types) > 1
    return replace(read, typed=typed), Head(Pooling.CLS, normalize=False, layers=layers)


def _layer(path: Path, name: str, inputs: int, outputs: int, activation: Activation) -> Layer:
    linear: Linear = Tensors(path, f"{name}.weight").linear(name, inputs, outputs)
    return Layer(linear.weight, linear.bias, activation)


def _labels(config: Config) -> int:
    named = config.get("id2label")
    if isinstance(named, dict):
        return len(named)
    labels = config.get("num_labels", 2)
    return labels if isinstance(labels, int) else 0
