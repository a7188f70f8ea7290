"""ModernBERT: normalised before each block, GeGLU, and a window in two layers of three."""

from __future__ import annotations

from pathlib import Path

from memworker.models.family import Config, refuse_others, size
from memworker.models.rotary import GateKind, Norms, Reach, RotaryLayer, RotaryShape, RotaryWeights
from memworker.models.rotary_family import (
    RotaryFamily,
    layer_kinds,
    linear,
    norm,
    number,
    share,
    split,
    turn_of,
)
from memworker.models.tensors import Tensors

_HANDLED = {"hidden_activation": ("gelu",)}
_GLOBAL, _LOCAL = "full_attention", "sliding_attention"


class ModernBert(RotaryFamily):
    model_types = ("modernbert",)

    def shape(self, config: Config) -> RotaryShape:
        refuse_others(config, _HANDLED)
        hidden, heads = size(config, "hidden_size", 768), size(config, "num_attention_heads", 12)
        layers = size(config, "num_hidden_layers", 22)
        every = size(config, "global_attn_every_n_layers", 3)
        kinds = [_LOCAL if layer % every else _GLOBAL for layer in range(layers)]
        # Half of it on each side.
        window = size(config, "local_attention", 128, least=2) // 2
        reach = {
            _GLOBAL: Reach(turn_of(config, _GLOBAL, "global_rope_theta", 160_000.0)),
            _LOCAL: Reach(turn_of(config, _LOCAL, "local_rope_theta", 10_000.0), window),
        }
        head = share(hidden, heads, "hidden_size by num_attention_heads")
        return RotaryShape(
            hidden=hidden,
            heads=heads,
            key_heads=heads,
            head=head,
            feed_forward=size(config, "intermediate_size", 1152),
            positions=size(config, "max_position_embeddings", 8192),
            reach=tuple(reach[kind] for kind in layer_kinds(config, kinds)),
            gate=GateKind.GELU,
            norm_eps=number(config, "norm_eps", 1e-5),
            scale=head**-0.5,
        )

    def read(self, path: Path, config: Config) -> RotaryWeights:
        shape = self.shape(config)
        tensors = Tensors(path, "embeddings.tok_embeddings.weight")
        weights = RotaryWeights(
            shape=shape,
            words=tensors.take("embeddings.tok_embeddings.weight", (None, shape.hidden)),
            norm=norm(tensors, "embeddings.norm", shape.hidden),
            layers=tuple(_layer(tensors, layer, shape) for layer in range(shape.layers)),
            last_norm=norm(tensors, "final_norm", shape.hidden),
        )
        tensors.refuse_untaken("layers.")
        return weights


def _layer(tensors: Tensors, number: int, shape: RotaryShape) -> RotaryLayer:
    at, hidden, inner = f"layers.{number}", shape.hidden, shape.feed_forward
    query, key, value = split(linear(tensors, f"{at}.attn.Wqkv", hidden, 3 * hidden), 3)
    gate, up = split(linear(tensors, f"{at}.mlp.Wi", hidden, 2 * inner), 2)
    return RotaryLayer(
        query=query,
        key=key,
        value=value,
        attention_out=linear(tensors, f"{at}.attn.Wo", hidden, hidden),
        # The embeddings are normalised already.
        attention_norms=Norms(before=norm(tensors, f"{at}.attn_norm", hidden) if number else None),
        gate=gate,
        up=up,
        down=linear(tensors, f"{at}.mlp.Wo", inner, hidden),
        feed_norms=Norms(before=norm(tensors, f"{at}.mlp_norm", hidden)),
    )
