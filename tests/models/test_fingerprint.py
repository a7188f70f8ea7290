"""Everything that can change a vector is in the fingerprint, wherever a model's files keep it."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import save_file

from bench.reference import export_reference
from memworker.errors import MemworkerError
from memworker.models import graph, graph_int8, ready_model
from tests.models.conftest import open_session, run_padded
from tests.models.tiny import WORDS, make_bert, write_modules

DIM = 4


def external(folder: Path, name: str, values: np.ndarray) -> TensorProto:
    """Give a tensor whose data lies in a file of its own."""
    (folder / f"{name}.bin").write_bytes(values.tobytes())
    tensor = TensorProto(
        name=name,
        dims=values.shape,
        data_type=helper.np_dtype_to_tensor_dtype(values.dtype),
        data_location=TensorProto.EXTERNAL,
    )
    tensor.external_data.add(key="location", value=f"{name}.bin")
    return tensor


def sparse(folder: Path, name: str) -> onnx.SparseTensorProto:
    """Give a row of DIM numbers, two of which are kept, in two files."""
    values = external(folder, name, np.array([0.5, 0.25], np.float32))
    indices = external(folder, f"{name}-at", np.array([1, 3], np.int64))
    return helper.make_sparse_tensor(values, indices, [DIM])


def table(folder, name="words"):
    rows = np.random.default_rng(3).standard_normal((len(WORDS), DIM)).astype(np.float32)
    return external(folder, name, rows)


def initializer(folder):
    return {"nodes": [], "initializer": [external(folder, "row", np.ones(DIM, np.float32))]}


def constant(folder):
    tensor = external(folder, "dense", np.ones(DIM, np.float32))
    return {"nodes": [helper.make_node("Constant", [], ["row"], value=tensor)]}


def sparse_constant(folder):
    node = helper.make_node("Constant", [], ["row"], sparse_value=sparse(folder, "few"))
    return {"nodes": [node]}


def sparse_initializer(folder):
    tensor = sparse(folder, "few")
    tensor.values.name = "row"
    return {"nodes": [], "sparse_initializer": [tensor]}


def in_a_branch(folder):
    branches = {}
    for name in ("then", "else"):
        tensor = external(folder, name, np.full(DIM, len(name), np.float32))
        inside = helper.make_node("Constant", [], [f"{name}_row"], value=tensor)
        given_out = helper.make_tensor_value_info(f"{name}_row", TensorProto.FLOAT, [DIM])
        branches[f"{name}_branch"] = helper.make_graph([inside], name, [], [given_out])
    always = numpy_helper.from_array(np.array(True))
    return {
        "nodes": [
            helper.make_node("Constant", [], ["always"], value=always),
            helper.make_node("If", ["always"], ["row"], **branches),
        ]
    }


def in_a_function(folder):
    inside = helper.make_node("Constant", [], ["out"], sparse_value=sparse(folder, "few"))
    opset = [helper.make_opsetid("", 17)]
    function = helper.make_function("own", "Row", [], ["out"], [inside], opset)
    return {"nodes": [helper.make_node("Row", [], ["row"], domain="own")], "functions": [function]}


KINDS = [initializer, constant, sparse_constant, sparse_initializer, in_a_branch, in_a_function]


def make_onnx(folder: Path, kind) -> Path:
    """Write a model of word rows plus one row, which `kind` keeps in files beside it."""
    folder.mkdir()
    made = kind(folder)
    nodes = [
        *made["nodes"],
        helper.make_node("Gather", ["words", "input_ids"], ["word_rows"]),
        helper.make_node("Add", ["word_rows", "row"], ["token_rows"]),
    ]
    ids = [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["n", "tokens"])]
    out = [helper.make_tensor_value_info("token_rows", TensorProto.FLOAT, ["n", "tokens", DIM])]
    graph = helper.make_graph(nodes, "g", ids, out, [table(folder), *made.get("initializer", [])])
    graph.sparse_initializer.extend(made.get("sparse_initializer", []))
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    functions = made.get("functions", [])
    model = helper.make_model(graph, opset_imports=opsets, functions=functions, ir_version=8)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    shutil.copy(make_bert(folder.parent / "bert") / "tokenizer.json", folder)
    (folder / "config.json").write_text(json.dumps({"hidden_size": DIM}))
    return folder


def fingerprint(folder, cache):
    """Give the fingerprint, or the kind of the refusal."""
    try:
        return ready_model(folder, cache_dir=cache).fingerprint
    except MemworkerError as error:
        return type(error).__name__


def flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 0x10
    path.write_bytes(data)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_any_byte_of_any_file_of_an_onnx_model(kind, tmp_path, cache):
    folder = make_onnx(tmp_path / "model", kind)
    before = fingerprint(folder, cache)
    assert len(before) == 32, before
    for path in sorted({*folder.iterdir()} - {folder / "config.json"}):
        for offset in {0, path.stat().st_size // 2, path.stat().st_size - 1}:
            flip(path, offset)
            assert fingerprint(folder, cache) != before, (path.name, offset)
            flip(path, offset)
            assert fingerprint(folder, cache) == before


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_those_files_do_change_vectors(kind, tmp_path, cache):
    """The models above are no straw men: a session reads what lies beside the graph."""
    folder = make_onnx(tmp_path / "model", kind)
    graph = ready_model(folder, cache_dir=cache).graph
    ids = [[2, 7, len(WORDS) - 1]]
    try:
        before = run_ids(graph, ids)
    except Exception as error:  # noqa: BLE001 - this onnxruntime may not take the kind at all
        pytest.skip(f"onnxruntime does not run it: {str(error)[:200]}")
    for path in folder.glob("*.bin"):
        if path.stem in ("else", "few-at"):
            continue
        flip(path, path.stat().st_size - 2)
        assert not np.array_equal(run_ids(graph, ids), before), path.name
        flip(path, path.stat().st_size - 2)


def run_ids(graph, rows):
    return open_session(graph).run(None, {"input_ids": np.array(rows, np.int64)})[0]


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_any_byte_of_any_file_of_a_built_model(data, tmp_path_factory):
    folder, cache = built_model(tmp_path_factory)
    before = fingerprint(folder, cache)
    path = folder / data.draw(st.sampled_from(("model.safetensors", "tokenizer.json")))
    offset = data.draw(st.integers(0, path.stat().st_size - 1))
    flip(path, offset)
    try:
        assert fingerprint(folder, cache) != before
    finally:
        flip(path, offset)


def built_model(tmp_path_factory):
    base = tmp_path_factory.getbasetemp() / "fingerprints"
    if not base.is_dir():
        make_bert(base / "model")
    return base / "model", base / "cache"


SETTINGS = {
    "pooling": lambda folder: write_modules(folder, pooling="cls_token"),
    "normalisation": lambda folder: write_modules(folder, normalize=False),
    "epsilon": lambda folder: rewrite(folder / "config.json", layer_norm_eps=1e-5),
    "prompts": lambda folder: (folder / "config_sentence_transformers.json").write_text(
        json.dumps({"prompts": {"query": "find: "}})
    ),
    "limit": lambda folder: (folder / "sentence_bert_config.json").write_text(
        json.dumps({"max_seq_length": 12})
    ),
    "tokenizer's limit": lambda folder: (folder / "tokenizer_config.json").write_text(
        json.dumps({"model_max_length": 12})
    ),
}


def rewrite(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


CASES = [("safetensors", name) for name in SETTINGS]
# An ONNX file has an epsilon of its own.
CASES += [("onnx", name) for name in SETTINGS if name != "epsilon"]


@pytest.mark.parametrize(("made", "setting"), CASES)
def test_settings_beside_the_weights(made, setting, tmp_path, cache):
    folder = tmp_path / "model"
    _ = make_bert(folder) if made == "safetensors" else make_onnx(folder, initializer)
    before = fingerprint(folder, cache)
    SETTINGS[setting](folder)
    after = fingerprint(folder, cache)
    assert len(after) == 32 and after != before


SEEN = {
    "prompt": ("config_sentence_transformers.json", {"prompts": {"document": "the the the "}}),
    "limit": ("sentence_bert_config.json", {"max_seq_length": 5}),
    "lower case": ("sentence_bert_config.json", {"do_lower_case": True}),
}


def make_export(folder):
    """Write a file of others' that can be had in int8."""
    export_reference(ready_model(make_bert(folder.parent / "bert")), folder)


