"""nomic-bert: BERT with turned queries and keys, SwiGLU and no biases."""

from __future__ import annotations

from pathlib import Path

from memworker.models.family import Config, refuse_others, size
from memworker.models.rotary import GateKind, Norms, Reach, RotaryLayer, RotaryShape, RotaryWeights
from memworker.models.rotary_family import (
    RotaryFamily,
    linear,
    norm,
    number,
    share,
    split,
    turn_of,
)
from memworker.models.tensors import Tensors

# What the first values stand for where the published config says nothing.
_HANDLED = {
    "activation_function": ("swiglu",),
    "prenorm": (False,),
    "parallel_block": (False,),
    "parallel_block_tied_norm": (False,),
    "causal": (False,),
    "use_rms_norm": (False, None),
    "rotary_emb_fraction": (1.0, 1),
    "rotary_emb_interleaved": (False,),
    "rotary_emb_scale_base": (None,),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "reorder_and_upcast_attn": (False,),
    "num_experts": (0, None),
    "moe_every_n_layers": (0, None),
    "hidden_act": ("silu",),
}
_WORDS, _TYPES = "embeddings.word_embeddings.weight", "embeddings.token_type_embeddings.weight"


class NomicBert(RotaryFamily):
    """Both the published checkpoints, with GPT-2's names of sizes, and what transformers saves."""

    model_types = ("nomic_bert",)

    def shape(self, config: Config) -> RotaryShape:
        refuse_others(config, _HANDLED)
        hidden = _size(config, "n_embd", "hidden_size")
        heads = _size(config, "n_head", "num_attention_heads")
        head = share(hidden, heads, "n_embd by n_head")
        turn = turn_of(config, "full_attention", "rotary_emb_base", 1000.0, scaling="rope_scaling")
        eps = "layer_norm_epsilon" if "layer_norm_epsilon" in config else "layer_norm_eps"
        return RotaryShape(
            hidden=hidden,
            heads=heads,
            key_heads=heads,
            head=head,
            feed_forward=_size(config, "n_inner", "intermediate_size"),
            positions=_positions(config),
            reach=(Reach(turn),) * _size(config, "n_layer", "num_hidden_layers"),
            gate=GateKind.SILU,
            norm_eps=number(config, eps, 1e-12),
            scale=head**-0.5,
        )

    def read(self, path: Path, config: Config) -> RotaryWeights:
        shape = self.shape(config)
        tensors = Tensors(path, _WORDS)
        published = "emb_ln.weight" in tensors
        first = "emb_ln" if published else "embeddings.LayerNorm"
        words = tensors.take(_WORDS, (None, shape.hidden))
        if _TYPES in tensors:
            # Every token is of type 0.
            words = words + tensors.take(_TYPES, (None, shape.hidden))[0]
        read = _published_layer if published else _saved_layer
        weights = RotaryWeights(
            shape=shape,
            words=words,
            norm=norm(tensors, first, shape.hidden),
            layers=tuple(read(tensors, layer, shape) for layer in range(shape.layers)),
            last_norm=None,
        )
        tensors.refuse_untaken("encoder.layers." if published else "layers.", ("inv_freq",))
        return weights


def _size(config: Config, published: str, saved: str) -> int:
    return size(config, published if published in config else saved)


def _positions(config: Config) -> int:
    positions = _size(config, "n_positions", "max_position_embeddings")
    if config.get("rotary_scaling_factor"):
        # Beyond what it was trained on the turn depends on the text's length.
        return min(positions, size(config, "max_trained_positions", 2048))
    return positions


def _published_layer(tensors: Tensors, number: int, shape: RotaryShape) -> RotaryLayer:
    at, hidden, inner = f"encoder.layers.{number}", shape.hidden, shape.feed_forward
    query, key, value = split(linear(tensors, f"{at}.attn.Wqkv", hidden, 3 * hidden), 3)
    return RotaryLayer(
        query=query,
        key=key,
        value=value,
        attention_out=linear(tensors, f"{at}.attn.out_proj", hidden, hidden),
        attention_norms=Norms(after=norm(tensors, f"{at}.norm1", hidden)),
        gate=linear(tensors, f"{at}.mlp.fc12", hidden, inner),
        up=linear(tensors, f"{at}.mlp.fc11", hidden, inner),
        down=linear(tensors, f"{at}.mlp.fc2", inner, hidden),
        feed_norms=Norms(after=norm(tensors, f"{at}.norm2", hidden)),
    )


def _saved_layer(tensors: Tensors, number: int, shape: RotaryShape) -> RotaryLayer:
    at, hidden, inner = f"layers.{number}", shape.hidden, shape.feed_forward
    return RotaryLayer(
        query=linear(tensors, f"{at}.self_attn.q_proj", hidden, hidden),
        key=linear(tensors, f"{at}.self_attn.k_proj", hidden, hidden),
        value=linear(tensors, f"{at}.self_attn.v_proj", hidden, hidden),
        attention_out=linear(tensors, f"{at}.self_attn.o_proj", hidden, hidden),
        attention_norms=Norms(after=norm(tensors, f"{at}.post_attention_layernorm", hidden)),
        gate=linear(tensors, f"{at}.mlp.gate_proj", hidden, inner),
        up=linear(tensors, f"{at}.mlp.up_proj", hidden, inner),
        down=linear(tensors, f"{at}.mlp.down_proj", inner, hidden),
        feed_norms=Norms(after=norm(tensors, f"{at}.post_mlp_layernorm", hidden)),
    )
