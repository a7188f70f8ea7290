"""Vectors of the real model through the pool: equal to the reference, whatever the neighbours."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from memworker import EmbeddingPool
from memworker.models import ready_model
from tests import PATIENCE_S

SAMPLE = Path(__file__).parents[2] / "memworker/data/memories.jsonl.gz"


def sample(rows):
    with gzip.open(SAMPLE) as file:
        return [json.loads(line)["text"] for line, _ in zip(file, range(rows), strict=False)]


TEXTS = [*sample(120), "", "a", "é" * 50, "word " * 2000, "日本語のテキスト", "🙂" * 30]


@pytest.fixture(scope="module")
def pool():
    with EmbeddingPool(workers=2) as pool:
        yield pool


@pytest.fixture(scope="module")
def vectors(pool):
    return pool.embed(TEXTS)


@pytest.fixture(scope="module")
def one_by_one():
    """The same model file in a plain session of this process, one text a run, no padding."""
    import onnxruntime
    from tokenizers import Tokenizer

    model = ready_model("all-MiniLM-L6-v2")
    tokenizer = Tokenizer.from_file(str(model.tokenizer))
    tokenizer.no_padding()
    tokenizer.enable_truncation(256)
    session = onnxruntime.InferenceSession(str(model.graph), providers=["CPUExecutionProvider"])
    out = []
    for text in TEXTS:
        ids = np.array([tokenizer.encode(text).ids], np.int64)
        (vector,) = session.run(None, {"input_ids": ids, "attention_mask": np.ones_like(ids)})
        out.append(vector[0])
    return np.stack(out)


def test_equals_a_plain_single_session(vectors, one_by_one):
    assert np.abs(vectors - one_by_one).max() < 1e-5


def test_vectors_have_length_one(vectors):
    assert np.abs(np.linalg.norm(vectors, axis=1) - 1).max() < 1e-5


def test_a_text_has_one_vector_whatever_its_neighbours(pool, vectors):
    order = np.random.default_rng(3).permutation(len(TEXTS))
    shuffled = pool.embed([TEXTS[row] for row in order])
    assert np.abs(shuffled - vectors[order]).max() < 1e-6
    alone = np.concatenate([pool.embed([text]) for text in TEXTS[::9]])
    assert np.abs(alone - vectors[::9]).max() < 1e-6


def test_equals_real_fastembed(vectors, tmp_path):
    from fastembed import TextEmbedding

    from bench.reference import export_reference

    folder = tmp_path / "model"
    export_reference(ready_model("all-MiniLM-L6-v2"), folder)
    name = "sentence-transformers/all-MiniLM-L6-v2"
    real = TextEmbedding(name, specific_model_path=str(folder), threads=1)
    reference = np.stack(list(real.embed(TEXTS, batch_size=8)))
    reference /= np.linalg.norm(reference, axis=1, keepdims=True)
    assert (vectors * reference).sum(axis=1).min() >= 0.9999


def test_truncation_is_counted(pool):
    before = pool.work.truncated
    outcome = pool.submit_rows(["word " * 2000, "short"]).result(PATIENCE_S)
    assert outcome.truncated.tolist() == [True, False]
    assert outcome.tokens.tolist() == [256, 3]
    assert pool.work.truncated == before + 1


def test_fewer_tokens_truncate_sooner():
    with EmbeddingPool(workers=1, max_tokens=8) as pool:
        outcome = pool.submit_rows(["one two three four five six", "one " * 30]).result(PATIENCE_S)
    assert outcome.tokens.tolist() == [8, 8]
    assert outcome.truncated.tolist() == [False, True]


def test_little_is_padded(pool):
    before = pool.work
    pool.embed(sample(500))
    real = pool.work.real_tokens - before.real_tokens
    padded = pool.work.padded_tokens - before.padded_tokens
    assert 1 - real / padded <= 0.02
