"""Every family in every precision against its own numpy, and the files that it may come in."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from memworker import EmbeddingPool
from memworker.errors import ModelCorrupt, ModelUnsupported
from memworker.models import bert_like, bf16, ready_model
from tests.models.conftest import open_session, run_padded
from tests.models.tiny import Sizes, write_modules
from tests.models.tiny_families import KINDS, bucket, make_model, numpy_model

ROWS = [[2, 10, 11, 12, 3], [2, 40, 3], [2, *range(5, 40), 3], [2, 3]]


def expected(folder, *, cls=False, rows=ROWS):
    hidden = [numpy_model(folder, ids) for ids in rows]
    pooled = np.array([states[0] if cls else states.mean(0) for states in hidden])
    return pooled / np.linalg.norm(pooled, axis=1, keepdims=True)


def session_of(folder, cache, precision="fp32"):
    return open_session(ready_model(folder, precision=precision, cache_dir=cache).graph)


def check_fp32(folder, cache, *, cls=False):
    """Hold what the graph gives of padded rows, and of rows alone, against numpy."""
    wanted, session = expected(folder, cls=cls), session_of(folder, cache)
    assert np.abs(run_padded(session, ROWS, extra=2) - wanted).max() < 1e-5
    # Where nothing is padded, the graph has another branch.
    alone = np.concatenate([run_padded(session, [row]) for row in ROWS])
    assert np.abs(alone - wanted).max() < 1e-5


@pytest.mark.parametrize("pooling", ["mean_tokens", "cls_token"])
@pytest.mark.parametrize("kind", KINDS)
def test_fp32_equals_numpy(tmp_path, cache, kind, pooling):
    folder = make_model(tmp_path / "model", kind)
    write_modules(folder, pooling=pooling)
    check_fp32(folder, cache, cls=pooling == "cls_token")


@pytest.mark.parametrize("kind", ["xlm-roberta", "mpnet", "distilbert"])
@pytest.mark.parametrize("pooling", ["mean_tokens", "cls_token"])
def test_int8_is_near_and_deaf_to_neighbours(tmp_path, cache, kind, pooling):
    folder = make_model(tmp_path / "model", kind)
    write_modules(folder, pooling=pooling)
    session = session_of(folder, cache, "int8")
    small = run_padded(session, ROWS, extra=2)
    assert (small * expected(folder, cls=pooling == "cls_token")).sum(1).min() > 0.998
    random = np.random.default_rng(1)
    rows = [[2, *random.integers(5, 60, random.integers(0, 30)), 3] for _ in range(20)]
    alone = np.concatenate([run_padded(session, [row]) for row in rows])
    for _ in range(20):
        some = random.choice(20, random.integers(1, 9), replace=False)
        beside = run_padded(session, [rows[row] for row in some], extra=int(random.integers(0, 8)))
        np.testing.assert_allclose(beside, alone[some], atol=1e-6)


@pytest.mark.skipif(bool(bf16.obstacle()), reason=f"for bf16 {bf16.obstacle()}")
def test_bf16_is_near(tmp_path):
    folder = make_model(tmp_path / "model", "mpnet", hidden_act="relu")
    texts = [" ".join(f"w{word}" for word in range(count)) for count in (1, 2, 9, 36)]
    with EmbeddingPool(folder, precision="bf16", workers=1) as pool:
        found = pool.embed(texts)
    with EmbeddingPool(folder, workers=1) as pool:
        assert (found * pool.embed(texts)).sum(1).min() > 0.999


@pytest.mark.parametrize("kind", ["gelu_new", "gelu_pytorch_tanh", "gelu_fast", "relu"])
def test_activations(tmp_path, cache, kind):
    folder = make_model(tmp_path / "model", "bert", hidden_act=kind)
    check_fp32(folder, cache)
    small = run_padded(session_of(folder, cache, "int8"), ROWS)
    assert (small * expected(folder)).sum(1).min() > 0.998


@pytest.mark.parametrize("pooling", ["mean_tokens", "cls_token"])
def test_long_texts_get_their_scores_in_blocks(tmp_path, cache, pooling):
    """As bge-m3 takes them: all scores at once would take gigabytes."""
    sizes = Sizes(hidden=16, inner=16, heads=2, positions=1400)
    folder = make_model(tmp_path / "model", "xlm-roberta", sizes=sizes)
    write_modules(folder, pooling=pooling)
    random = np.random.default_rng(3)
    rows = [[2, *random.integers(5, 60, count), 3] for count in (1278, 1027, 30)]
    wanted = expected(folder, cls=pooling == "cls_token", rows=rows)
    graph = ready_model(folder, cache_dir=cache).graph
    assert b"Loop" in graph.read_bytes()
    session = open_session(graph)
    assert np.abs(run_padded(session, rows) - wanted).max() < 1e-5
    alone = np.concatenate([run_padded(session, [row]) for row in rows])
    assert np.abs(alone - wanted).max() < 1e-5
    small = session_of(folder, cache, "int8")
    beside, alone = run_padded(small, rows), [run_padded(small, [row]) for row in rows]
    np.testing.assert_allclose(beside, np.concatenate(alone), atol=1e-6)
    assert (beside * wanted).sum(1).min() > 0.998


def test_buckets_of_all_distances():
    """As transformers has them: distances 0, 1, ..., 7, then from 8, 12, 16, 23, 32, 46, 64, 91."""
    found = bert_like.buckets(512)
    assert found.tolist() == [bucket(behind) for behind in range(-511, 512)]
    starts = [int(np.flatnonzero(found[511::-1] == number)[0]) for number in range(16)]
    assert starts == [*range(8), 8, 12, 16, 23, 32, 46, 64, 91]


@pytest.mark.parametrize("prefix", ["", "model.", "0.auto_model.", "bert."])
def test_whatever_stands_before_names(tmp_path, cache, prefix):
    check_fp32(make_model(tmp_path / "model", "xlm-roberta", prefix=prefix), cache)


def test_positions_are_counted_behind_the_padding_token(tmp_path, cache):
    folder = make_model(tmp_path / "model", "roberta")
    assert ready_model(folder, cache_dir=cache).max_tokens == 40
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"pad_token_id": 3}))
    assert ready_model(folder, cache_dir=cache).max_tokens == 38
    del config["pad_token_id"]
    (folder / "config.json").write_text(json.dumps(config))
    assert ready_model(folder, cache_dir=cache).max_tokens == 40
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 2}))
    with pytest.raises(ModelCorrupt, match="0 positions"):
        ready_model(folder, cache_dir=cache)


def test_heads_of_other_tasks_are_left_out_and_other_tensors_refused(tmp_path, cache):
    folder = make_model(tmp_path / "model", "roberta")
    path = folder / "model.safetensors"
    tensors = load_file(path)
    nothing = np.zeros(4, np.float32)
    places = np.arange(42, dtype=np.int64)
    heads = {"lm_head.bias": nothing, "roberta.pooler.dense.bias": nothing}
    heads |= {"roberta.embeddings.position_ids": places}
    # Layers beyond those that config.json counts are not run by anybody.
    save_file(tensors | heads | {"roberta.encoder.layer.2.output.dense.bias": nothing}, path)
    check_fp32(folder, cache)
    for name in ("embeddings.extra.weight", "encoder.layer.1.attention.self.distance.weight"):
        save_file(tensors | {f"roberta.{name}": nothing}, path)
        with pytest.raises(ModelUnsupported, match=f"{name}.*ONNX export"):
            ready_model(folder, cache_dir=cache)


def test_two_encoders_in_one_file(tmp_path, cache):
    folder = make_model(tmp_path / "model", "bert")
    path = folder / "model.safetensors"
    tensors = load_file(path)
    save_file(tensors | {f"other.{name}": tensor for name, tensor in tensors.items()}, path)
    with pytest.raises(ModelUnsupported, match=r"more than one encoder.*other\.bert\."):
        ready_model(folder, cache_dir=cache)


def shard(folder, parts=3):
    """Cut model.safetensors into shards, as transformers names and indexes them."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    places = {}
    for number in range(parts):
        name = f"model-{number + 1:05}-of-{parts:05}.safetensors"
        own = dict(list(tensors.items())[number::parts])
        save_file(own, folder / name)
        places |= dict.fromkeys(own, name)
    index = {"metadata": {}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return index


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_shards(tmp_path, cache, precision):
    folder = make_model(tmp_path / "model", "xlm-roberta")
    wanted = expected(folder)
    shard(folder)
    ready = ready_model(folder, precision=precision, cache_dir=cache)
    found = run_padded(open_session(ready.graph), ROWS)
    assert np.abs(found - wanted).max() < (1e-5 if precision == "fp32" else 0.05)
    # Each of them is part of what the vectors are.
    path = folder / "model-00002-of-00003.safetensors"
    tensors = load_file(path)
    next(iter(tensors.values())).flat[0] += 1
    save_file(tensors, path)
    changed = ready_model(folder, precision=precision, cache_dir=cache)
    assert changed.fingerprint != ready.fingerprint


def test_shards_that_are_not_there_or_elsewhere(tmp_path, cache):
    folder = make_model(tmp_path / "model", "xlm-roberta")
    index = shard(folder)
    (folder / "model-00002-of-00003.safetensors").rename(tmp_path / "other.safetensors")
    with pytest.raises(ModelCorrupt, match="model-00002-of-00003"):
        ready_model(folder, cache_dir=cache)
    shutil.copy(tmp_path / "other.safetensors", folder / "model-00002-of-00003.safetensors")
    for name in ("../other.safetensors", str(tmp_path / "other.safetensors"), 7):
        index["weight_map"]["roberta.embeddings.LayerNorm.bias"] = name
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        with pytest.raises(ModelUnsupported, match="only files beside it"):
            ready_model(folder, cache_dir=cache)
    for damaged in ("", "[]", '{"weight_map": []}', '{"weight_map": null}'):
        (folder / "model.safetensors.index.json").write_text(damaged)
        with pytest.raises(ModelCorrupt, match="Fetch the model again"):
            ready_model(folder, cache_dir=cache)


@pytest.mark.parametrize("kind", ["F16", "BF16", "F64"])
def test_other_kinds_of_numbers(tmp_path, cache, kind):
    import ml_dtypes

    folder = make_model(tmp_path / "model", "bert")
    path = folder / "model.safetensors"
    types = {"F16": np.float16, "BF16": ml_dtypes.bfloat16, "F64": np.float64}
    stored = {name: tensor.astype(types[kind]) for name, tensor in load_file(path).items()}
    save_file({name: tensor.astype(np.float32) for name, tensor in stored.items()}, path)
    wanted = expected(folder)
    save_file(stored, path)
    assert np.abs(run_padded(session_of(folder, cache), ROWS) - wanted).max() < 1e-5


def test_numbers_that_are_none(tmp_path, cache):
    folder = make_model(tmp_path / "model", "bert")
    path = folder / "model.safetensors"
    tensors = load_file(path)
    codes = {"bert.embeddings.word_embeddings.weight": np.zeros((64, 32), np.int8)}
    save_file(tensors | codes, path)
    with pytest.raises(ModelUnsupported, match="stored as I8; memworker reads"):
        ready_model(folder, cache_dir=cache)


def test_gamma_and_beta_are_scale_and_shift(tmp_path, cache):
    folder = make_model(tmp_path / "model", "bert")
    wanted = expected(folder)
    path = folder / "model.safetensors"
    old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    renamed = {}
    for name, tensor in load_file(path).items():
        for new in old:
            name = name.replace(new, old[new])
        renamed[name] = tensor
    save_file(renamed, path)
    assert np.abs(run_padded(session_of(folder, cache), ROWS) - wanted).max() < 1e-5


@pytest.mark.parametrize(
    "change", [{"num_attention_heads": 5}, {"hidden_size": 0}, {"num_hidden_layers": "2"}]
)
def test_sizes_that_cannot_be(tmp_path, cache, change):
    folder = make_model(tmp_path / "model", "xlm-roberta", **change)
    with pytest.raises(ModelCorrupt, match=r"config\.json"):
        ready_model(folder, cache_dir=cache)


@pytest.mark.parametrize("name", ["sentencepiece.bpe.model", "vocab.txt"])
def test_a_slow_tokenizer_alone(tmp_path, cache, name):
    folder = make_model(tmp_path / "model", "xlm-roberta", sizes=Sizes(layers=1))
    (folder / "tokenizer.json").rename(folder / name)
    with pytest.raises(ModelUnsupported, match=f"only {name}.*save_pretrained") as caught:
        ready_model(folder, cache_dir=cache)
    assert "\n" not in str(caught.value)
