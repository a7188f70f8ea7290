"""Static models: the mean of token vectors, as their own libraries compute it."""

from __future__ import annotations

import gzip
import json
from itertools import islice

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer

from memworker.errors import ModelCorrupt, ModelUnsupported, UsageError
from memworker.models import list_models, ready_model
from memworker.models.calibration import calibration_texts
from memworker.pool.tokenize import Tokenizer as PoolTokenizer
from tests.models.conftest import open_session, run_padded
from tests.models.tiny import WORDS, make_bert

ODD = [" two  spaces ", "▁", "   ", "a\tb\nc", "<s>marked</s> up", "naïve café 東京 🙂", "x" * 3000]


@pytest.fixture(scope="session")
def wordllama():
    return ready_model("wordllama-256")


def official_files(wordllama):
    folder = wordllama.graph.parents[2] / "files" / "wordllama-256"
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    return load_file(folder / "model.safetensors")["embedding.weight"], tokenizer


def token_ids(model, texts):
    tokenise = PoolTokenizer(model.tokenizer, model.max_tokens, add_special_tokens=False)
    return tokenise(texts)[0]


def test_what_is_said_of_it(wordllama):
    spec = wordllama.spec
    assert (spec.dim, spec.static, spec.add_special_tokens) == (256, True, False)
    assert (wordllama.precision, wordllama.max_tokens) == ("fp32", 1024)
    assert wordllama.pooled and wordllama.flops_per_token == 0
    assert ready_model("wordllama-256", max_tokens=4096).max_tokens == 4096


def test_vectors_are_the_means_of_the_table(wordllama):
    table, tokenizer = official_files(wordllama)
    texts = [*calibration_texts()[:60], *ODD]
    official = [tokenizer.encode(text, add_special_tokens=False).ids[:1024] for text in texts]
    means = np.stack([table[ids].astype(np.float64).mean(0) for ids in official])
    expected = means / np.linalg.norm(means, axis=1, keepdims=True)
    got = run_padded(open_session(wordllama.graph), token_ids(wordllama, texts), extra=3)
    np.testing.assert_allclose(got, expected, atol=1e-6)


def test_vectors_are_those_of_the_package(wordllama):
    package = pytest.importorskip(
        "wordllama.inference", reason="compares with wordllama where installed"
    )
    texts = list(calibration_texts()[:60])
    # Its own loader reaches for the hub even where the package holds both files.
    expected = package.WordLlamaInference(*official_files(wordllama)).embed(texts, norm=True)
    got = run_padded(open_session(wordllama.graph), token_ids(wordllama, texts))
    np.testing.assert_allclose(got, expected, atol=1e-6)


def test_the_faster_tokenizer_gives_the_same_ids(wordllama):
    _, official = official_files(wordllama)
    texts = ["", *ODD, *calibration_texts()]
    expected = [e.ids[:1024] for e in official.encode_batch(texts, add_special_tokens=False)]
    assert token_ids(wordllama, texts) == expected
    assert wordllama.tokenizer.parent == wordllama.graph.parent


@pytest.mark.data
def test_the_faster_tokenizer_on_the_reference_texts(wordllama, data_dir):
    _, official = official_files(wordllama)
    with gzip.open(data_dir / "mix_open.jsonl.gz", "rt") as lines:
        texts = [json.loads(line)["text"] for line in islice(lines, 20_000)]
    texts += [row["text"] for row in map(json.loads, _lines(data_dir / "edge/edge_texts.jsonl"))]
    expected = official.encode_batch(texts, add_special_tokens=False)
    got = token_ids(wordllama, texts)
    assert all(ids == e.ids[:1024] for ids, e in zip(got, expected, strict=True))


def _lines(path):
    # A line ends at a newline only, not at the separators that texts may hold.
    return path.read_text("utf-8").strip("\n").split("\n")


def test_an_empty_text_is_a_zero_vector(wordllama):
    assert token_ids(wordllama, [""]) == [[]]
    vectors = run_padded(open_session(wordllama.graph), [[], [22172]])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), [0, 1], atol=1e-5)


