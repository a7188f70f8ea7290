"""LanceDB's embedding registry, on real tables."""

from __future__ import annotations

import pickle
import subprocess
import sys

import lancedb
import psutil
import pyarrow as pa
import pytest
from lancedb.embeddings import EmbeddingFunctionConfig, get_registry
from lancedb.pydantic import LanceModel, Vector

from memworker import EmbeddingPool
from memworker.errors import TextTooLarge
from memworker.integrations.lancedb import MemworkerFunction, close_pools, use_pool
from tests import PATIENCE_S
from tests.integrations.kinds import told

TEXTS = ["the cat sleeps on the sofa", "the invoice is due on Friday", "it rains in Bergen"]


@pytest.fixture(autouse=True)
def pools_end():
    yield
    close_pools()


def table_of(function, folder, name="facts"):
    class Fact(LanceModel):
        text: str = function.SourceField()
        vector: Vector(function.ndims()) = function.VectorField()

    return lancedb.connect(folder).create_table(name, schema=Fact)


def test_add_and_search_embed_through_the_pool(pool, tmp_path):
    before = pool.work.texts
    table = table_of(use_pool(pool), tmp_path)
    table.add([{"text": text} for text in TEXTS])
    (found,) = table.search("when must the bill be paid?").limit(1).to_list()
    assert found["text"] == TEXTS[1]
    assert pool.work.texts - before == len(TEXTS) + 1


def test_an_opened_table_embeds_with_the_same_pool(pool, tmp_path):
    table_of(use_pool(pool), tmp_path).add([{"text": TEXTS[0]}])
    table = lancedb.connect(tmp_path).open_table("facts")
    before = pool.work.texts
    table.add([{"text": text} for text in TEXTS[1:]])
    (found,) = table.search("what is the pet doing?").limit(1).to_list()
    assert found["text"] == TEXTS[0]
    assert pool.work.texts - before == 3


def test_a_lent_pools_options_are_written_down(tmp_path):
    with EmbeddingPool(workers=1, max_tokens=16) as lent:
        function = use_pool(lent)
        assert (function.name, function.max_tokens) == (lent.identity.name, 16)
        table_of(function, tmp_path).add([{"text": "word " * 50}])
        (vector,) = lent.embed(["word " * 50])
    close_pools()
    table = lancedb.connect(tmp_path).open_table("facts")
    table.add([{"text": "word " * 50}])
    for row in table.to_arrow()["vector"].to_pylist():
        assert abs(vector - row).max() < 1e-6


def test_queries_and_nulls_are_told_apart(kinds, tmp_path):
    function = use_pool(kinds, name="kinds")
    (query,) = function.compute_query_embeddings("a query")
    assert told(query) == (7, True)
    column = pa.chunked_array([["four", None], ["a"]])
    text, nothing, other = function.compute_source_embeddings(column)
    assert (told(text), nothing, told(other)) == ((4, False), None, (1, False))


def test_functions_of_the_same_options_share_one_pool():
    first, again, other = (
        get_registry().get("memworker").create(name="echo", workers=1, max_tokens=n)
        for n in (None, None, 9)
    )
    before = len(psutil.Process().children())
    assert first.ndims() == again.ndims() == other.ndims() == 384
    assert len(psutil.Process().children()) == before
    for function in (first, again, other):
        assert function.compute_query_embeddings("four")[0][1] == 4.0
    assert len(psutil.Process().children()) - before == 2
    close_pools()
    assert len(psutil.Process().children()) == before
    assert first.ndims() == 384


def test_a_config_survives_pickling():
    function = get_registry().get("memworker").create(name="echo", workers=1)
    config = EmbeddingFunctionConfig(vector_column="v", source_column="t", function=function)
    copied = pickle.loads(pickle.dumps(config)).function
    assert copied == function and isinstance(copied, MemworkerFunction)
    assert copied.compute_query_embeddings("four")[0][1] == 4.0


def test_an_error_is_not_tried_again(pool, tmp_path):
    function, large = use_pool(pool), "x" * (pool.max_text_bytes + 1)
    # Another attempt, or LanceDB's own wrapping of the last, would raise something else.
    for embed in (
        function.compute_source_embeddings_with_retry,
        function.compute_query_embeddings_with_retry,
    ):
        with pytest.raises(TextTooLarge, match=r"texts\[0\] has"):
            embed([large])
    table = table_of(function, tmp_path)
    with pytest.raises(RuntimeError, match="over the cap"):
        table.add([{"text": large}])
    assert table.count_rows() == 0


def test_another_process_embeds_with_the_options_in_the_table(tmp_path):
    function = get_registry().get("memworker").create(name="echo", workers=1)
    table_of(function, tmp_path).add([{"text": "four"}])
    code = (
        "import sys, lancedb, memworker.integrations.lancedb\n"
        "table = lancedb.connect(sys.argv[1]).open_table('facts')\n"
        "table.add([{'text': 'seventh'}])\n"
        "print(table.search('rehtona').limit(1).to_list()[0]['text'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path], capture_output=True, text=True, timeout=PATIENCE_S
    )
    assert done.stdout == "seventh\n", done.stderr


def test_a_chosen_precision_is_written_down(tmp_path, monkeypatch):
    """Another machine might choose another one for the same table."""
    monkeypatch.setattr("memworker.pool.choice.measure", None)
    function = MemworkerFunction.create(name="wordllama-256", precision="auto")
    assert function.precision == "fp32"
    table_of(function, tmp_path)
    (written,) = lancedb.connect(tmp_path).open_table("facts").embedding_functions.values()
    assert written.function.precision == "fp32"
