"""Makes small random encoders with rotary positions, and runs them in plain numpy, in doubles.

Each family's pass is written out from its published code, by the names its files have; all were
held against transformers 5.5 (`scripts/check_rotary.py`).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from math import erf, sqrt
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from tests.models.tiny import WORDS, write_tokenizer

Config = dict[str, Any]
HIDDEN, HEADS, INNER, POSITIONS, WINDOW = 32, 4, 48, 1200, 16

MODERNBERT: Config = {
    "model_type": "modernbert",
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "num_hidden_layers": 4,
    "num_attention_heads": HEADS,
    "max_position_embeddings": POSITIONS,
    "local_attention": WINDOW,
    "global_attn_every_n_layers": 3,
    "global_rope_theta": 160_000.0,
    "local_rope_theta": 10_000.0,
    "norm_eps": 1e-5,
}
NOMIC: Config = {
    "model_type": "nomic_bert",
    "n_embd": HIDDEN,
    "n_head": HEADS,
    "n_inner": INNER,
    "n_layer": 3,
    "n_positions": POSITIONS,
    "max_trained_positions": 600,
    "activation_function": "swiglu",
    "rotary_emb_base": 1000,
    "rotary_emb_fraction": 1.0,
    "rotary_emb_interleaved": False,
    "rotary_scaling_factor": None,
    "layer_norm_epsilon": 1e-12,
    "prenorm": False,
    "causal": False,
    "use_rms_norm": False,
    "qkv_proj_bias": False,
}
QWEN3: Config = {
    "model_type": "qwen3",
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "num_hidden_layers": 2,
    "num_attention_heads": HEADS,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": POSITIONS,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1_000_000,
    "rope_scaling": None,
    "hidden_act": "silu",
    "use_sliding_window": False,
    "sliding_window": None,
    "max_window_layers": 28,
}
GEMMA3: Config = {
    "model_type": "gemma3_text",
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "num_hidden_layers": 3,
    "num_attention_heads": HEADS,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "query_pre_attn_scalar": 24,
    "max_position_embeddings": POSITIONS,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1_000_000.0,
    "rope_local_base_freq": 10_000.0,
    "rope_scaling": None,
    "sliding_window": WINDOW,
    "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
    "hidden_activation": "gelu_pytorch_tanh",
    "attn_logit_softcapping": None,
    "use_bidirectional_attention": True,
}
FAMILIES = {
    "modernbert": MODERNBERT,
    "nomic": NOMIC,
    "qwen3": QWEN3,
    "qwen3 with windows": QWEN3
    | {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1},
    "gemma3": GEMMA3,
    "gemma3 that looks back": GEMMA3
    | {
        "use_bidirectional_attention": False,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
    },
}


def make_rotary(folder: Path, config: Config, *, prefix: str = "", seed: int = 7) -> Path:
    """Write config.json, tokenizer.json and random model.safetensors into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    tensors = {}
    for name, shape in _SHAPES[config["model_type"]](config).items():
        if len(shape) == 1:
            middle = 1.0 if config["model_type"] != "gemma3_text" and "weight" in name else 0.0
            values = middle + 0.2 * random.standard_normal(shape)
        else:
            values = random.standard_normal(shape) * (0.3 if "emb" in name else shape[1] ** -0.5)
        tensors[prefix + name] = values.astype(np.float32)
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    write_tokenizer(folder)
    return folder


def numpy_rotary(folder: Path, ids: list[int]) -> np.ndarray:
    """Return the last hidden state of one unpadded text, float64[tokens, hidden]."""
    config = json.loads((folder / "config.json").read_text())
    w = {k: v.astype(np.float64) for k, v in load_file(folder / "model.safetensors").items()}
    w = {k.removeprefix("model.").removeprefix("bert."): v for k, v in w.items()}
    return _PASSES[config["model_type"]](w, config, np.array(ids))


def pooled(rows: np.ndarray, pooling: str) -> np.ndarray:
    """Return one vector of a text's rows."""
    return {"mean": rows.mean(0), "cls": rows[0], "last": rows[-1]}[pooling]


def _modernbert(w, config, ids):
    eps, heads = config["norm_eps"], config["num_attention_heads"]
    x = _layer_norm(w["embeddings.tok_embeddings.weight"][ids], w["embeddings.norm.weight"], eps)
    for i in range(config["num_hidden_layers"]):
        at, local = f"layers.{i}", bool(i % config["global_attn_every_n_layers"])
        theta = config["local_rope_theta" if local else "global_rope_theta"]
        y = _layer_norm(x, w[f"{at}.attn_norm.weight"], eps) if i else x
        query, key, value = np.split(y @ w[f"{at}.attn.Wqkv.weight"].T, 3, axis=1)
        away = np.abs(_behind(ids))
        seen = away <= config["local_attention"] // 2 if local else away >= 0
        head = query.shape[1] // heads
        turn = _Turn(head, theta)
        y = _attention(_heads(query, heads), _heads(key, heads), _heads(value, heads), turn, seen)
        x = x + y @ w[f"{at}.attn.Wo.weight"].T
        y = _layer_norm(x, w[f"{at}.mlp_norm.weight"], eps)
        given, gate = np.split(y @ w[f"{at}.mlp.Wi.weight"].T, 2, axis=1)
        x = x + (_gelu(given) * gate) @ w[f"{at}.mlp.Wo.weight"].T
    return _layer_norm(x, w["final_norm.weight"], eps)


