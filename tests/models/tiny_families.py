"""Small random models of BERT's likes, and their forward passes in numpy, in double precision.

Written from the papers and model code, not from ours: one text at a time, positions and biases
worked out token by token.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from math import log, pi, sqrt
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from tests.models.tiny import Sizes, numpy_gelu, write_tokenizer

BERT_LAYER = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "out": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "feed_in": "intermediate.dense",
    "feed_out": "output.dense",
    "feed_norm": "output.LayerNorm",
}
MPNET_LAYER = BERT_LAYER | {
    "query": "attention.attn.q",
    "key": "attention.attn.k",
    "value": "attention.attn.v",
    "out": "attention.attn.o",
    "attention_norm": "attention.LayerNorm",
}
DISTILBERT_LAYER = {
    "query": "attention.q_lin",
    "key": "attention.k_lin",
    "value": "attention.v_lin",
    "out": "attention.out_lin",
    "attention_norm": "sa_layer_norm",
    "feed_in": "ffn.lin1",
    "feed_out": "ffn.lin2",
    "feed_norm": "output_layer_norm",
}


@dataclass(frozen=True)
class Kind:
    """One `model_type`: what stands before its tensors' names, its layers, where it leaves BERT."""

    prefix: str
    layer: dict[str, str]
    layers_at: str = "encoder.layer"
    first_position: int = 0
    types: int = 1
    relative: bool = False


SIZES = Sizes()
KINDS = {
    "bert": Kind("bert.", BERT_LAYER, types=2),
    "electra": Kind("electra.", BERT_LAYER, types=2),
    "ernie": Kind("ernie.", BERT_LAYER, types=2),
    "roberta": Kind("roberta.", BERT_LAYER, first_position=2),
    "xlm-roberta": Kind("roberta.", BERT_LAYER, first_position=2),
    "camembert": Kind("roberta.", BERT_LAYER, first_position=2),
    "data2vec-text": Kind("data2vec_text.", BERT_LAYER, first_position=2),
    "mpnet": Kind("mpnet.", MPNET_LAYER, first_position=2, types=0, relative=True),
    "distilbert": Kind("distilbert.", DISTILBERT_LAYER, "transformer.layer", types=0),
}


