"""Somebody else's ONNX file in int8 and bf16: near to its fp32, deaf to neighbours, or refused."""

from __future__ import annotations

import json
import shutil

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from bench.reference import export_reference
from memworker import EmbeddingPool
from memworker.errors import ModelUnsupported
from memworker.models import bf16, obstacles, ready_model
from memworker.pool import choose
from memworker.pool.choice import Auto
from tests.models.tiny import WORDS, make_bert, write_modules

TEXTS = ["w1 w2", "w3", "w4 w5 w6 w7 w8 w9 w10 w11 w12", " ".join(f"w{i}" for i in range(36))]
TIERS = ["int8", *([] if bf16.obstacle() else ["bf16"])]


def fused(tmp_path):
    """What ONNX Runtime's optimiser makes of BERT: `Attention`, `SkipLayerNormalization`."""
    return export_reference(ready_model(make_bert(tmp_path / "bert")), tmp_path / "fused").parent


def ours(tmp_path):
    """Our own graph, taken for another's: OpenVINO reads its operators otherwise."""
    bert = make_bert(tmp_path / "bert")
    write_modules(bert, normalize=False)
    folder = tmp_path / "ours"
    shutil.copytree(ready_model(bert).graph.parent, folder)
    for name in ("config.json", "tokenizer.json"):
        shutil.copy(bert / name, folder / name)
    return folder


def plain(tmp_path, *, kind="MatMul", quantised=False, pooled=False, opset=13):
    """Two products of an old export, and no more inputs than it needs."""
    folder = tmp_path / "plain"
    make_bert(folder)
    (folder / "model.safetensors").unlink()
    (folder / "config.json").write_text(json.dumps({"model_type": "new", "hidden_size": 24}))
    random = np.random.default_rng(3)
    constants = {
        "table": random.standard_normal((len(WORDS), 32)).astype(np.float32),
        "inner": random.standard_normal((32, 48)).astype(np.float32),
        "outer": random.standard_normal((48, 24)).astype(np.float32),
    }
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["rows"]),
        helper.make_node("MatMul", ["rows", "inner"], ["wide"]),
        helper.make_node("Relu", ["wide"], ["active"]),
    ]
    if kind == "Gemm":
        constants |= {"flat": np.array([-1, 48]), "bias": np.ones(24, np.float32)}
        constants |= {"again": np.array([0, -1, 24]), "outer": constants["outer"].T.copy()}
        nodes += [
            helper.make_node("Shape", ["rows"], ["shape"]),
            helper.make_node("Reshape", ["active", "flat"], ["lines"]),
            helper.make_node("Gemm", ["lines", "outer", "bias"], ["made"], transB=1),
            helper.make_node("Shape", ["input_ids"], ["two"]),
            helper.make_node("Concat", ["two", "width"], ["whole"], axis=0),
            helper.make_node("Reshape", ["made", "whole"], ["out"]),
        ]
        constants["width"] = np.array([24])
    else:
        nodes.append(helper.make_node("MatMul", ["active", "outer"], ["out"]))
    if quantised:
        nodes.append(helper.make_node("DynamicQuantizeLinear", ["out"], ["a", "b", "c"]))
    given = ["input_ids", *(["attention_mask"] if pooled else [])]
    if pooled:
        nodes += [
            helper.make_node("Cast", ["attention_mask"], ["weights"], to=TensorProto.FLOAT),
            helper.make_node("Unsqueeze", ["weights"], ["column"], axes=[2]),
            helper.make_node("Mul", ["out", "column"], ["unmasked"]),
            helper.make_node("ReduceSum", ["unmasked"], ["sum"], axes=[1], keepdims=0),
        ]
    name, shape = ("sum", ["n", 24]) if pooled else ("out", ["n", "l", 24])
    graph = helper.make_graph(
        nodes,
        "plain",
        [helper.make_tensor_value_info(each, TensorProto.INT64, ["n", "l"]) for each in given],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.save(model, folder / "model.onnx")
    return folder


def cosines(one, other):
    lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    return (one * other).sum(1) / lengths


@pytest.mark.parametrize(
    "make",
    [
        fused,
        lambda path: plain(path, pooled=True, opset=11),
        lambda path: plain(path, opset=11),
        lambda path: plain(path, kind="Gemm", opset=18),
    ],
    ids=["fused", "pooled", "matmul-11", "gemm-18"],
)
def test_a_file_of_others_in_every_precision(tmp_path, make):
    folder = make(tmp_path)
    with EmbeddingPool(folder, workers=1) as pool:
        exact, made = pool.embed(TEXTS), {pool.identity.fingerprint}
    for precision in TIERS:
        ready = ready_model(folder, precision=precision)
        assert ready.graph.parent != folder and ready.precision == precision
        with EmbeddingPool(ready, workers=1) as pool:
            small, alone = pool.embed(TEXTS), pool.embed(TEXTS[:1])
            assert pool.identity.fingerprint not in made
            made.add(pool.identity.fingerprint)
        assert cosines(exact, small).min() > 0.999, precision
        assert precision == "bf16" or np.abs(small[0] - alone[0]).max() < 1e-6
        assert np.abs(small - exact).max() > 0, "it was computed in fp32"


def test_products_are_computed_in_8_bits(tmp_path):
    ready = ready_model(fused(tmp_path), precision="int8")
    kinds = [node.op_type for node in onnx.load(str(ready.graph)).graph.node]
    # Q, K and V together, the context, and the two of the feed-forward layer; in two layers.
    assert kinds.count("MatMulIntegerToFloat") == 8
    assert not {"MatMul", "Gemm", "Attention", "SkipLayerNormalization"} & set(kinds)


def test_what_an_engine_reads_otherwise_is_refused(tmp_path):
    folder = ours(tmp_path)
    assert ready_model(folder, precision="int8").pooled
    if "bf16" in TIERS:
        with pytest.raises(ModelUnsupported, match="no bf16 of.*openvino gives.*precision fp32"):
            ready_model(folder, precision="bf16")
        chosen = choose(folder, Auto(-1, TEXTS), None, EmbeddingPool)
        assert chosen.precision != "bf16" and "bf16: it failed here" in chosen.told()
        # Neither is tried again.
        assert choose(folder, Auto(-1, TEXTS), None, None) == chosen


def test_what_is_quantised_already_says_so(tmp_path):
    folder = plain(tmp_path, quantised=True)
    assert ready_model(folder).precision == "fp32"
    for precision in TIERS:
        with pytest.raises(ModelUnsupported, match=r"quantised already \(DynamicQuantizeLinear\)"):
            ready_model(folder, precision=precision)
    assert "quantised already" in obstacles(folder)["int8"]
    chosen = choose(folder, Auto(), None, EmbeddingPool)
    assert chosen.precision == "fp32" and "quantised already" in chosen.told()


def test_a_file_without_such_products_says_so(tmp_path):
    folder = plain(tmp_path)
    model = onnx.load(str(folder / "model.onnx"))
    del model.graph.node[1:]
    model.graph.node[0].output[0] = "out"
    model.graph.output[0].type.tensor_type.shape.dim[2].dim_value = 32
    (folder / "config.json").write_text(json.dumps({"model_type": "new", "hidden_size": 32}))
    onnx.save(model, str(folder / "model.onnx"))
    with pytest.raises(ModelUnsupported, match="no product of rows.*Take precision fp32"):
        ready_model(folder, precision="int8")
