"""bf16: OpenVINO's graph of the same weights, near to fp32; refused by name where it cannot be."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from memworker import EmbeddingPool
from memworker.errors import ModelCorrupt, UsageError
from memworker.models import bf16, ready_model, verify_model
from memworker.pool import compare_precision
from memworker.pool.engine import resolve
from tests.models.tiny import make_bert, write_modules

TEXTS = ["w1 w2", "w3", "w4 w5 w6 w7 w8 w9 w10 w11 w12", " ".join(f"w{i}" for i in range(36))]


needed = pytest.mark.skipif(bool(bf16.obstacle()), reason=f"for bf16 {bf16.obstacle()}")


@needed
@pytest.mark.parametrize("pooling", ["mean_tokens", "cls_token", "lasttoken"])
@pytest.mark.parametrize("normalize", [True, False])
def test_any_pooling(tmp_path, pooling, normalize):
    folder = make_bert(tmp_path / "model")
    write_modules(folder, pooling=pooling, normalize=normalize)
    found = {}
    for precision in ("fp32", "bf16"):
        with EmbeddingPool(folder, precision=precision, workers=1) as pool:
            found[precision] = pool.embed(TEXTS)
    exact, small = found["fp32"], found["bf16"]
    lengths = np.linalg.norm(exact, axis=1) * np.linalg.norm(small, axis=1)
    assert ((exact * small).sum(1) / lengths).min() > 0.999
    np.testing.assert_allclose(small, exact, atol=0.02 * np.abs(exact).max())


@needed
def test_the_default_model_is_near_to_fp32(data_dir):
    import gzip
    import json

    with gzip.open(data_dir / "mix_open.jsonl.gz", "rt") as lines:
        texts = [json.loads(line)["text"] for _, line in zip(range(120), lines, strict=False)]
    agreement = compare_precision(texts, precision="bf16")
    assert agreement.mean_cosine > 0.9999 and agreement.min_cosine > 0.9995
    assert agreement.recall_at_10 > 0.98


@needed
def test_tables_are_told_apart(tmp_path, cache):
    folder = make_bert(tmp_path / "model")
    models = [ready_model(folder, precision=p, cache_dir=cache) for p in ("fp32", "int8", "bf16")]
    assert len({model.fingerprint for model in models}) == 3
    assert [resolve(model).identity.precision for model in models] == ["fp32", "int8", "bf16"]


@needed
def test_a_damaged_graph_is_an_error(tmp_path, cache):
    folder = make_bert(tmp_path / "model")
    model = ready_model(folder, precision="bf16", cache_dir=cache)
    assert model.graph in verify_model(folder, cache_dir=cache)
    weights = model.graph.with_suffix(".bin")
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    weights.write_bytes(data)
    with pytest.raises(ModelCorrupt, match=r"model\.bin"):
        verify_model(folder, cache_dir=cache)


@needed
def test_damaged_weights_are_told_in_our_words(tmp_path, cache):
    folder = make_bert(tmp_path / "model")
    (folder / "model.safetensors").write_bytes(b"\0" * 100)
    with pytest.raises(ModelCorrupt, match="safetensors cannot be read"):
        ready_model(folder, precision="bf16", cache_dir=cache)


@needed
def test_nobody_is_called(tmp_path, monkeypatch):
    """Where OpenVINO's telemetry package is installed, importing OpenVINO would run it."""
    package = tmp_path / "path/openvino_telemetry"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise SystemExit('calling home')")
    monkeypatch.setenv("PYTHONPATH", str(package.parent))
    monkeypatch.setenv("MEMWORKER_CACHE", str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(str(package.parent))
    loud = subprocess.run([sys.executable, "-c", "import openvino"], capture_output=True, text=True)
    assert "calling home" in loud.stderr
    with EmbeddingPool(make_bert(tmp_path / "model"), precision="bf16", workers=1) as pool:
        assert pool.embed(["w1"]).shape == (1, 32)


def test_what_is_missing_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(bf16, "_FLAGS", ())
    with pytest.raises(UsageError, match=r"AVX512_BF16.*memworker\[openvino\].*neither.*int8"):
        ready_model("all-MiniLM-L6-v2", precision="bf16", cache_dir=tmp_path)
    monkeypatch.setattr(bf16, "processor_has_bf16", lambda: True)
    monkeypatch.setattr(bf16, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"memworker\[openvino\].*not installed here.*int8"):
        ready_model("all-MiniLM-L6-v2", precision="bf16", cache_dir=tmp_path)
