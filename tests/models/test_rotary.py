"""nomic-bert, ModernBERT, Qwen3 and Gemma 3: their graphs against numpy, and what is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from memworker import EmbeddingPool
from memworker.errors import ModelCorrupt, ModelUnsupported
from memworker.models import bf16, ready_model
from memworker.models.calibration import with_rare_tokens
from memworker.models.family import family_of
from memworker.models.head import Head
from memworker.models.rotary_attention import AT_ONCE
from memworker.models.spec import Pooling
from tests.models.conftest import open_session, run_padded
from tests.models.rotary import (
    FAMILIES,
    GEMMA3,
    MODERNBERT,
    NOMIC,
    POSITIONS,
    QWEN3,
    make_rotary,
    numpy_rotary,
    pooled,
)
from tests.models.test_int8 import cosines
from tests.models.tiny import write_modules

RANDOM = np.random.default_rng(11)
# Shorter and longer than all windows.
ROWS = [RANDOM.integers(5, 64, length).tolist() for length in (1, 4, 9, 10, 17, 40, 90)]


def read(folder):
    config = json.loads((folder / "config.json").read_text())
    family = family_of(config)
    return family, family.read(folder / "model.safetensors", config)


def expected_vectors(folder, rows, pooling):
    return np.array([pooled(numpy_rotary(folder, ids), pooling) for ids in rows])


@pytest.mark.parametrize("name", FAMILIES)
def test_equals_numpy(tmp_path, name):
    folder = make_rotary(tmp_path / "model", FAMILIES[name])
    family, weights = read(folder)
    for pooling in Pooling:
        family.write_fp32(weights, Head(pooling, False), tmp_path / "model.onnx")
        session = open_session(tmp_path / "model.onnx")
        together = run_padded(session, ROWS, extra=7)
        expected = expected_vectors(folder, ROWS, pooling)
        assert np.abs(together - expected).max() < 1e-5
        alone = np.concatenate([run_padded(session, [ids]) for ids in ROWS])
        np.testing.assert_allclose(alone, together, atol=1e-6 * np.abs(expected).max())
        nothing = np.zeros((2, 4), np.int64)
        masked = session.run(None, {"input_ids": nothing, "attention_mask": nothing})[0]
        assert np.isfinite(masked).all()


@pytest.mark.parametrize("name", FAMILIES)
def test_long_texts_are_computed_in_blocks(tmp_path, name):
    folder = make_rotary(tmp_path / "model", FAMILIES[name])
    family, weights = read(folder)
    family.write_fp32(weights, Head(Pooling.MEAN, False), tmp_path / "model.onnx")
    rows = [RANDOM.integers(5, 64, length).tolist() for length in (AT_ONCE + 77, 300)]
    vectors = run_padded(open_session(tmp_path / "model.onnx"), rows, extra=5)
    assert np.abs(vectors - expected_vectors(folder, rows, "mean")).max() < 1e-5


@pytest.mark.parametrize("name", FAMILIES)
def test_int8_is_near_and_deaf_to_neighbours(tmp_path, name):
    folder = make_rotary(tmp_path / "model", FAMILIES[name])
    family, weights = read(folder)
    pooling = Pooling.LAST if "qwen3" in name else Pooling.MEAN
    texts = [RANDOM.integers(5, 64, length).tolist() for length in RANDOM.integers(2, 60, 60)]
    path = tmp_path / "model.onnx"
    family.write_int8(weights, Head(pooling, True), with_rare_tokens(texts, 64), path)
    session = open_session(path)
    alone = np.concatenate([run_padded(session, [ids]) for ids in ROWS])
    agreement = cosines(alone, expected_vectors(folder, ROWS, pooling))
    assert agreement.mean() > 0.998 and agreement.min() > 0.995
    for _ in range(60):
        some = RANDOM.choice(len(ROWS), RANDOM.integers(1, 6), replace=False)
        extra = int(RANDOM.integers(0, 40))
        beside = run_padded(session, [ROWS[row] for row in some], extra=extra)
        np.testing.assert_allclose(beside, alone[some], atol=1e-6)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_pool_gives_the_vectors_of_a_folder(tmp_path, precision):
    folder = make_rotary(tmp_path / "model", QWEN3, prefix="model.")
    write_modules(folder, pooling="lasttoken")
    prompts = {"query": "w50 w51 ", "document": ""}
    (folder / "config_sentence_transformers.json").write_text(json.dumps({"prompts": prompts}))
    ids = [[10, 11, 12], [40], list(range(5, 60))]
    texts = [" ".join(f"w{token - 5}" for token in row) for row in ids]
    with EmbeddingPool(folder, precision=precision, workers=2) as pool:
        vectors, query = pool.embed(texts), pool.embed(texts[:1], kind="query")
    ids.append([55, 56, *ids[0]])
    expected = expected_vectors(folder, ids, "last")
    least = 0.99999 if precision == "fp32" else 0.99
    assert cosines(np.concatenate([vectors, query]), expected).min() > least


def test_bf16_is_near(tmp_path):
    if reason := bf16.obstacle():
        pytest.skip(f"for bf16 {reason}")
    for name, config in FAMILIES.items():
        folder = make_rotary(tmp_path / name, config)
        text = " ".join(f"w{token - 5}" for token in ROWS[-1])
        with EmbeddingPool(folder, precision="bf16", workers=1) as pool:
            vectors = pool.embed([text])
        assert cosines(vectors, expected_vectors(folder, ROWS[-1:], "mean")).min() > 0.999


# What transformers 5 writes for the same models.
NEWER = {
    "modernbert": (
        MODERNBERT,
        ("global_rope_theta", "local_rope_theta", "global_attn_every_n_layers"),
        {
            "rope_parameters": {
                "full_attention": {"rope_type": "default", "rope_theta": 160_000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
            },
            "layer_types": ["full_attention", *["sliding_attention"] * 2, "full_attention"],
        },
    ),
    "qwen3": (
        QWEN3,
        ("rope_theta", "rope_scaling"),
        {"rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000}},
    ),
    "gemma3": (
        FAMILIES["gemma3 that looks back"],
        ("rope_theta", "rope_scaling", "rope_local_base_freq"),
        {
            "rope_parameters": {
                "full_attention": {
                    "rope_type": "linear",
                    "factor": 8.0,
                    "rope_theta": 1_000_000.0,
                },
                "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
            }
        },
    ),
}


@pytest.mark.parametrize("name", NEWER)
def test_old_and_new_configs_mean_the_same(name):
    config, gone, new = NEWER[name]
    newer = {key: value for key, value in config.items() if key not in gone} | new
    family = family_of(config)
    assert family.shape(newer) == family.shape(config)


def test_the_layers_are_named_by_a_pattern_or_one_by_one():
    family = family_of(GEMMA3)
    unnamed = {k: v for k, v in GEMMA3.items() if k != "layer_types"} | {"num_hidden_layers": 7}
    windows = [reach.window for reach in family.shape(unnamed).reach]
    assert windows == [8, 8, 8, 8, 8, 0, 8]
    two = family.shape(unnamed | {"_sliding_window_pattern": 2})
    assert [reach.window for reach in two.reach] == [8, 0, 8, 0, 8, 0, 8]


def test_what_transformers_saves_of_nomic_is_read(tmp_path):
    published = make_rotary(tmp_path / "published", NOMIC)
    saved = make_rotary(tmp_path / "saved", NOMIC)
    tensors = load_file(saved / "model.safetensors")
    names = {
        "emb_ln": "embeddings.LayerNorm",
        "encoder.layers": "layers",
        "attn.out_proj": "self_attn.o_proj",
        "fc11": "up_proj",
        "fc12": "gate_proj",
        "fc2": "down_proj",
        "norm1": "post_attention_layernorm",
        "norm2": "post_mlp_layernorm",
    }
    renamed = {}
    for name, tensor in tensors.items():
        for old, new in names.items():
            name = name.replace(old, new)
        if "Wqkv" in name:
            for kind, part in zip("qkv", np.split(tensor, 3), strict=True):
                renamed[name.replace("attn.Wqkv", f"self_attn.{kind}_proj")] = part.copy()
        else:
            renamed[name] = tensor
    save_file(renamed, saved / "model.safetensors")
    config = {
        "model_type": "nomic_bert",
        "hidden_size": NOMIC["n_embd"],
        "num_attention_heads": NOMIC["n_head"],
        "intermediate_size": NOMIC["n_inner"],
        "num_hidden_layers": NOMIC["n_layer"],
        "max_position_embeddings": POSITIONS,
        "hidden_act": "silu",
        "layer_norm_eps": 1e-12,
        "rope_parameters": {"rope_theta": 1000.0, "rope_type": "default"},
    }
    (saved / "config.json").write_text(json.dumps(config))
    (family, ours), (_, theirs) = read(published), read(saved)
    assert ours.shape == theirs.shape
    vectors = []
    for weights in (ours, theirs):
        family.write_fp32(weights, Head(Pooling.MEAN, True), tmp_path / "model.onnx")
        vectors.append(run_padded(open_session(tmp_path / "model.onnx"), ROWS))
    np.testing.assert_array_equal(*vectors)


def test_a_scaled_nomic_keeps_to_what_it_was_trained_on():
    family = family_of(NOMIC)
    assert family.position_limit(NOMIC) == POSITIONS
    assert family.position_limit(NOMIC | {"rotary_scaling_factor": 2}) == 600


REFUSED = [
    (NOMIC, {"activation_function": "gelu"}),
    (NOMIC, {"prenorm": True}),
    (NOMIC, {"rotary_emb_fraction": 0.5}),
    (NOMIC, {"rotary_emb_interleaved": True}),
    (NOMIC, {"num_experts": 8}),
    (MODERNBERT, {"hidden_activation": "silu"}),
    (MODERNBERT, {"layer_types": ["chunked_attention"] * 4}),
    (QWEN3, {"hidden_act": "gelu"}),
    (QWEN3, {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}),
    (QWEN3, {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}),
    (GEMMA3, {"hidden_activation": "gelu"}),
    (GEMMA3, {"attn_logit_softcapping": 50.0}),
]


@pytest.mark.parametrize(("config", "change"), REFUSED)
def test_what_is_not_built_is_refused_by_key_and_value(tmp_path, cache, config, change):
    folder = make_rotary(tmp_path / "model", config)
    (folder / "config.json").write_text(json.dumps(config | change))
    key, value = next(iter(change.items()))
    with pytest.raises(ModelUnsupported, match="ONNX export") as refused:
        ready_model(folder, cache_dir=cache)
    said = value[0] if isinstance(value, list) else value
    said = said["rope_type"] if isinstance(said, dict) else said
    assert key in str(refused.value) and str(said) in str(refused.value)


WRONG = [
    (NOMIC, {"n_head": 5}, "n_embd by n_head"),
    (MODERNBERT, {"num_attention_heads": 0}, "num_attention_heads"),
    (MODERNBERT, {"layer_types": ["full_attention"]}, "layer_types"),
    (QWEN3, {"num_key_value_heads": 3}, "num_key_value_heads"),
    (QWEN3, {"rms_norm_eps": -1}, "rms_norm_eps"),
    (QWEN3, {"rope_theta": "large"}, "rope_theta"),
    (GEMMA3, {"head_dim": 32}, r"config\.json makes it"),
    (GEMMA3, {"sliding_window_pattern": "x"}, "sliding_window_pattern is 'x'"),
    (GEMMA3, {"_sliding_window_pattern": [6]}, r"_sliding_window_pattern is \[6\]"),
    (GEMMA3, {"num_hidden_layers": 4, "layer_types": None}, "has no tensor"),
]


@pytest.mark.parametrize(("config", "change", "match"), WRONG)
def test_a_wrong_config_is_an_error(tmp_path, cache, config, change, match):
    folder = make_rotary(tmp_path / "model", config)
    (folder / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(ModelCorrupt, match=match):
        ready_model(folder, cache_dir=cache)


def test_tensors_that_nobody_takes_are_refused(tmp_path, cache):
    folder = make_rotary(tmp_path / "model", QWEN3)
    tensors = load_file(folder / "model.safetensors")
    tensors["layers.0.self_attn.sinks"] = np.ones(4, np.float32)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ModelUnsupported, match="sinks"):
        ready_model(folder, cache_dir=cache)


@pytest.mark.parametrize("name", ["nomic", "gemma3"])
def test_int8_of_broken_weights_is_refused(tmp_path, cache, name):
    folder = make_rotary(tmp_path / "model", FAMILIES[name])
    tensors = load_file(folder / "model.safetensors")
    broken = next(key for key in tensors if key.endswith(("fc2.weight", "down_proj.weight")))
    tensors[broken][0, 0] = np.nan
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ModelCorrupt, match="not finite"):
        ready_model(folder, precision="int8", cache_dir=cache)
