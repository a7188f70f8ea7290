"""Makes small random BERT directories, and runs BERT in plain numpy, in double precision."""

from __future__ import annotations

import json
from dataclasses import dataclass
from math import erf, sqrt
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(59))]


@dataclass(frozen=True)
class Sizes:
    hidden: int = 32
    layers: int = 2
    heads: int = 4
    inner: int = 48
    positions: int = 40
    vocabulary: int = len(WORDS)


def make_bert(folder: Path, *, sizes: Sizes = Sizes(), prefix: str = "", seed: int = 7) -> Path:
    """Write config.json, tokenizer.json and random model.safetensors into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    tensors = {
        f"{prefix}{name}": (random.standard_normal(shape) * 0.2).astype(np.float32)
        for name, shape in _shapes(sizes).items()
    }
    save_file(tensors, folder / "model.safetensors")
    write_config(folder, sizes)
    write_tokenizer(folder)
    return folder


def write_tokenizer(folder: Path) -> None:
    words = {word: i for i, word in enumerate(WORDS)}
    tokenizer = Tokenizer(WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.add_special_tokens(WORDS[:5])
    tokenizer.save(str(folder / "tokenizer.json"))


def write_config(folder: Path, sizes: Sizes = Sizes(), **changes) -> None:
    config = {
        "model_type": "bert",
        "hidden_act": "gelu",
        "hidden_size": sizes.hidden,
        "intermediate_size": sizes.inner,
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.heads,
        "max_position_embeddings": sizes.positions,
        "layer_norm_eps": 1e-12,
        "vocab_size": sizes.vocabulary,
        "type_vocab_size": 2,
    }
    (folder / "config.json").write_text(json.dumps(config | changes))


def write_modules(folder: Path, *, pooling: str = "mean_tokens", normalize: bool = True) -> None:
    """Add sentence-transformers' own settings."""
    kinds = ["Transformer", "Pooling", *(["Normalize"] if normalize else [])]
    modules = [{"idx": i, "type": f"sentence_transformers.models.{k}"} for i, k in enumerate(kinds)]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    settings = {f"pooling_mode_{pooling}": True}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(settings))


def _shapes(sizes: Sizes) -> dict[str, tuple[int, ...]]:
    hidden, inner = sizes.hidden, sizes.inner
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (sizes.vocabulary, hidden),
        "embeddings.position_embeddings.weight": (sizes.positions, hidden),
        "embeddings.token_type_embeddings.weight": (2, hidden),
        "embeddings.LayerNorm.weight": (hidden,),
        "embeddings.LayerNorm.bias": (hidden,),
    }
    linear = {
        "attention.self.query": (hidden, hidden),
        "attention.self.key": (hidden, hidden),
        "attention.self.value": (hidden, hidden),
        "attention.output.dense": (hidden, hidden),
        "intermediate.dense": (inner, hidden),
        "output.dense": (hidden, inner),
    }
    for layer in (f"encoder.layer.{i}" for i in range(sizes.layers)):
        for name, shape in linear.items():
            shapes |= {f"{layer}.{name}.weight": shape, f"{layer}.{name}.bias": shape[:1]}
        for norm in ("attention.output.LayerNorm", "output.LayerNorm"):
            shapes |= {f"{layer}.{norm}.weight": (hidden,), f"{layer}.{norm}.bias": (hidden,)}
    return shapes


def make_cross_encoder(folder: Path, *, sizes: Sizes = Sizes(), seed: int = 7) -> Path:
    """Write a random BertForSequenceClassification of one label into `folder`."""
    make_bert(folder, sizes=sizes, prefix="bert.", seed=seed)
    write_config(
        folder, sizes, architectures=["BertForSequenceClassification"], id2label={"0": "LABEL_0"}
    )
    random, hidden = np.random.default_rng(seed), sizes.hidden
    shapes = {"bert.pooler.dense": (hidden, hidden), "classifier": (1, hidden)}
    tensors = load_file(folder / "model.safetensors")
    for name, shape in shapes.items():
        tensors[f"{name}.weight"] = random.standard_normal(shape).astype(np.float32) * 0.3
        tensors[f"{name}.bias"] = random.standard_normal(shape[:1]).astype(np.float32)
    save_file(tensors, folder / "model.safetensors")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def numpy_logit(folder: Path, first: list[int], second: list[int]) -> float:
    """Return what a cross-encoder gives a pair of bare token ids, in double precision."""
    ids = [2, *first, 3, *second, 3]
    types = [0] * (len(first) + 2) + [1] * (len(second) + 1)
    raw = load_file(folder / "model.safetensors")
    w = {k: v.astype(np.float64) for k, v in raw.items()}
    row = numpy_bert(folder, ids, types)[0]
    pooled = np.tanh(_linear(w, "bert.pooler.dense", row))
    return float(_linear(w, "classifier", pooled)[0])


def numpy_bert(folder: Path, ids: list[int], types: list[int] | int = 0) -> np.ndarray:
    """Return the last hidden state of one unpadded text, float64[tokens, hidden]."""
    config = json.loads((folder / "config.json").read_text())
    raw = load_file(folder / "model.safetensors")
    w = {k.removeprefix("bert."): v.astype(np.float64) for k, v in raw.items()}
    x = w["embeddings.word_embeddings.weight"][ids]
    x = x + w["embeddings.position_embeddings.weight"][: len(ids)]
    x = x + w["embeddings.token_type_embeddings.weight"][types]
    x = _norm(w, "embeddings.LayerNorm", x, config)
    for i in range(config["num_hidden_layers"]):
        x = _numpy_layer(w, f"encoder.layer.{i}", x, config)
    return x


def _numpy_layer(w, at, x, config):
    heads = config["num_attention_heads"]
    query, key, value = (
        _linear(w, f"{at}.attention.self.{name}", x).reshape(len(x), heads, -1).swapaxes(0, 1)
        for name in ("query", "key", "value")
    )
    scores = query @ key.swapaxes(1, 2) / sqrt(query.shape[-1])
    share = np.exp(scores - scores.max(-1, keepdims=True))
    share /= share.sum(-1, keepdims=True)
    context = (share @ value).swapaxes(0, 1).reshape(len(x), -1)
    projected = _linear(w, f"{at}.attention.output.dense", context)
    x = _norm(w, f"{at}.attention.output.LayerNorm", x + projected, config)
    inner = _linear(w, f"{at}.intermediate.dense", x)
    outer = _linear(w, f"{at}.output.dense", numpy_gelu(inner))
    return _norm(w, f"{at}.output.LayerNorm", x + outer, config)


def numpy_gelu(x):
    return x * 0.5 * (1 + np.vectorize(erf)(x / sqrt(2)))


def _linear(w, at, x):
    return x @ w[f"{at}.weight"].T + w[f"{at}.bias"]


def _norm(w, at, x, config):
    centred = x - x.mean(-1, keepdims=True)
    spread = np.sqrt((centred**2).mean(-1, keepdims=True) + config["layer_norm_eps"])
    return centred / spread * w[f"{at}.weight"] + w[f"{at}.bias"]