@pytest.fixture
def model2vec(tmp_path):
    """A directory as model2vec writes it: shared rows, weights a token, an unknown token."""
    folder = make_bert(tmp_path / "tiny")
    random = np.random.default_rng(3)
    tensors = {
        "embeddings": random.standard_normal((20, 24)).astype(np.float32),
        "mapping": random.integers(0, 20, len(WORDS)),
        "weights": random.random(len(WORDS)) + 0.5,
    }
    save_file(tensors, folder / "model.safetensors")
    config = {"model_type": "model2vec", "hidden_dim": 24, "normalize": True}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_a_model2vec_directory_as_fastembed_runs_it(model2vec, cache):
    from fastembed import TextEmbedding

    texts = ["w1 w2 w3", "w7 nonsense w7 words", "w9"]
    ready = ready_model(model2vec, cache_dir=cache)
    assert (ready.spec.dim, ready.max_tokens, ready.spec.static) == (24, 512, True)
    got = run_padded(open_session(ready.graph), token_ids(ready, texts))
    theirs = TextEmbedding("minishlab/potion-base-8M", specific_model_path=str(model2vec))
    np.testing.assert_allclose(got, list(theirs.embed(texts)), atol=1e-6)


def test_a_table_of_another_width(model2vec, cache):
    config = {"model_type": "model2vec", "hidden_dim": 32}
    (model2vec / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelCorrupt, match="rows of 24"):
        ready_model(model2vec, cache_dir=cache)


def test_a_file_without_a_table(model2vec, cache):
    save_file({"other": np.zeros(3, np.float32)}, model2vec / "model.safetensors")
    with pytest.raises(ModelCorrupt, match="no table"):
        ready_model(model2vec, cache_dir=cache)


@pytest.mark.parametrize(
    "wrong",
    [
        {"mapping": np.full(len(WORDS), 20)},
        {"weights": np.ones(3)},
        {"weights": np.ones((len(WORDS), 2))},
    ],
    ids=["rows", "count", "shape"],
)
def test_a_table_that_cannot_be_put_together(model2vec, cache, wrong):
    weights = model2vec / "model.safetensors"
    save_file(load_file(weights) | wrong, weights)
    with pytest.raises(ModelCorrupt, match="do not fit its rows"):
        ready_model(model2vec, cache_dir=cache)


@pytest.mark.parametrize(
    "changes",
    [None, {"model": None}, {"model": {"vocab": {"a": "x"}}}, {"added_tokens": [{"a": 1}]}],
    ids=["torn", "model", "ids", "added"],
)
def test_a_tokenizer_that_is_none(model2vec, cache, changes):
    tokenizer = model2vec / "tokenizer.json"
    described = json.dumps(json.loads(tokenizer.read_bytes()) | (changes or {}))
    tokenizer.write_text(described if changes else described[:100])
    with pytest.raises(ModelCorrupt, match=r"tokenizer\.json cannot be used"):
        ready_model(model2vec, cache_dir=cache)


def test_static_models_have_one_precision(model2vec, cache):
    with pytest.raises(UsageError, match="it has: fp32"):
        ready_model(model2vec, precision="int8", cache_dir=cache)
    listed = {listing.spec.name: listing for listing in list_models(cache_dir=cache)}
    assert listed["wordllama-256"].precisions == ("fp32",)
    assert listed["minishlab/potion-base-8M"].spec.static


TOKENS = [[5, 6, 7], [11, 1, 11, 8], [13], [1]]


def run_tokens(folder, cache):
    ready = ready_model(folder, cache_dir=cache)
    return ready, run_padded(open_session(ready.graph), TOKENS, extra=2)


def means(table, *, without=None):
    rows = [[token for token in ids if token != without] for ids in TOKENS]
    zero = np.zeros(table.shape[1])
    return np.stack([table[ids].astype(np.float64).mean(0) if ids else zero for ids in rows])


