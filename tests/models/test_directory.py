"""Local directories in Hugging Face layout: safetensors, ONNX, and what is refused."""

from __future__ import annotations

import json
import shutil

import numpy as np
import onnx
import pytest

from bench.reference import export_reference
from memworker.errors import ModelCorrupt, ModelUnsupported
from memworker.models import Pooling, ready_model
from memworker.pool.encoder import OnnxEncoder
from memworker.pool.plan import Costs
from tests.models.conftest import open_session, run_padded
from tests.models.test_graph import expected_vector
from tests.models.tiny import make_bert, write_config, write_modules


@pytest.fixture
def folder(tmp_path):
    return make_bert(tmp_path / "model")


@pytest.fixture
def onnx_folder(tmp_path, folder, cache):
    """A directory with model.onnx and its external data, no safetensors."""
    built = tmp_path / "onnx-model"
    export_reference(ready_model(folder, cache_dir=cache), built)
    return built


def test_real_files_in_a_directory_are_the_same_model(minilm, tmp_path, cache):
    copy = tmp_path / "copy"
    shutil.copytree(minilm.tokenizer.parent, copy)
    write_modules(copy)
    (copy / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 256}))
    ready = ready_model(str(copy), cache_dir=cache)
    assert ready.fingerprint == minilm.fingerprint
    assert (ready.spec.dim, ready.max_tokens, ready.spec.pooling) == (384, 256, Pooling.MEAN)


@pytest.mark.parametrize("place", ["model.onnx", "onnx/model.onnx"])
def test_an_onnx_file_runs_as_it_is(onnx_folder, cache, place):
    if place != "model.onnx":
        (onnx_folder / "onnx").mkdir()
        for name in ("model.onnx", "weights.bin"):
            (onnx_folder / name).rename(onnx_folder / "onnx" / name)
    write_modules(onnx_folder, pooling="cls_token")
    ready = ready_model(onnx_folder, cache_dir=cache)
    assert ready.graph == onnx_folder / place
    assert (ready.pooled, ready.needs_l2, ready.spec.pooling) == (False, True, Pooling.CLS)
    assert ready.spec.dim == 32
    before = ready.fingerprint
    weights = ready.graph.with_name("weights.bin")
    changed = bytearray(weights.read_bytes())
    changed[100] ^= 1
    weights.write_bytes(changed)
    assert ready_model(onnx_folder, cache_dir=cache).fingerprint != before


def test_token_vectors_of_an_onnx_file_are_pooled_as_its_settings_say(onnx_folder, folder, cache):
    rows = [[2, 10, 11, 3], [2, 40, 3], [2, *range(5, 20), 3]]
    for pooling in ("mean_tokens", "cls_token", "lasttoken"):
        write_modules(onnx_folder, pooling=pooling)
        encoder = OnnxEncoder(ready_model(onnx_folder, cache_dir=cache), Costs(1))
        expected = np.array([expected_vector(folder, ids, pooling=pooling) for ids in rows])
        assert np.abs(encoder.run(rows, (3, 20)) - expected).max() < 1e-5


def test_an_onnx_file_that_pools(folder, tmp_path, cache):
    write_modules(folder, normalize=False)
    built = ready_model(folder, cache_dir=cache)
    other = tmp_path / "pooled"
    shutil.copytree(built.graph.parent, other)
    for name in ("config.json", "tokenizer.json"):
        shutil.copy(folder / name, other / name)
    ready = ready_model(other, cache_dir=cache)
    assert ready.pooled and ready.needs_l2
    assert run_padded(open_session(ready.graph), [[2, 7, 3]]).shape == (1, 32)


def test_safetensors_go_before_onnx_where_they_can_be_built(onnx_folder, folder, cache):
    shutil.copy(folder / "model.safetensors", onnx_folder)
    assert ready_model(onnx_folder, cache_dir=cache).pooled
    write_config(onnx_folder, hidden_act="silu")
    assert ready_model(onnx_folder, cache_dir=cache).graph == onnx_folder / "model.onnx"


@pytest.mark.parametrize("location", ["../weights.bin", "/etc/hostname", "link.bin"])
def test_external_data_must_stay_inside(onnx_folder, tmp_path, cache, location):
    outside = tmp_path / "weights.bin"
    shutil.copy(onnx_folder / "weights.bin", outside)
    (onnx_folder / "link.bin").symlink_to(outside)
    graph = onnx_folder / "model.onnx"
    model = onnx.load(str(graph), load_external_data=False)
    for tensor in model.graph.initializer:
        for fact in tensor.external_data:
            if fact.key == "location":
                fact.value = location
    graph.write_bytes(model.SerializeToString())
    with pytest.raises(ModelUnsupported, match="outside"):
        ready_model(onnx_folder, cache_dir=cache)


def test_missing_external_data(onnx_folder, cache):
    (onnx_folder / "weights.bin").unlink()
    with pytest.raises(ModelCorrupt, match=r"weights\.bin"):
        ready_model(onnx_folder, cache_dir=cache)


def test_a_file_that_is_no_onnx(onnx_folder, cache):
    (onnx_folder / "model.onnx").write_bytes(b"\xff" * 300)
    with pytest.raises(ModelCorrupt, match=r"model\.onnx"):
        ready_model(onnx_folder, cache_dir=cache)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"hidden_act": "silu"}, "hidden_act='silu'"),
        ({"is_decoder": True}, "is_decoder=True"),
        ({"embedding_size": 16}, "embedding_size=16"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type"),
        ({"model_type": "albert"}, "model_type='albert'.*roberta"),
        ({"model_type": "mpnet", "relative_attention_num_buckets": 64}, "num_buckets=64"),
        ({"model_type": "ernie", "use_task_id": True}, "use_task_id=True"),
    ],
)
def test_architectures_that_are_refused(folder, cache, change, said):
    write_config(folder, **change)
    with pytest.raises(ModelUnsupported, match=said):
        ready_model(folder, cache_dir=cache)


def test_poolings_that_are_refused(folder, cache):
    write_modules(folder, pooling="max_tokens")
    with pytest.raises(ModelUnsupported, match="max_tokens"):
        ready_model(folder, cache_dir=cache)


def test_a_config_of_other_sizes(folder, cache):
    write_config(folder, intermediate_size=64)
    with pytest.raises(ModelCorrupt, match=r"config\.json makes it"):
        ready_model(folder, cache_dir=cache)


def test_pickled_weights_are_never_loaded(folder, cache):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelUnsupported, match="never loaded"):
        ready_model(folder, cache_dir=cache)


def test_prompts_of_the_directory_go_before_the_family(folder, cache):
    assert ready_model(folder, cache_dir=cache).spec.query_prefix == ""
    write_config(folder, _name_or_path="intfloat/e5-small-v2")
    assert ready_model(folder, cache_dir=cache).spec.passage_prefix == "passage: "
    prompts = {"prompts": {"query": "find: ", "document": "text: "}}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    spec = ready_model(folder, cache_dir=cache).spec
    assert (spec.query_prefix, spec.passage_prefix) == ("find: ", "text: ")


def test_a_directory_without_a_tokenizer(folder, cache):
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ModelUnsupported, match=r"tokenizer\.json"):
        ready_model(folder, cache_dir=cache)