@pytest.mark.parametrize("setting", SEEN)
@pytest.mark.parametrize("made", ["safetensors", "onnx"])
def test_int8_is_built_anew_for_other_calibration(made, setting, tmp_path, cache):
    """What is built now must be what another machine builds, under the same fingerprint."""
    folder = tmp_path / "model"
    _ = make_bert(folder) if made == "safetensors" else make_export(folder)
    before = ready_model(folder, precision="int8", cache_dir=cache)
    name, settings = SEEN[setting]
    (folder / name).write_text(json.dumps(settings))
    after = ready_model(folder, precision="int8", cache_dir=cache)
    assert after.fingerprint != before.fingerprint and after.graph != before.graph


def test_a_file_of_the_same_size_and_time(tmp_path, cache):
    """As archives and images have it, where all files bear one date."""
    folder = make_bert(tmp_path / "model")
    before = fingerprint(folder, cache)
    weights = folder / "model.safetensors"
    times = weights.stat().st_atime_ns, weights.stat().st_mtime_ns
    flip(weights, weights.stat().st_size - 1)
    os.utime(weights, ns=times)
    assert fingerprint(folder, cache) != before


def test_a_static_model_follows_its_tokenizer(tmp_path, cache):
    """The tokenizer that is kept beside the built table must be this one, not an earlier one."""
    folder = tmp_path / "model"
    make_bert(folder)
    (folder / "config.json").write_text(
        json.dumps({"model_type": "model2vec", "hidden_dim": DIM, "normalize": False})
    )
    rows = np.arange(len(WORDS) * DIM, dtype=np.float32).reshape(-1, DIM)
    save_file({"embeddings": rows}, folder / "model.safetensors")
    first = ready_model(folder, cache_dir=cache)
    written = (folder / "tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text(written.replace('"w1"', '"other"'))
    second = ready_model(folder, cache_dir=cache)
    assert second.fingerprint != first.fingerprint
    assert '"other"' in second.tokenizer.read_text()
    assert run_padded(open_session(second.graph), [[2, 7, 3]]).shape == (1, DIM)


def test_an_older_versions_graph_is_not_taken(tmp_path, cache, monkeypatch):
    """A graph that is laid out anew is built anew; only other vectors make other tables of it."""
    folder = make_bert(tmp_path / "model")
    models = {p: ready_model(folder, precision=p, cache_dir=cache) for p in ("fp32", "int8")}
    monkeypatch.setattr(graph, "LAYOUT", "older")
    older = ready_model(folder, cache_dir=cache)
    assert older.graph != models["fp32"].graph
    assert older.fingerprint == models["fp32"].fingerprint
    monkeypatch.setattr(graph_int8, "RECIPE", "bert-int8-token-2")
    older = ready_model(folder, precision="int8", cache_dir=cache)
    assert older.graph != models["int8"].graph
    assert older.fingerprint != models["int8"].fingerprint