def make_model(
    folder: Path, kind: str, *, sizes: Sizes = SIZES, prefix: str | None = None, **changes: object
) -> Path:
    """Write config.json, tokenizer.json and random model.safetensors of a `model_type`."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(5)
    before = KINDS[kind].prefix if prefix is None else prefix
    tensors = {
        f"{before}{name}": (random.standard_normal(shape) * scale).astype(np.float32)
        for name, (shape, scale) in _shapes(KINDS[kind], sizes).items()
    }
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(_config(kind, sizes) | changes))
    write_tokenizer(folder)
    return folder


def _config(kind: str, sizes: Sizes) -> dict[str, object]:
    positions = KINDS[kind].first_position + sizes.positions
    if kind == "distilbert":
        return {
            "model_type": kind,
            "activation": "gelu",
            "dim": sizes.hidden,
            "hidden_dim": sizes.inner,
            "n_layers": sizes.layers,
            "n_heads": sizes.heads,
            "max_position_embeddings": positions,
            "pad_token_id": 0,
        }
    return {
        "model_type": kind,
        "hidden_act": "gelu",
        "hidden_size": sizes.hidden,
        "intermediate_size": sizes.inner,
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.heads,
        "max_position_embeddings": positions,
        "layer_norm_eps": 1e-5,
        "pad_token_id": 1 if KINDS[kind].first_position else 0,
    }


def _shapes(kind: Kind, sizes: Sizes) -> dict[str, tuple[tuple[int, ...], float]]:
    hidden, inner = sizes.hidden, sizes.inner
    rows = {
        "embeddings.word_embeddings.weight": sizes.vocabulary,
        "embeddings.position_embeddings.weight": kind.first_position + sizes.positions,
        "embeddings.token_type_embeddings.weight": kind.types,
    }
    shapes = {name: ((count, hidden), 0.3) for name, count in rows.items() if count}
    norms = ["embeddings.LayerNorm"]
    for at in (f"{kind.layers_at}.{number}" for number in range(sizes.layers)):
        wide = {"feed_in": (inner, hidden), "feed_out": (hidden, inner)}
        for part in ("query", "key", "value", "out", "feed_in", "feed_out"):
            shape = wide.get(part, (hidden, hidden))
            shapes[f"{at}.{kind.layer[part]}.weight"] = (shape, 0.2)
            shapes[f"{at}.{kind.layer[part]}.bias"] = (shape[:1], 0.2)
        norms += [f"{at}.{kind.layer[part]}" for part in ("attention_norm", "feed_norm")]
    for norm in norms:
        shapes |= {f"{norm}.weight": ((hidden,), 1.0), f"{norm}.bias": ((hidden,), 0.3)}
    if kind.relative:
        shapes["encoder.relative_attention_bias.weight"] = ((32, sizes.heads), 1.0)
    return shapes


def numpy_model(folder: Path, ids: list[int]) -> np.ndarray:
    """Return the last hidden state of one unpadded text, float64[tokens, hidden]."""
    config = json.loads((folder / "config.json").read_text())
    kind = KINDS[config["model_type"]]
    tensors = load_file(folder / "model.safetensors")
    words = "embeddings.word_embeddings.weight"
    prefix = next(name for name in tensors if name.endswith(words)).removesuffix(words)
    w = {name.removeprefix(prefix): t.astype(np.float64) for name, t in tensors.items()}
    eps = config.get("layer_norm_eps", 1e-12)
    rows = []
    for place, token in enumerate(ids):
        row = w["embeddings.word_embeddings.weight"][token]
        row = row + w["embeddings.position_embeddings.weight"][kind.first_position + place]
        if kind.types:
            row = row + w["embeddings.token_type_embeddings.weight"][0]
        rows.append(row)
    x = _norm(w, "embeddings.LayerNorm", np.array(rows), eps)
    for number in range(config.get("n_layers") or config["num_hidden_layers"]):
        x = _layer(w, kind, f"{kind.layers_at}.{number}", x, config)
    return x


def _layer(w, kind: Kind, at: str, x: np.ndarray, config) -> np.ndarray:
    names = {part: f"{at}.{name}" for part, name in kind.layer.items()}
    heads = config.get("n_heads") or config["num_attention_heads"]
    eps = config.get("layer_norm_eps", 1e-12)
    query, key, value = (_linear(w, names[part], x) for part in ("query", "key", "value"))
    width = x.shape[1] // heads
    context = np.zeros_like(x)
    for head in range(heads):
        columns = slice(head * width, (head + 1) * width)
        scores = query[:, columns] @ key[:, columns].T / sqrt(width)
        if kind.relative:
            table = w["encoder.relative_attention_bias.weight"]
            for asking, asked in np.ndindex(scores.shape):
                scores[asking, asked] += table[bucket(asked - asking), head]
        shares = np.exp(scores - scores.max(1, keepdims=True))
        context[:, columns] = shares / shares.sum(1, keepdims=True) @ value[:, columns]
    x = _norm(w, names["attention_norm"], x + _linear(w, names["out"], context), eps)
    activation = config.get("activation") or config["hidden_act"]
    inner = ACTIVATIONS[activation](_linear(w, names["feed_in"], x))
    return _norm(w, names["feed_norm"], x + _linear(w, names["feed_out"], inner), eps)


def bucket(behind: int) -> int:
    """Return the bucket of a key that stands so far behind its query, after T5 and MPNet."""
    start, far = (16, behind) if behind > 0 else (0, -behind)
    if far < 8:
        return start + far
    return start + min(8 + int(log(far / 8) / log(128 / 8) * 8 + 1e-9), 15)


def _tanh_gelu(x: np.ndarray) -> np.ndarray:
    return x * 0.5 * (1 + np.tanh(sqrt(2 / pi) * (x + 0.044715 * x**3)))


ACTIVATIONS = {
    "gelu": numpy_gelu,
    "gelu_new": _tanh_gelu,
    "gelu_pytorch_tanh": _tanh_gelu,
    "gelu_fast": _tanh_gelu,
    "relu": lambda x: np.maximum(x, 0),
}


def _linear(w, at, x):
    return x @ w[f"{at}.weight"].T + w[f"{at}.bias"]


def _norm(w, at, x, eps):
    centred = x - x.mean(-1, keepdims=True)
    spread = np.sqrt((centred**2).mean(-1, keepdims=True) + eps)
    return centred / spread * w[f"{at}.weight"] + w[f"{at}.bias"]
