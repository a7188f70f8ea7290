"""int8: close to fp32, deaf to neighbours, safe on AVX2, and refused where it cannot be."""

from __future__ import annotations

from math import erf, sqrt

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from safetensors.numpy import load_file, save_file

from memworker.errors import ModelCorrupt
from memworker.models import ready_model
from memworker.models.calibration import calibration_ids, calibration_texts
from memworker.models.forward import gelu
from memworker.models.rounding import _making_up, choose_grid, quantise
from tests.models.conftest import open_session, run_padded
from tests.models.tiny import Sizes, make_bert, write_modules


@pytest.fixture(scope="session")
def int8():
    return ready_model("all-MiniLM-L6-v2", precision="int8")


@pytest.fixture(scope="session")
def rows(minilm):
    """Token ids of 86 shipped texts of all lengths."""
    return calibration_ids(minilm.spec, minilm.tokenizer)[::3]


def cosines(one, other):
    lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    return (one * other).sum(1) / lengths


def test_vectors_are_close_to_fp32(minilm, int8, rows):
    exact, small = (
        np.concatenate([run_padded(open_session(m.graph), [row]) for row in rows])
        for m in (minilm, int8)
    )
    agreement = cosines(exact, small)
    assert agreement.mean() > 0.998 and agreement.min() > 0.995
    np.testing.assert_allclose(np.linalg.norm(small, axis=1), 1, atol=1e-5)


def test_a_text_never_depends_on_its_neighbours(int8, rows):
    session = open_session(int8.graph)
    alone = np.concatenate([run_padded(session, [row]) for row in rows[:24]])
    together = run_padded(session, rows[:24], extra=5)
    backwards = run_padded(session, rows[:24][::-1])[::-1]
    np.testing.assert_allclose(together, alone, atol=1e-6)
    np.testing.assert_allclose(backwards, alone, atol=1e-6)
    # Codes hide a small change until one of them flips: many neighbours, and any padding.
    random = np.random.default_rng(1)
    for _ in range(40):
        some = random.choice(24, random.integers(1, 9), replace=False)
        beside = run_padded(session, [rows[row] for row in some], extra=int(random.integers(0, 40)))
        np.testing.assert_allclose(beside, alone[some], atol=1e-6)


@pytest.mark.filterwarnings("ignore:Ignoring unknown external data key")
def test_no_product_saturates_on_avx2(int8):
    model = onnx.load(str(int8.graph))
    kinds = [t for t in model.graph.initializer if t.data_type == onnx.TensorProto.INT8]
    assert len(kinds) == 36
    for tensor in kinds:
        assert largest_pair_sum(numpy_helper.to_array(tensor)) * 255 < 2**15


def largest_pair_sum(codes):
    """What 255 may be multiplied with in 16 bits: neighbours' sums, of each sign alone."""
    wide = np.pad(codes.astype(np.int64), ((0, len(codes) % 2), (0, 0)))
    up, down = np.maximum(wide, 0), np.maximum(-wide, 0)
    return max((part[0::2] + part[1::2]).max() for part in (up, down))


@pytest.mark.parametrize("inputs", [1, 2, 7, 64, 200])
def test_codes_use_the_range_and_keep_to_it(inputs):
    weight = np.random.default_rng(inputs).standard_normal((inputs, 50)).astype(np.float32)
    weight[:, 0] = 0
    # Rows that have nothing to do with each other: there is nothing to make up for.
    small = quantise(weight, np.eye(inputs, dtype=np.float32))
    assert largest_pair_sum(small.codes) <= 128
    assert np.abs(small.codes).max(0)[1:].min() > 60
    error = np.abs(small.codes * small.scale - weight)
    assert (error <= small.scale * 1.51).all() and not small.codes[:, 0].any()


def test_rounding_makes_up_for_its_errors():
    random = np.random.default_rng(5)
    weight = random.standard_normal((192, 40)).astype(np.float32)
    mixing = random.standard_normal((24, 192)).astype(np.float32)
    inputs = random.standard_normal((600, 24)).astype(np.float32) @ mixing
    inputs += random.standard_normal(inputs.shape).astype(np.float32)

    def error(small):
        return np.square(inputs @ (small.codes * small.scale - weight)).mean()

    plain = quantise(weight, np.eye(192, dtype=np.float32))
    made_up = quantise(weight, inputs)
    assert error(made_up) < 0.4 * error(plain)
    assert largest_pair_sum(made_up.codes) <= 128


