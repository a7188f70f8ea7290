"""Folders of sentence-transformers: what follows the transformer, and what is refused."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from safetensors.numpy import save_file

from bench.reference import export_reference
from memworker.errors import ModelCorrupt, ModelUnsupported
from memworker.models import bf16, ready_model
from memworker.pool import EmbeddingPool
from tests.models.tiny import make_bert, numpy_bert

TEXTS = ["w1 w2 w3", "w4", "w5 w6 w7 w8 w9 w1", ""]
ACTIVATIONS = {
    "torch.nn.modules.activation.Tanh": np.tanh,
    "torch.nn.modules.linear.Identity": lambda x: x,
    "torch.nn.modules.activation.ReLU": lambda x: np.maximum(x, 0),
    "torch.nn.modules.activation.Sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "torch.nn.modules.activation.SiLU": lambda x: x / (1 + np.exp(-x)),
}


def write_modules(folder, *modules):
    """List modules by class and folder, as sentence-transformers does."""
    listed = [
        {"idx": place, "name": str(place), "path": path, "type": f"sentence_transformers.{kind}"}
        for place, (kind, path) in enumerate(modules)
    ]
    (folder / "modules.json").write_text(json.dumps(listed))
    pooling = folder / "1_Pooling"
    pooling.mkdir(exist_ok=True)
    (pooling / "config.json").write_text(json.dumps({"pooling_mode_mean_tokens": True}))


def write_dense(folder, name, shape, *, bias=True, kind=np.float32, **settings):
    """Add a layer of random weights; returns what it computes, in double precision."""
    random = np.random.default_rng(len(name) + shape[0])
    tensors = {"linear.weight": random.standard_normal(shape[::-1]).astype(kind)}
    if bias:
        tensors["linear.bias"] = random.standard_normal(shape[1]).astype(kind)
    (folder / name).mkdir(exist_ok=True)
    save_file(tensors, folder / name / "model.safetensors")
    config = {"in_features": shape[0], "out_features": shape[1], "bias": bias, **settings}
    (folder / name / "config.json").write_text(json.dumps(config))
    wide = {key: value.astype(np.float64) for key, value in tensors.items()}
    active = ACTIVATIONS[settings.get("activation_function", next(iter(ACTIVATIONS)))]
    return lambda x: active(x @ wide["linear.weight"].T + wide.get("linear.bias", 0))


PLAIN = (("models.Transformer", ""), ("models.Pooling", "1_Pooling"))
DENSE = ("base.modules.dense.Dense", "2_Dense"), ("base.modules.dense.Dense", "3_Dense")
NORM = ("models.Normalize", "4_Normalize")


@pytest.fixture
def folder(tmp_path):
    return make_bert(tmp_path / "model")


def expected(folder, layers, *, normalize=True):
    rows = []
    for text in TEXTS:
        ids = [int(word[1:]) + 5 for word in text.split()]
        row = numpy_bert(folder, ids).mean(0) if ids else np.zeros(32)
        for layer in layers:
            row = layer(row)
        rows.append(row / np.linalg.norm(row) if normalize else row)
    return np.stack(rows)


def embed(model, **options):
    with EmbeddingPool(model, workers=1, **options) as pool:
        return pool.embed(TEXTS)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_dense_layers_behind_pooling(folder, cache, activation):
    layers = [
        write_dense(folder, "2_Dense", (32, 48), activation_function=activation),
        write_dense(folder, "3_Dense", (48, 24), bias=False, kind=np.float16),
    ]
    write_modules(folder, *PLAIN, *DENSE, NORM)
    ready = ready_model(folder, cache_dir=cache)
    assert (ready.spec.dim, ready.spec.normalize) == (24, True)
    from tests.models.conftest import open_session, run_padded

    session = open_session(ready.graph)
    ids = [[int(word[1:]) + 5 for word in text.split()] for text in TEXTS[:3]]
    got = run_padded(session, ids, extra=2)
    np.testing.assert_allclose(got, expected(folder, layers)[:3], atol=2e-5)


def test_dense_layers_in_every_engine(folder, cache, tmp_path, monkeypatch):
    """Fused, in 8 bits, in bf16 where there is one, and behind somebody else's graph."""
    monkeypatch.setenv("MEMWORKER_CACHE", str(tmp_path / "home"))
    write_modules(folder, *PLAIN)
    foreign = tmp_path / "foreign"
    export_reference(ready_model(folder, cache_dir=cache), foreign)
    for home in (folder, foreign):
        layer = write_dense(home, "2_Dense", (32, 24))
        write_modules(home, *PLAIN, DENSE[0])
    wanted = expected(folder, [layer], normalize=False)
    np.testing.assert_allclose(embed(folder), wanted, atol=2e-5)
    np.testing.assert_allclose(embed(foreign), wanted, atol=2e-5)
    for precision in ("int8", *([] if bf16.obstacle() else ["bf16"])):
        near = embed(folder, precision=precision)
        lengths = np.linalg.norm(near, axis=1) * np.linalg.norm(wanted, axis=1)
        assert ((near * wanted).sum(1) / lengths).min() > 0.99
        assert not np.allclose(near, wanted, atol=1e-6)


