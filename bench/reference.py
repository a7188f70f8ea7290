"""What other tools run: the token-level graph that ONNX Runtime's optimiser makes of BERT.

Benches and fidelity tests give it to fastembed (`specific_model_path`), so that
both sides compute from the same weights. One packed Q/K/V `Attention` and
`SkipLayerNormalization`, no pooling.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from memworker.errors import UsageError
from memworker.models import BertLayer, BertWeights, GraphWriter, ReadyModel, read_bert, tensor_info


def export_reference(model: ReadyModel, directory: Path) -> Path:
    """Write `model` as fastembed expects a model directory, and return the ONNX file.

    The graph takes input_ids, attention_mask and token_type_ids, int64[n, tokens],
    and gives last_hidden_state, float32[n, tokens, dim]. Truncation is the
    model's `max_tokens`. Raises UsageError for a model without safetensors.
    """
    source = model.tokenizer.parent
    if not (source / "model.safetensors").is_file():
        raise UsageError(
            f"{model.spec.name} has no model.safetensors: {model.graph} is what others run."
        )
    directory.mkdir(parents=True, exist_ok=True)
    for name in ("config.json", "tokenizer.json"):
        shutil.copyfile(source / name, directory / name)
    _write_tokenizer_settings(directory, model.max_tokens)
    path = directory / "model.onnx"
    _build(read_bert(source), path)
    return path


def _write_tokenizer_settings(directory: Path, max_tokens: int) -> None:
    added = json.loads((directory / "tokenizer.json").read_bytes()).get("added_tokens", [])
    special = {token["content"] for token in added if token.get("special")}
    named = {f"{role}_token": f"[{role.upper()}]" for role in ("unk", "sep", "pad", "cls", "mask")}
    tokens = {role: token for role, token in named.items() if token in special}
    (directory / "special_tokens_map.json").write_text(json.dumps(tokens))
    settings = {"model_max_length": max_tokens, "max_length": max_tokens, **tokens}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))


def _build(bert: BertWeights, path: Path) -> None:
    graph = GraphWriter("bert-reference")
    inputs = ("input_ids", "attention_mask", "token_type_ids")
    ids, mask, types = (graph.op("Cast", name, name=f"{name}_32", to=_INT32) for name in inputs)
    hidden = graph.fused(
        "EmbedLayerNormalization",
        ids,
        types,
        graph.weight("words", bert.words),
        graph.weight("positions", bert.positions),
        graph.weight("token_types", bert.token_types),
        graph.weight("embedding_norm.scale", bert.norm.scale),
        graph.weight("embedding_norm.shift", bert.norm.shift),
        name="embedded",
        outputs=2,
        epsilon=bert.shape.norm_eps,
    )
    for number, layer in enumerate(bert.layers):
        hidden = _layer(graph, f"layer{number}", layer, bert, hidden, mask)
    graph.op("Identity", hidden, name="last_hidden_state")
    infos = [tensor_info(name, "int64", ["n", "tokens"]) for name in inputs]
    shape: list[str | int] = ["n", "tokens", bert.shape.hidden]
    graph.save(path, infos, [tensor_info("last_hidden_state", "float", shape)])


_INT32 = 6


def _layer(
    graph: GraphWriter, at: str, layer: BertLayer, bert: BertWeights, hidden: str, mask: str
) -> str:
    import numpy as np

    parts = (layer.query, layer.key, layer.value)
    weight = graph.weight(f"{at}.qkv", np.concatenate([p.weight for p in parts], axis=1))
    bias = graph.weight(f"{at}.qkv.bias", np.concatenate([p.bias for p in parts]))
    heads = bert.shape.heads
    context = graph.fused(
        "Attention", hidden, weight, bias, mask, name=f"{at}.attention", num_heads=heads
    )
    projected = graph.op(
        "MatMul", context, graph.weight(f"{at}.out", layer.attention_out.weight), name=f"{at}.mm1"
    )
    attended = graph.fused(
        "SkipLayerNormalization",
        projected,
        hidden,
        graph.weight(f"{at}.norm1.scale", layer.attention_norm.scale),
        graph.weight(f"{at}.norm1.shift", layer.attention_norm.shift),
        graph.weight(f"{at}.out.bias", layer.attention_out.bias),
        name=f"{at}.norm1",
        epsilon=bert.shape.norm_eps,
    )
    return _feed_forward(graph, at, layer, bert, attended)


def _feed_forward(
    graph: GraphWriter, at: str, layer: BertLayer, bert: BertWeights, attended: str
) -> str:
    weight_in = graph.weight(f"{at}.in", layer.feed_in.weight)
    inner = graph.op("MatMul", attended, weight_in, name=f"{at}.mm2")
    bias_in = graph.weight(f"{at}.in.bias", layer.feed_in.bias)
    active = graph.fused("BiasGelu", inner, bias_in, name=f"{at}.gelu")
    weight_out = graph.weight(f"{at}.ff", layer.feed_out.weight)
    outer = graph.op("MatMul", active, weight_out, name=f"{at}.mm3")
    return graph.fused(
        "SkipLayerNormalization",
        outer,
        attended,
        graph.weight(f"{at}.norm2.scale", layer.feed_norm.scale),
        graph.weight(f"{at}.norm2.shift", layer.feed_norm.shift),
        graph.weight(f"{at}.ff.bias", layer.feed_out.bias),
        name=f"{at}.norm2",
        epsilon=bert.shape.norm_eps,
    )