def _nomic(w, config, ids):
    eps, heads = config["layer_norm_epsilon"], config["n_head"]
    x = w["embeddings.word_embeddings.weight"][ids]
    x = x + w["embeddings.token_type_embeddings.weight"][0]
    x = _layer_norm(x, w["emb_ln.weight"], eps) + w["emb_ln.bias"]
    for i in range(config["n_layer"]):
        at = f"encoder.layers.{i}"
        query, key, value = np.split(x @ w[f"{at}.attn.Wqkv.weight"].T, 3, axis=1)
        turn = _Turn(query.shape[1] // heads, config["rotary_emb_base"])
        seen = _behind(ids) == _behind(ids)
        y = _attention(_heads(query, heads), _heads(key, heads), _heads(value, heads), turn, seen)
        y = y @ w[f"{at}.attn.out_proj.weight"].T
        x = _layer_norm(x + y, w[f"{at}.norm1.weight"], eps) + w[f"{at}.norm1.bias"]
        y = x @ w[f"{at}.mlp.fc11.weight"].T * _silu(x @ w[f"{at}.mlp.fc12.weight"].T)
        y = y @ w[f"{at}.mlp.fc2.weight"].T
        x = _layer_norm(x + y, w[f"{at}.norm2.weight"], eps) + w[f"{at}.norm2.bias"]
    return x


def _qwen3(w, config, ids):
    eps = config["rms_norm_eps"]
    x = w["embed_tokens.weight"][ids]
    for i in range(config["num_hidden_layers"]):
        at = f"layers.{i}"
        seen = _behind(ids) >= 0
        if config["use_sliding_window"] and i >= config["max_window_layers"]:
            seen &= _behind(ids) < config["sliding_window"]
        turn = _Turn(config["head_dim"], config["rope_theta"])
        y = _rms(x, w[f"{at}.input_layernorm.weight"], eps)
        x = x + _grouped(w, f"{at}.self_attn", config, y, turn, seen)
        y = _rms(x, w[f"{at}.post_attention_layernorm.weight"], eps)
        x = x + _gated(w, f"{at}.mlp", y, _silu)
    return _rms(x, w["norm.weight"], eps)


def _gemma3(w, config, ids):
    eps = config["rms_norm_eps"]

    def norm(rows, name):
        return _rms(rows, 1 + w[f"{name}.weight"], eps)

    w = dict(w)
    for name in list(w):
        if name.endswith(("q_norm.weight", "k_norm.weight")):
            w[name] = 1 + w[name]
    x = w["embed_tokens.weight"][ids] * sqrt(config["hidden_size"])
    scaling = (config["rope_scaling"] or {}).get("factor", 1.0)
    scale = config["query_pre_attn_scalar"] ** -0.5
    for i, kind in enumerate(config["layer_types"]):
        at, behind = f"layers.{i}", _behind(ids)
        both_ways = config["use_bidirectional_attention"]
        seen = behind == behind if both_ways else behind >= 0
        turn = _Turn(config["head_dim"], config["rope_theta"], scaling, scale)
        if kind == "sliding_attention":
            turn = _Turn(config["head_dim"], config["rope_local_base_freq"], 1.0, scale)
            most = config["sliding_window"] // 2 if both_ways else config["sliding_window"] - 1
            seen = seen & (np.abs(behind) <= most)
        y = _grouped(w, f"{at}.self_attn", config, norm(x, f"{at}.input_layernorm"), turn, seen)
        x = x + norm(y, f"{at}.post_attention_layernorm")
        y = _gated(w, f"{at}.mlp", norm(x, f"{at}.pre_feedforward_layernorm"), _gelu_tanh)
        x = x + norm(y, f"{at}.post_feedforward_layernorm")
    return norm(x, "norm")


_PASSES = {
    "modernbert": _modernbert,
    "nomic_bert": _nomic,
    "qwen3": _qwen3,
    "gemma3_text": _gemma3,
}


@dataclass(frozen=True)
class _Turn:
    head: int
    theta: float
    factor: float = 1.0
    scale: float = 0.0

    def __call__(self, rows):
        """Turn ``[heads, tokens, head]``; a pair is a number of each half."""
        speed = self.theta ** (-np.arange(0, self.head, 2) / self.head) / self.factor
        angle = np.arange(rows.shape[1])[:, None] * speed
        number = (rows[..., : self.head // 2] + 1j * rows[..., self.head // 2 :]) * np.exp(
            1j * angle
        )
        return np.concatenate([number.real, number.imag], -1)


def _behind(ids):
    places = np.arange(len(ids))
    return places[:, None] - places


def _heads(flat, heads):
    return flat.reshape(len(flat), heads, -1).swapaxes(0, 1)


def _attention(query, key, value, turn, seen):
    scores = turn(query) @ turn(key).swapaxes(1, 2) * (turn.scale or turn.head**-0.5)
    scores = np.where(seen, scores, -np.inf)
    share = np.exp(scores - scores.max(-1, keepdims=True))
    share /= share.sum(-1, keepdims=True)
    return (share @ value).swapaxes(0, 1).reshape(query.shape[1], -1)


def _grouped(w, at, config, rows, turn, seen):
    eps, kept = config["rms_norm_eps"], config["num_key_value_heads"]
    times = config["num_attention_heads"] // kept
    query = _heads(rows @ w[f"{at}.q_proj.weight"].T, config["num_attention_heads"])
    key, value = (_heads(rows @ w[f"{at}.{n}_proj.weight"].T, kept) for n in "kv")
    query = _rms(query, w[f"{at}.q_norm.weight"], eps)
    key = _rms(key, w[f"{at}.k_norm.weight"], eps)
    key, value = key.repeat(times, 0), value.repeat(times, 0)
    return _attention(query, key, value, turn, seen) @ w[f"{at}.o_proj.weight"].T


def _gated(w, at, rows, opened):
    inner = opened(rows @ w[f"{at}.gate_proj.weight"].T) * (rows @ w[f"{at}.up_proj.weight"].T)
    return inner @ w[f"{at}.down_proj.weight"].T


def _layer_norm(x, weight, eps):
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + eps) * weight


def _rms(x, weight, eps):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * weight


def _silu(x):
    return x / (1 + np.exp(-x))


def _gelu(x):
    return x / 2 * (1 + np.vectorize(erf)(x / sqrt(2)))


def _gelu_tanh(x):
    return x / 2 * (1 + np.tanh(sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def _modernbert_shapes(config):
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    shapes = {
        "embeddings.tok_embeddings.weight": (len(WORDS), hidden),
        "embeddings.norm.weight": (hidden,),
        "final_norm.weight": (hidden,),
    }
    for i in range(config["num_hidden_layers"]):
        shapes |= {
            f"layers.{i}.attn.Wqkv.weight": (3 * hidden, hidden),
            f"layers.{i}.attn.Wo.weight": (hidden, hidden),
            f"layers.{i}.mlp_norm.weight": (hidden,),
            f"layers.{i}.mlp.Wi.weight": (2 * inner, hidden),
            f"layers.{i}.mlp.Wo.weight": (hidden, inner),
        }
        shapes |= {f"layers.{i}.attn_norm.weight": (hidden,)} if i else {}
    return shapes


def _nomic_shapes(config):
    hidden, inner = config["n_embd"], config["n_inner"]
    shapes = {
        "embeddings.word_embeddings.weight": (len(WORDS), hidden),
        "embeddings.token_type_embeddings.weight": (2, hidden),
        "emb_ln.weight": (hidden,),
        "emb_ln.bias": (hidden,),
    }
    for at in (f"encoder.layers.{i}" for i in range(config["n_layer"])):
        shapes |= {
            f"{at}.attn.Wqkv.weight": (3 * hidden, hidden),
            f"{at}.attn.out_proj.weight": (hidden, hidden),
            f"{at}.mlp.fc11.weight": (inner, hidden),
            f"{at}.mlp.fc12.weight": (inner, hidden),
            f"{at}.mlp.fc2.weight": (hidden, inner),
        }
        shapes |= {f"{at}.norm{n}.{kind}": (hidden,) for n in (1, 2) for kind in ("weight", "bias")}
    return shapes


def _decoder_shapes(config):
    hidden, inner, head = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    asking, asked = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    norms = ["input_layernorm", "post_attention_layernorm"]
    if config["model_type"] == "gemma3_text":
        norms += ["pre_feedforward_layernorm", "post_feedforward_layernorm"]
    shapes = {"embed_tokens.weight": (len(WORDS), hidden), "norm.weight": (hidden,)}
    for at in (f"layers.{i}" for i in range(config["num_hidden_layers"])):
        shapes |= {
            f"{at}.self_attn.q_proj.weight": (asking, hidden),
            f"{at}.self_attn.k_proj.weight": (asked, hidden),
            f"{at}.self_attn.v_proj.weight": (asked, hidden),
            f"{at}.self_attn.o_proj.weight": (hidden, asking),
            f"{at}.self_attn.q_norm.weight": (head,),
            f"{at}.self_attn.k_norm.weight": (head,),
            f"{at}.mlp.gate_proj.weight": (inner, hidden),
            f"{at}.mlp.up_proj.weight": (inner, hidden),
            f"{at}.mlp.down_proj.weight": (hidden, inner),
        }
        shapes |= {f"{at}.{norm}.weight": (hidden,) for norm in norms}
    return shapes


_SHAPES: dict[str, Callable[[Config], dict[str, tuple[int, ...]]]] = {
    "modernbert": _modernbert_shapes,
    "nomic_bert": _nomic_shapes,
    "qwen3": _decoder_shapes,
    "gemma3_text": _decoder_shapes,
}
