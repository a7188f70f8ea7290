"""`/rerank` as text-embeddings-inference, Jina and Cohere have it."""

from __future__ import annotations

import pytest

from memworker import Reranker
from tests.models.tiny import make_cross_encoder
from tests.serve.processes import serving

TEXTS = ["w5 w6", "w7", "w1 w2 w3", "w2"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_cross_encoder(tmp_path_factory.mktemp("cross"))


@pytest.fixture(scope="module")
def served(folder):
    with serving("--model", "echo", "--rerank", str(folder)) as server:
        yield server


def test_both_shapes_give_what_the_reranker_gives(served, folder):
    with Reranker(folder, workers=1) as reranker:
        ranked = reranker.rerank("w1 w2", TEXTS)
        logits = reranker.logits("w1 w2", TEXTS)
    tei = served.http.post("/rerank", json={"query": "w1 w2", "texts": TEXTS, "return_text": True})
    assert tei.status_code == 200, tei.text
    assert [one["index"] for one in tei.json()] == [one.index for one in ranked]
    assert [one["score"] for one in tei.json()] == pytest.approx([one.score for one in ranked])
    assert tei.json()[0]["text"] == TEXTS[ranked[0].index]
    raw = served.http.post("/rerank", json={"query": "w1 w2", "texts": TEXTS, "raw_scores": True})
    assert raw.json()[0]["score"] == pytest.approx(float(max(logits)), abs=1e-4)
    asked = {"query": "w1 w2", "documents": TEXTS, "top_n": 2, "model": "any"}
    jina = served.http.post("/v1/rerank", json=asked | {"return_documents": True}).json()
    assert [one["index"] for one in jina["results"]] == [one.index for one in ranked[:2]]
    assert jina["results"][0]["document"] == {"text": TEXTS[ranked[0].index]}
    assert jina["usage"]["total_tokens"] > 0 and jina["model"] == "any"


@pytest.mark.parametrize(
    "body",
    [
        {"query": "w1"},
        {"query": "w1", "texts": []},
        {"query": " ", "texts": ["w1"]},
        {"query": "w1", "texts": ["w1"], "documents": ["w1"]},
        {"query": "w1", "texts": ["w1"], "top_n": 0},
        {"query": "w1", "texts": [1]},
        {"query": "w1", "texts": ["w1 " * 99], "truncate": False},
    ],
)
def test_what_cannot_be_ranked_is_refused(served, body):
    for path in ("/rerank", "/v1/rerank"):
        answer = served.http.post(path, json=body)
        assert answer.status_code in (400, 413, 422) and "error" in answer.json()


def test_without_a_reranker_there_is_none(echo):
    answer = echo.http.post("/rerank", json={"query": "a", "texts": ["b"]})
    assert answer.status_code == 404 and "--rerank" in answer.json()["error"]
