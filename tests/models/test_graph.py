"""The fused graph against BERT in numpy, against fastembed, and against itself with padding."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from tokenizers import Tokenizer

from bench.reference import export_reference
from memworker.models import ready_model
from tests.models.conftest import open_session, run_padded
from tests.models.tiny import Sizes, make_bert, numpy_bert, write_modules

TEXTS = [
    "Alice prefers window seats on long flights.",
    "Alice likes to sit by the window when flying.",
    "The quarterly report is due on Friday at noon.",
    "Bob is allergic to peanuts and shellfish.",
    "naïve café, 東京, emoji 🙂",
    "",
]
# Computed from the published weights in double precision (`numpy_bert`).
GOLDEN_COSINES = {
    (0, 1): 0.800252,
    (0, 2): -0.066316,
    (0, 3): 0.154289,
    (1, 3): 0.141215,
    (2, 4): 0.007183,
    (3, 5): 0.133466,
}


@pytest.fixture(scope="module")
def session(minilm):
    return open_session(minilm.graph)


@pytest.fixture(scope="module")
def tokens(minilm):
    tokenizer = Tokenizer.from_file(str(minilm.tokenizer))
    tokenizer.no_padding()
    tokenizer.enable_truncation(minilm.max_tokens)
    return [encoding.ids for encoding in tokenizer.encode_batch(TEXTS)]


def expected_vector(folder, ids, *, pooling="mean_tokens", normalize=True):
    hidden = numpy_bert(folder, ids)
    tokens = {"cls_token": hidden[:1], "lasttoken": hidden[-1:], "mean_tokens": hidden}
    pooled = tokens[pooling].mean(0)
    return pooled / np.linalg.norm(pooled) if normalize else pooled


def test_minilm_equals_bert_in_numpy(minilm, session, tokens):
    vectors = run_padded(session, tokens)
    folder = minilm.tokenizer.parent
    expected = np.array([expected_vector(folder, ids) for ids in tokens])
    assert vectors.dtype == np.float32
    assert np.abs(vectors - expected).max() < 1e-5


def test_golden_cosines(session, tokens):
    vectors = run_padded(session, tokens)
    for (a, b), cosine in GOLDEN_COSINES.items():
        assert vectors[a] @ vectors[b] == pytest.approx(cosine, abs=1e-4)


def test_padding_and_neighbours_do_not_move_a_vector(session, tokens):
    alone = np.concatenate([run_padded(session, [ids]) for ids in tokens])
    together = run_padded(session, tokens, extra=37)
    assert np.abs(alone - together).max() < 1e-6


def test_what_stands_in_the_padding_does_not_matter(session):
    ids = np.full((1, 12), 2023, np.int64)
    mask = np.array([[1] * 5 + [0] * 7], np.int64)
    other = ids.copy()
    other[0, 5:] = 30000
    first, second = (
        session.run(None, {"input_ids": i, "attention_mask": mask})[0] for i in (ids, other)
    )
    assert np.abs(first - second).max() < 1e-6


def test_a_fully_masked_row_is_finite(session):
    nothing = np.zeros((2, 4), np.int64)
    vectors = session.run(None, {"input_ids": nothing, "attention_mask": nothing})[0]
    assert np.isfinite(vectors).all()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_equals_fastembed_on_the_same_weights(minilm, session, tokens, tmp_path):
    from fastembed import TextEmbedding

    export_reference(minilm, tmp_path)
    name = "sentence-transformers/all-MiniLM-L6-v2"
    peer = TextEmbedding(name, specific_model_path=str(tmp_path), threads=1)
    theirs = np.array(list(peer.embed(TEXTS)))
    cosines = (theirs * run_padded(session, tokens)).sum(1)
    assert cosines.min() > 0.9999


ROWS = [[2, 10, 11, 12, 3], [2, 40, 3], [2, *range(5, 30), 3]]


@pytest.mark.parametrize("prefix", ["", "bert."])
@pytest.mark.parametrize("pooling", ["mean_tokens", "cls_token", "lasttoken"])
@pytest.mark.parametrize("normalize", [True, False])
def test_tiny_bert_equals_numpy(tmp_path, prefix, pooling, normalize):
    folder = make_bert(tmp_path / "model", prefix=prefix)
    write_modules(folder, pooling=pooling, normalize=normalize)
    model = ready_model(folder, cache_dir=tmp_path / "cache")
    assert model.pooled and model.spec.normalize is normalize
    vectors = run_padded(open_session(model.graph), ROWS, extra=4)
    expected = [expected_vector(folder, i, pooling=pooling, normalize=normalize) for i in ROWS]
    assert np.abs(vectors - np.array(expected)).max() < 1e-5


def test_large_weights_lie_in_one_file_beside_the_graph(tmp_path):
    folder = make_bert(tmp_path / "model", sizes=Sizes(hidden=64, inner=64))
    model = ready_model(folder, cache_dir=tmp_path / "cache")
    graph = onnx.load(str(model.graph), load_external_data=False).graph
    external = [t for t in graph.initializer if t.data_location == onnx.TensorProto.EXTERNAL]
    places = {e.value for t in external for e in t.external_data if e.key == "location"}
    assert places == {"weights.bin"}
    assert model.graph.stat().st_size < 100_000