def test_other_weights_of_a_layer_are_another_model(folder, cache):
    write_dense(folder, "2_Dense", (32, 24))
    write_modules(folder, *PLAIN, DENSE[0])
    before = ready_model(folder, cache_dir=cache)
    write_dense(folder, "2_Dense", (32, 24), kind=np.float16)
    after = ready_model(folder, cache_dir=cache)
    assert before.fingerprint != after.fingerprint and before.graph != after.graph


@pytest.mark.parametrize(
    ("modules", "said"),
    [
        ((*PLAIN, ("models.LayerNorm", "2_LayerNorm")), "models.LayerNorm"),
        ((("models.WordEmbeddings", ""), PLAIN[1]), "WordEmbeddings"),
        ((("base.modules.router.Router", ""),), "Router"),
        ((("models.Transformer", ""), NORM), "Transformer, Normalize, in this order"),
        ((*PLAIN, NORM, DENSE[0]), "Normalize, Dense, in this order"),
        ((("models.Transformer", "0_Transformer"), PLAIN[1]), "0_Transformer"),
        ((*PLAIN, ("models.Dense", "../2_Dense")), "outside"),
    ],
)
def test_modules_that_are_refused(folder, cache, modules, said):
    write_dense(folder, "2_Dense", (32, 24))
    write_modules(folder, *modules)
    with pytest.raises(ModelUnsupported, match=said):
        ready_model(folder, cache_dir=cache)


@pytest.mark.parametrize(
    ("settings", "refused"),
    [
        ({"transformer_task": "feature-extraction", "module_output_name": "token_embeddings"}, ""),
        ({"modality_config": {"text": {"method_output_name": "last_hidden_state"}}}, ""),
        ({"transformer_task": "fill-mask"}, "fill-mask"),
        ({"modality_config": {"text": {"method_output_name": "pooler_output"}}}, "pooler_output"),
    ],
)
def test_what_a_transformer_gives_to_its_pooling(folder, cache, settings, refused):
    write_modules(folder, *PLAIN)
    (folder / "sentence_bert_config.json").write_text(json.dumps(settings))
    if not refused:
        assert ready_model(folder, cache_dir=cache).spec.dim == 32
        return
    with pytest.raises(ModelUnsupported, match=refused):
        ready_model(folder, cache_dir=cache)


def test_models_of_another_kind_are_refused(folder, cache):
    write_modules(folder, *PLAIN, NORM)
    (folder / "4_Normalize").mkdir()
    settings = folder / "4_Normalize" / "config.json"
    settings.write_text(json.dumps({"module_input_name": "token_embeddings"}))
    with pytest.raises(ModelUnsupported, match="token_embeddings"):
        ready_model(folder, cache_dir=cache)
    settings.write_text("{}")
    said = folder / "config_sentence_transformers.json"
    said.write_text(json.dumps({"model_type": "CrossEncoder"}))
    with pytest.raises(ModelUnsupported, match="CrossEncoder"):
        ready_model(folder, cache_dir=cache)
    said.write_text(json.dumps({"model_type": "SentenceTransformer"}))
    assert ready_model(folder, cache_dir=cache).spec.normalize


def test_an_adapter_is_refused(folder, cache):
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelUnsupported, match="merge_and_unload"):
        ready_model(folder, cache_dir=cache)