@pytest.mark.parametrize("size", [1, 95, 97, 400])
def test_what_makes_up_is_the_root_of_the_inverse(size):
    random = np.random.default_rng(3)
    inputs = (random.standard_normal((3 * size, size)) * 20).round().astype(np.float32)
    hessian = (inputs.T @ inputs).astype(np.float64)
    hessian[np.diag_indices(size)] += 0.01 * np.diag(hessian).mean() + 1e-9
    root = np.linalg.cholesky(np.linalg.inv(hessian)).T
    np.testing.assert_allclose(
        _making_up(inputs), root / np.diag(root)[:, None], rtol=1e-5, atol=1e-9
    )


def test_gelu_of_many_rows_is_that_of_each():
    rows = np.random.default_rng(4).standard_normal((37, 50)).astype(np.float32) * 3
    exact = [x / 2 * (1 + erf(x / sqrt(2))) for x in rows.flat]
    np.testing.assert_allclose(gelu(rows).ravel(), exact, atol=1e-6)
    assert (gelu(rows)[30] == gelu(rows[30:31])[0]).all()


def test_a_range_is_clipped_where_that_costs_least():
    rows = np.random.default_rng(3).standard_normal((2000, 16)).astype(np.float32)
    rows[7, 3] = 60
    weight = np.ones((16, 4), np.float32)
    weight[3] = 0.1
    assert choose_grid(rows, weight).scale * 255 < 30
    weight[3] = 3
    assert choose_grid(rows, weight).scale * 255 > 55


@pytest.mark.parametrize("least", [-3.0, 0.0, 0.5])
def test_zero_is_a_code_and_ends_are_within_reach(least):
    rows = np.linspace(least, 3, 4000, dtype=np.float32)[:, None]
    grid = choose_grid(rows, np.ones((1, 1), np.float32))
    back = grid.centred(rows) * grid.scale
    assert 0 <= grid.zero <= 255
    assert np.abs(back - rows).max() < 1.01 * grid.scale


@pytest.mark.parametrize("pooling", ["mean_tokens", "cls_token", "lasttoken"])
@pytest.mark.parametrize("normalize", [True, False])
def test_any_pooling(tmp_path, cache, pooling, normalize):
    folder = make_bert(tmp_path / "model")
    write_modules(folder, pooling=pooling, normalize=normalize)
    rows = [[2, 17, 9, 40, 3], [2, 3], [2, *range(5, 35), 3]]
    exact, small = (
        run_padded(open_session(ready_model(folder, precision=p, cache_dir=cache).graph), rows)
        for p in ("fp32", "int8")
    )
    assert small.shape == exact.shape == (3, 32)
    assert cosines(exact, small).min() > 0.999
    np.testing.assert_allclose(
        np.linalg.norm(small, axis=1), np.linalg.norm(exact, axis=1), rtol=0.05
    )


@pytest.mark.parametrize("inner", [1, 2, 8, 9, 17])
def test_any_width(tmp_path, cache, inner):
    """However few channels there are to keep apart, and where codes have no partner."""
    folder = make_bert(tmp_path / "model", sizes=Sizes(hidden=15, heads=5, inner=inner))
    exact, small = (
        run_padded(open_session(ready_model(folder, precision=p, cache_dir=cache).graph), [[2, 9]])
        for p in ("fp32", "int8")
    )
    assert cosines(exact, small).min() > 0.999


@pytest.mark.parametrize("number", [np.nan, np.inf, 3e38])
@pytest.mark.parametrize("name", ["embeddings.LayerNorm.weight", "encoder.layer.1.output.dense"])
def test_weights_that_give_no_numbers(tmp_path, cache, name, number):
    folder = make_bert(tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    key = next(key for key in tensors if key.startswith(name))
    tensors[key].flat[::3] = number
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ModelCorrupt, match="not finite.*again"):
        ready_model(folder, precision="int8", cache_dir=cache)


def test_the_fingerprint_tells_precisions_apart(minilm, int8):
    assert int8.fingerprint != minilm.fingerprint
    assert int8.precision == "int8" and int8.graph != minilm.graph
    assert ready_model("all-MiniLM-L6-v2", precision="int8") == int8


def test_a_tokenizer_of_another_model(tmp_path, cache):
    folder = make_bert(tmp_path / "model", sizes=Sizes(vocabulary=1))
    with pytest.raises(ModelCorrupt, match="different models"):
        ready_model(folder, precision="int8", cache_dir=cache)


def test_calibration_texts_are_fixed():
    texts = calibration_texts()
    assert len(texts) == len(set(texts)) == 256
    assert min(map(len, texts)) < 40 and max(map(len, texts)) > 400
