"""Names, the nearest ones to a mistyped one, and what each entry says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from memworker.errors import ModelCorrupt, ModelUnsupported, UnknownModel, UsageError
from memworker.models import Pooling, list_models, ready_model
from memworker.models.cache import ModelCache
from memworker.models.catalog import find
from memworker.models.fastembed_catalog import fastembed_entries
from memworker.models.hub_catalog import HUB_ENTRIES
from memworker.models.prefixes import prefixes_of
from tests import PATIENCE_S
from tests.models.tiny import make_bert


@pytest.fixture(scope="module")
def catalog(tmp_path_factory):
    return ModelCache.locate(tmp_path_factory.mktemp("cache"))


@pytest.mark.parametrize(
    "name", ["all-MiniLM-L6-v2", "sentence-transformers/all-MiniLM-L6-v2", "ALL-MINILM-L6-V2"]
)
def test_the_default_model_by_any_of_its_names(name, catalog):
    assert find(name, catalog).spec.name == "all-MiniLM-L6-v2"


def test_fastembed_names_with_or_without_publisher(catalog):
    full = find("BAAI/bge-small-en-v1.5", catalog)
    assert find("bge-small-en-v1.5", catalog) == full
    assert (full.spec.dim, full.spec.pooling, full.spec.normalize) == (384, Pooling.CLS, True)
    assert full.spec.query_prefix.startswith("Represent this sentence")
    e5 = find("intfloat/multilingual-e5-large", catalog)
    assert (e5.spec.pooling, e5.spec.normalize) == (Pooling.MEAN, False)
    assert "model.onnx_data" in [file.path for file in e5.files]


def test_revisions_that_are_not_the_publishers_own():
    """The conversion that transformers fetches by itself where a repository has none."""
    others = {entry.spec.name: entry.hub.revision for entry in HUB_ENTRIES}
    assert {n: r for n, r in others.items() if r != "main"} == {"BAAI/bge-m3": "refs/pr/130"}


@pytest.mark.parametrize("entry", HUB_ENTRIES, ids=lambda entry: entry.spec.name)
def test_entries_of_the_hub_hold_together(entry, catalog):
    spec, short = entry.spec, entry.spec.name.rpartition("/")[2]
    assert find(spec.name, catalog) == find(short, catalog) == entry
    assert entry.hub is not None and entry.hub.repo == spec.name
    assert spec.dim in (384, 768, 1024) and 128 <= spec.max_tokens <= spec.position_limit
    assert spec.description.endswith(".") and spec.license in ("mit", "apache-2.0", "gemma", "")
    # Its ONNX file is what tables of that name were made with, if it could be run.
    runs = {e.spec.name.lower() for e in fastembed_entries(catalog) if not e.unsupported}
    assert spec.name.lower() not in runs


def test_another_model_than_the_catalogue_says(tmp_path, monkeypatch):
    """The hub's folder of `main` may come to hold another one."""
    home = tmp_path / "hub" / "models--thenlper--gte-small"
    folder = make_bert(home / "snapshots" / ("0" * 40))
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text("0" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    with pytest.raises(ModelCorrupt, match="32 dimensions.*gte-small should have 384"):
        ready_model("gte-small", cache_dir=tmp_path / "cache", offline=True)
    assert folder.is_dir()


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("all-MiniLM-L7-v2", "all-MiniLM-L6-v2"),
        ("bge-smal-en-v1.5", "BAAI/bge-small-en-v1.5"),
        ("all-minilm-l6-v3", "all-MiniLM-L6-v2"),
    ],
)
def test_an_unknown_name_suggests_the_nearest(name, nearest, catalog):
    with pytest.raises(UnknownModel, match="Did you mean") as caught:
        find(name, catalog)
    assert nearest in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_directory_that_is_not_there(catalog):
    with pytest.raises(UnknownModel):
        find(Path("/no/such/model"), catalog)
    with pytest.raises(UnknownModel):
        find("/no/such/model", catalog)


def test_models_that_need_more_than_pooling_say_so(cache):
    with pytest.raises(ModelUnsupported, match="JinaEmbeddingV3"):
        ready_model("jinaai/jina-embeddings-v3", cache_dir=cache)


def test_listing(catalog):
    listed = {listing.spec.name: listing for listing in list_models(cache_dir=catalog.root)}
    minilm = listed["all-MiniLM-L6-v2"]
    assert minilm.precisions == ("fp32", "int8", "bf16")
    assert (minilm.spec.dim, minilm.cached) == (384, False)
    assert "sentence-transformers/all-MiniLM-L6-v2" not in listed
    assert not listed["BAAI/bge-small-en-v1.5"].unsupported
    assert listed["jinaai/jina-embeddings-v3"].precisions == ()


@pytest.mark.parametrize(
    ("name", "query", "passage"),
    [
        ("intfloat/e5-small-v2", "query: ", "passage: "),
        ("intfloat/multilingual-e5-large", "query: ", "passage: "),
        ("BAAI/bge-base-en-v1.5", "Represent this sentence for searching relevant passages: ", ""),
        ("snowflake/snowflake-arctic-embed-xs", "Represent this sentence for ", ""),
        ("nomic-ai/nomic-embed-text-v1.5", "search_query: ", "search_document: "),
        ("nomic-ai/modernbert-embed-base", "search_query: ", "search_document: "),
        ("Qwen/Qwen3-Embedding-0.6B", "Instruct: Given a web search query, ", ""),
        ("google/embeddinggemma-300m", "task: search result | query: ", "title: none | text: "),
        ("all-MiniLM-L6-v2", "", ""),
        ("thenlper/gte-base", "", ""),
    ],
)
def test_prefixes(name, query, passage):
    found = prefixes_of(name)
    assert found[0].startswith(query) and bool(found[0]) is bool(query)
    assert found[1] == passage


def test_a_precision_that_is_not_there(cache):
    with pytest.raises(UsageError, match="fp32"):
        ready_model("all-MiniLM-L6-v2", precision="int4", cache_dir=cache)


def test_max_tokens_is_bounded_by_the_position_table(tmp_path, cache):
    folder = make_bert(tmp_path / "model")
    assert ready_model(folder, cache_dir=cache).max_tokens == 40
    assert ready_model(folder, max_tokens=16, cache_dir=cache).max_tokens == 16
    with pytest.raises(UsageError, match="3 to 40"):
        ready_model(folder, max_tokens=41, cache_dir=cache)


def test_the_fingerprint_covers_weights_and_truncation(tmp_path, cache):
    one, same, other = (
        make_bert(tmp_path / name, seed=seed) for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    first = ready_model(one, cache_dir=cache).fingerprint
    assert ready_model(one, cache_dir=cache).fingerprint == first
    assert ready_model(same, cache_dir=cache).fingerprint == first
    assert ready_model(other, cache_dir=cache).fingerprint != first
    assert ready_model(one, max_tokens=16, cache_dir=cache).fingerprint != first


def test_making_a_model_ready_never_loads_onnxruntime(tmp_path):
    folder = make_bert(tmp_path / "model")
    code = """
import sys
from pathlib import Path
from memworker.models import list_models, ready_model
cache = Path(sys.argv[2])
ready_model(sys.argv[1], cache_dir=cache)
list_models(cache_dir=cache)
assert "onnxruntime" not in sys.modules and "fastembed" not in sys.modules
ready_model(sys.argv[1], cache_dir=cache)
"""
    command = [sys.executable, "-c", code, str(folder), str(tmp_path / "cache")]
    subprocess.run(command, check=True, timeout=PATIENCE_S)