def test_a_class_of_the_models_own_is_refused(folder, cache):
    modules = [{"idx": 0, "path": "", "type": "custom_st.Transformer"}]
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(ModelUnsupported, match=r"custom_st\.Transformer"):
        ready_model(folder, cache_dir=cache)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"activation_function": "torch.nn.modules.activation.Softmax"}, "Softmax"),
        ({"activation_function": "mine.Tanh"}, "mine.Tanh"),
        ({"module_input_name": "token_embeddings"}, "token_embeddings"),
        ({"use_residual": True}, "residual"),
        ({"in_features": 31}, "31 numbers, and gets 32"),
        ({"out_features": None}, "lacks"),
    ],
)
def test_dense_layers_that_are_refused(folder, cache, settings, said):
    write_dense(folder, "2_Dense", (32, 24))
    path = folder / "2_Dense" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    write_modules(folder, *PLAIN, DENSE[0])
    with pytest.raises(ModelUnsupported, match=said):
        ready_model(folder, cache_dir=cache)


def test_weights_of_a_layer_that_are_not_there_or_of_another_size(folder, cache):
    write_dense(folder, "2_Dense", (32, 24))
    write_modules(folder, *PLAIN, DENSE[0])
    path = folder / "2_Dense" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"out_features": 25}))
    with pytest.raises(ModelCorrupt, match="25"):
        ready_model(folder, cache_dir=cache)
    weights = folder / "2_Dense" / "model.safetensors"
    weights.rename(weights.with_name("pytorch_model.bin"))
    with pytest.raises(ModelUnsupported, match=r"pytorch_model\.bin.* never loaded"):
        ready_model(folder, cache_dir=cache)


@pytest.mark.parametrize(
    ("prompts", "default", "query", "passage"),
    [
        ({"query": "q: ", "document": "d: "}, None, "q: ", "d: "),
        ({"query": "q: ", "document": "", "passage": "p: "}, None, "q: ", "p: "),
        ({"search_query": "q: ", "search_document": "d: "}, None, "q: ", "d: "),
        ({"s2p": "find: ", "query": "q: "}, "s2p", "q: ", "find: "),
        ({"query": "", "document": ""}, None, "query: ", "passage: "),
    ],
)
def test_prompts(tmp_path, cache, prompts, default, query, passage):
    folder = make_bert(tmp_path / "e5-small-v2")
    settings = {"prompts": prompts, "default_prompt_name": default}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(settings))
    spec = ready_model(folder, cache_dir=cache).spec
    assert (spec.query_prefix, spec.passage_prefix) == (query, passage)


@pytest.mark.parametrize("name", ["find", ["query"], {}])
def test_a_default_prompt_that_is_not_there(folder, cache, name):
    settings = {"prompts": {"query": "q: "}, "default_prompt_name": name}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(settings))
    with pytest.raises(ModelUnsupported, match=re.escape(repr(name))):
        ready_model(folder, cache_dir=cache)


@pytest.mark.parametrize("mode", [None, 1.5, True, [["mean"]], ["mean", "cls"], []])
def test_pooling_that_is_none(folder, cache, mode):
    write_modules(folder, *PLAIN)
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode": mode}))
    with pytest.raises(ModelUnsupported, match="pooling; memworker does one of"):
        ready_model(folder, cache_dir=cache)


def test_prompts_that_pooling_leaves_out_are_refused(folder, cache):
    write_modules(folder, *PLAIN)
    pooling = {"pooling_mode": "mean", "include_prompt": False}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    assert ready_model(folder, cache_dir=cache).spec.query_prefix == ""
    settings = {"prompts": {"query": "q: "}}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(settings))
    with pytest.raises(ModelUnsupported, match="include_prompt"):
        ready_model(folder, cache_dir=cache)


def test_lower_case_and_length(folder, cache):
    plain = ready_model(folder, cache_dir=cache)
    settings = {"max_seq_length": 16, "do_lower_case": True}
    (folder / "sentence_roberta_config.json").write_text(json.dumps(settings))
    lower = ready_model(folder, cache_dir=cache)
    assert (lower.spec.lowercase, lower.max_tokens) == (True, 16)
    assert lower.fingerprint != plain.fingerprint
    with EmbeddingPool(lower, workers=1) as pool:
        vectors = pool.embed(["W1 w2", "w1 w2"])
    np.testing.assert_array_equal(vectors[0], vectors[1])
