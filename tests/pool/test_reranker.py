"""Cross-encoders: pairs through the pool, against plain numpy and against transformers."""

from __future__ import annotations

import asyncio
import os
import signal

import numpy as np
import pytest

from memworker import AsyncMemory, Memory, Reranker
from memworker.errors import ModelUnsupported, TextFailed, UsageError
from memworker.pool.pairs import joined, parted
from tests.models.tiny import make_bert, make_cross_encoder, numpy_logit, write_config

ME = {"user_id": "me"}
DOCUMENTS = [f"w{n} w{n + 1} " * (n % 5 + 1) for n in range(23)] + ["", "w7"]


def ids(text):
    return [5 + int(word[1:]) for word in text.split()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_cross_encoder(tmp_path_factory.mktemp("cross"))


@pytest.fixture(scope="module", params=["fp32", "int8"])
def reranker(request, folder):
    with Reranker(folder, precision=request.param, workers=2) as made:
        yield made


def wanted(folder, query, documents):
    return np.array([numpy_logit(folder, ids(query), ids(one)) for one in documents])


@pytest.mark.parametrize("pair", [("", ""), ("1 2", "3"), ("ä\n", " x"), ("🙂", "7 🙂")])
def test_a_pair_comes_back_as_it_was(pair):
    assert parted(joined(*pair)) == pair


def test_logits_are_the_models_own(reranker, folder):
    found = reranker.logits("w1 w2 w3", DOCUMENTS)
    exact = wanted(folder, "w1 w2 w3", DOCUMENTS)
    if reranker.pool.identity.precision == "fp32":
        np.testing.assert_allclose(found, exact, atol=1e-4)
    else:
        assert np.corrcoef(found, exact)[0, 1] > 0.98
    # The order of a pair counts, and so does which text a token is of.
    turned = reranker.logits("w7", ["w1 w2 w3"])[0]
    assert abs(turned - reranker.logits("w1 w2 w3", ["w7"])[0]) > 1e-3


def test_a_pair_does_not_depend_on_those_beside_it(reranker):
    together = reranker.logits("w1 w2 w3", DOCUMENTS)
    alone = [reranker.logits("w1 w2 w3", [one])[0] for one in DOCUMENTS]
    np.testing.assert_allclose(together, alone, atol=1e-4)


def test_documents_come_best_first(reranker):
    logits = reranker.logits("w1", DOCUMENTS)
    ranked = reranker.rerank("w1", DOCUMENTS)
    assert [one.index for one in ranked] == np.argsort(-logits, kind="stable").tolist()
    assert all(0 <= one.score <= 1 for one in ranked)
    assert reranker.rerank("w1", DOCUMENTS, top_n=2) == ranked[:2]
    assert reranker.rerank("w1", []) == []
    same = reranker.rerank("w1", ["w5", "w5", "w5"])
    assert [one.index for one in same] == [0, 1, 2]


def test_the_longer_text_of_a_pair_is_cut(folder):
    with Reranker(folder, max_tokens=12, workers=1) as small:
        long = "w9 " * 500
        embedded = small.pool.embed_rows([joined("w1 w2", long), joined("w1 w2", "w9")])
        assert embedded.tokens.tolist() == [12, 6] and embedded.truncated.tolist() == [True, False]
        cut = wanted(folder, "w1 w2", ["w9 " * 7])
        np.testing.assert_allclose(small.logits("w1 w2", [long]), cut, atol=1e-4)


def test_a_killed_worker_costs_no_pair(folder):
    with Reranker(folder, workers=1) as killed:
        before = killed.logits("w1", DOCUMENTS)
        (pid,) = killed.pool.worker_pids()
        os.kill(pid, signal.SIGKILL)
        np.testing.assert_allclose(killed.logits("w1", DOCUMENTS), before, atol=1e-5)


@pytest.mark.parametrize(
    ("query", "documents", "top_n"),
    [(" ", ["x"], None), (7, ["x"], None), ("x", "y", None), ("x", [1], None), ("x", ["y"], 0)],
)
def test_what_cannot_be_ranked_is_refused(reranker, query, documents, top_n):
    with pytest.raises(UsageError):
        reranker.rerank(query, documents, top_n=top_n)


def test_half_a_character_is_refused(reranker):
    with pytest.raises(TextFailed):
        reranker.rerank("x", ["\ud800"])


def test_what_is_no_cross_encoder_of_one_number_is_refused(tmp_path):
    make_bert(tmp_path / "bert")
    with pytest.raises(ModelUnsupported, match="no cross-encoder"):
        Reranker(tmp_path / "bert")
    with pytest.raises(ModelUnsupported, match="embeds texts"):
        Reranker("all-MiniLM-L6-v2")
    two = make_cross_encoder(tmp_path / "two")
    kinds = {"architectures": ["BertForSequenceClassification"]}
    write_config(two, **kinds, id2label={"0": "no", "1": "yes"})
    with pytest.raises(ModelUnsupported, match="2 numbers"):
        Reranker(two)
    write_config(two, **kinds, id2label={"0": "one"})
    with pytest.raises(UsageError, match="bf16"):
        Reranker(two, precision="bf16")


def test_memories_are_reranked(folder, tmp_path):
    with Reranker(folder, workers=1) as reranker, Memory(tmp_path / "db", model="echo") as memory:
        memory.add_batch(DOCUMENTS[:20], **ME)
        texts = [record["memory"] for record in memory.get_all(filters=ME)["results"]]
        best = max(texts, key=lambda text: reranker.logits("w1 w2", [text])[0])
        for mode in ("vector", "text", "hybrid"):
            asked = {"filters": ME, "mode": mode, "limit": 3}
            found = memory.search("w1 w2", **asked, rerank=reranker)["results"]
            scores = [record["score"] for record in found]
            assert scores == sorted(scores, reverse=True)
            if mode != "text":
                assert found[0]["memory"] == best and len(found) == 3
            told = memory.search("w1 w2", **asked, rerank=reranker, threshold=scores[0])
            assert [record["score"] for record in told["results"]] == scores[:1]
        assert memory.search("zzz", filters=ME, mode="text", rerank=reranker)["results"] == []
        with pytest.raises(UsageError, match="Reranker"):
            memory.search("w1", filters=ME, rerank="model")

    async def main():
        async with AsyncMemory(tmp_path / "db", model="echo") as memory:
            with Reranker(folder, workers=1) as reranker:
                found = await memory.search("w1 w2", filters=ME, limit=1, rerank=reranker)
        return found["results"][0]["memory"]

    assert asyncio.run(main()) == best


def test_transformers_gives_the_same(folder):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    theirs = transformers.BertForSequenceClassification.from_pretrained(folder).eval()
    first, second = ids("w1 w2 w3"), ids("w7 w8")
    given = {
        "input_ids": [[2, *first, 3, *second, 3]],
        "token_type_ids": [[0] * (len(first) + 2) + [1] * (len(second) + 1)],
    }
    with torch.no_grad():
        logit = theirs(**{name: torch.tensor(rows) for name, rows in given.items()}).logits
    with Reranker(folder, workers=1) as ours:
        found = ours.logits("w1 w2 w3", ["w7 w8"])
    np.testing.assert_allclose(found, logit[0].numpy(), atol=1e-4)
