"""Decoders that were trained to embed: Qwen3, and Gemma 3 that looks both ways."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import Any

from memworker.models.family import Config, refuse_others, size
from memworker.models.rotary import (
    GateKind,
    Norms,
    Reach,
    RotaryLayer,
    RotaryShape,
    RotaryWeights,
)
from memworker.models.rotary_family import (
    RotaryFamily,
    layer_kinds,
    linear,
    norm,
    number,
    share,
    turn_of,
)
from memworker.models.tensors import Tensors

_FULL, _SLIDING = "full_attention", "sliding_attention"


class _Decoder(RotaryFamily):
    """What both share: names of tensors, keys of the config."""

    fixed_scales = False

    def read(self, path: Path, config: Config) -> RotaryWeights:
        shape = self.shape(config)
        tensors = Tensors(path, "embed_tokens.weight")
        weights = RotaryWeights(
            shape=shape,
            words=self._words(tensors.take("embed_tokens.weight", (None, shape.hidden))),
            norm=None,
            layers=tuple(self._layer(tensors, f"layers.{n}", shape) for n in range(shape.layers)),
            last_norm=self._norm(tensors, "norm", shape.hidden),
        )
        tensors.refuse_untaken("layers.")
        return weights

    def _words(self, words: Any) -> Any:
        return words

    def _norm(self, tensors: Tensors, at: str, width: int) -> Any:
        return norm(tensors, at, width)

    @abstractmethod
    def _norms(self, tensors: Tensors, at: str, width: int) -> tuple[Norms, Norms]:
        """Take the normalisations around both blocks."""

    def _layer(self, tensors: Tensors, at: str, shape: RotaryShape) -> RotaryLayer:
        hidden, inner = shape.hidden, shape.feed_forward
        asking, asked = shape.heads * shape.head, shape.key_heads * shape.head
        attention_norms, feed_norms = self._norms(tensors, at, hidden)
        return RotaryLayer(
            query=linear(tensors, f"{at}.self_attn.q_proj", hidden, asking),
            key=linear(tensors, f"{at}.self_attn.k_proj", hidden, asked),
            value=linear(tensors, f"{at}.self_attn.v_proj", hidden, asked),
            attention_out=linear(tensors, f"{at}.self_attn.o_proj", asking, hidden),
            attention_norms=attention_norms,
            gate=linear(tensors, f"{at}.mlp.gate_proj", hidden, inner),
            up=linear(tensors, f"{at}.mlp.up_proj", hidden, inner),
            down=linear(tensors, f"{at}.mlp.down_proj", inner, hidden),
            feed_norms=feed_norms,
            query_norm=self._norm(tensors, f"{at}.self_attn.q_norm", shape.head),
            key_norm=self._norm(tensors, f"{at}.self_attn.k_norm", shape.head),
        )


class Qwen3(_Decoder):
    model_types = ("qwen3",)

    def shape(self, config: Config) -> RotaryShape:
        refuse_others(config, {"hidden_act": ("silu",), "is_causal": (True,)})
        layers, heads = size(config, "num_hidden_layers"), size(config, "num_attention_heads")
        first = size(config, "max_window_layers", layers, least=0)
        slides = bool(config.get("use_sliding_window")) and config.get("sliding_window") is not None
        kinds = [_SLIDING if slides and n >= first else _FULL for n in range(layers)]
        turn = turn_of(config, _FULL, "rope_theta", 10_000.0, scaling="rope_scaling")
        # The window counts the token itself.
        window = size(config, "sliding_window", least=2) - 1 if slides else 0
        reach = {_FULL: Reach(turn), _SLIDING: Reach(turn, window)}
        head = size(config, "head_dim", 128, least=2)
        key_heads = size(config, "num_key_value_heads", heads)
        share(heads, key_heads, "num_attention_heads by num_key_value_heads")
        return RotaryShape(
            hidden=size(config, "hidden_size"),
            heads=heads,
            key_heads=key_heads,
            head=head,
            feed_forward=size(config, "intermediate_size"),
            positions=size(config, "max_position_embeddings", 32768),
            reach=tuple(reach[kind] for kind in layer_kinds(config, kinds)),
            gate=GateKind.SILU,
            norm_eps=number(config, "rms_norm_eps", 1e-6),
            scale=head**-0.5,
            rms=True,
            causal=True,
        )

    def _norms(self, tensors: Tensors, at: str, width: int) -> tuple[Norms, Norms]:
        return (
            Norms(before=self._norm(tensors, f"{at}.input_layernorm", width)),
            Norms(before=self._norm(tensors, f"{at}.post_attention_layernorm", width)),
        )


class Gemma3(_Decoder):
    model_types = ("gemma3_text",)

    def shape(self, config: Config) -> RotaryShape:
        handled = {
            "hidden_activation": ("gelu_pytorch_tanh",),
            "attn_logit_softcapping": (None,),
            "use_bidirectional_attention": (False, True, None),
        }
        refuse_others(config, handled)
        layers, heads = size(config, "num_hidden_layers"), size(config, "num_attention_heads")
        both_ways = bool(config.get("use_bidirectional_attention"))
        pattern = "sliding_window_pattern"
        key = pattern if config.get(pattern) is not None else f"_{pattern}"
        every = size(config, key, 6) if config.get(key) is not None else 6
        kinds = [_SLIDING if (n + 1) % every else _FULL for n in range(layers)]
        sliding = size(config, "sliding_window", 4096, least=2)
        reach = {
            _FULL: Reach(turn_of(config, _FULL, "rope_theta", 1e6, scaling="rope_scaling")),
            # Half of it on each side; or behind alone, counting the token itself.
            _SLIDING: Reach(
                turn_of(config, _SLIDING, "rope_local_base_freq", 10_000.0),
                sliding // 2 if both_ways else sliding - 1,
            ),
        }
        key_heads = size(config, "num_key_value_heads", heads)
        share(heads, key_heads, "num_attention_heads by num_key_value_heads")
        return RotaryShape(
            hidden=size(config, "hidden_size"),
            heads=heads,
            key_heads=key_heads,
            head=size(config, "head_dim", 256, least=2),
            feed_forward=size(config, "intermediate_size"),
            positions=size(config, "max_position_embeddings", 131_072),
            reach=tuple(reach[kind] for kind in layer_kinds(config, kinds)),
            gate=GateKind.GELU_TANH,
            norm_eps=number(config, "rms_norm_eps", 1e-6),
            scale=number(config, "query_pre_attn_scalar", 256) ** -0.5,
            rms=True,
            causal=not both_ways,
        )

    def _words(self, words: Any) -> Any:
        import numpy as np

        return words * np.float32(words.shape[1] ** 0.5)

    def _norm(self, tensors: Tensors, at: str, width: int) -> Any:
        # Kept as what is missing to 1.
        return norm(tensors, at, width, more=1.0)

    def _norms(self, tensors: Tensors, at: str, width: int) -> tuple[Norms, Norms]:
        return (
            Norms(
                before=self._norm(tensors, f"{at}.input_layernorm", width),
                behind=self._norm(tensors, f"{at}.post_attention_layernorm", width),
            ),
            Norms(
                before=self._norm(tensors, f"{at}.pre_feedforward_layernorm", width),
                behind=self._norm(tensors, f"{at}.post_feedforward_layernorm", width),
            ),
        )