def make_static(folder, tensors, *, config=None, modules=()):
    make_bert(folder)
    (folder / "config.json").unlink()
    save_file(tensors, folder / "model.safetensors")
    if config is not None:
        said = {"model_type": "model2vec", **config}
        (folder / "config.json").write_text(json.dumps(said))
    if modules:
        kinds = [{"type": f"sentence_transformers.models.{k}", "path": p} for k, p in modules]
        (folder / "modules.json").write_text(json.dumps(kinds))
    return folder


@pytest.mark.parametrize("kind", ["int8", "float16", "float32", "float64"])
@pytest.mark.parametrize("weighted", [False, True])
def test_tables_of_any_kind_of_number(tmp_path, cache, kind, weighted):
    """An unknown token is left out of a mean that keeps its length too, as model2vec does."""
    random = np.random.default_rng(5)
    rows = (random.standard_normal((len(WORDS), 24)) * 30).astype(kind)
    weights = random.random(len(WORDS)) + 0.5
    tensors = {"embeddings": rows} | ({"weights": weights} if weighted else {})
    folder = make_static(tmp_path / "model", tensors, config={"hidden_dim": 24})
    ready, got = run_tokens(folder, cache)
    table = rows * (weights[:, None] if weighted else 1.0)
    np.testing.assert_allclose(
        got, means(table, without=1), atol=0.1 if kind == "float16" else 1e-4
    )
    assert not ready.spec.normalize and ready.max_tokens == 512


def test_the_limit_that_model2vec_was_told(tmp_path, cache):
    tensors = {"embeddings": np.ones((len(WORDS), 8), np.float32)}
    for number, (said, limit) in enumerate([(64, 64), (None, 8192)]):
        config = {"hidden_dim": 8, "max_length": said}
        folder = make_static(tmp_path / str(number), tensors, config=config)
        assert ready_model(folder, cache_dir=cache).max_tokens == limit


def test_a_table_that_model2vec_has_narrowed(tmp_path, cache):
    tensors = {"embeddings": np.ones((len(WORDS), 8), np.float32)}
    config = {"hidden_dim": 24, "embedding_dtype": "float32"}
    folder = make_static(tmp_path / "model", tensors, config=config)
    assert ready_model(folder, cache_dir=cache).spec.dim == 8


@pytest.mark.parametrize("place", ["", "0_StaticEmbedding"])
@pytest.mark.parametrize("normalize", [False, True])
def test_static_embeddings_of_sentence_transformers(tmp_path, cache, place, normalize):
    """Which counts an unknown token as any other."""
    rows = np.random.default_rng(5).standard_normal((len(WORDS), 24)).astype(np.float32)
    modules = [("StaticEmbedding", place), *([("Normalize", "1_Normalize")] if normalize else [])]
    folder = make_static(tmp_path / "model", {"embedding.weight": rows}, modules=modules)
    if place:
        (folder / place).mkdir()
        for name in ("model.safetensors", "tokenizer.json"):
            (folder / name).rename(folder / place / name)
    settings = {"prompts": {"query": "w1 ", "document": "w2 "}}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(settings))
    ready, got = run_tokens(folder, cache)
    wanted = means(rows)
    if normalize:
        wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
    np.testing.assert_allclose(got, wanted, atol=1e-5)
    assert (ready.spec.static, ready.spec.query_prefix, ready.max_tokens) == (True, "w1 ", 8192)


def test_pickled_tables_are_refused(tmp_path, cache):
    folder = make_static(tmp_path / "m", {"a": np.ones(1)}, modules=[("StaticEmbedding", "0_S")])
    (folder / "0_S").mkdir()
    (folder / "model.safetensors").rename(folder / "0_S" / "pytorch_model.bin")
    with pytest.raises(ModelUnsupported, match="never loaded"):
        ready_model(folder, cache_dir=cache)


def test_a_table_that_is_too_short_for_its_tokenizer(tmp_path, cache):
    tensors = {"embeddings": np.ones((len(WORDS) - 1, 8), np.float32)}
    folder = make_static(tmp_path / "model", tensors, config={"hidden_dim": 8})
    with pytest.raises(ModelCorrupt, match="63 rows"):
        ready_model(folder, cache_dir=cache)
