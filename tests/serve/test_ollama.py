"""Ollama's routes: plain HTTP, and the real Python client where it is installed."""

from __future__ import annotations

import httpx
import numpy as np
import pytest

from memworker import EmbeddingPool, __version__

TEXTS = ["I like tea.", "The bus is late."]
NAME = "all-MiniLM-L6-v2"


@pytest.fixture(scope="module")
def reference():
    with EmbeddingPool(workers=1) as pool:
        yield pool.submit_rows(TEXTS).result()


@pytest.fixture(scope="module")
def client(minilm):
    with httpx.Client(base_url=minilm.url, timeout=60) as client:
        yield client


@pytest.mark.parametrize("name", [NAME, f"{NAME}:latest"])
def test_embed_gives_the_pools_vectors(client, reference, name):
    answer = client.post("/api/embed", json={"model": name, "input": TEXTS, "keep_alive": "5m"})
    told = answer.json()
    assert answer.status_code == 200 and told["model"] == name
    assert np.allclose(told["embeddings"], reference.vectors, atol=1e-6)
    assert told["prompt_eval_count"] == reference.tokens.sum() and told["total_duration"] > 0
    one = client.post("/api/embed", json={"model": name, "input": TEXTS[0]}).json()
    assert np.allclose(one["embeddings"], reference.vectors[:1], atol=1e-6)
    older = client.post("/api/embeddings", json={"model": name, "prompt": TEXTS[1]}).json()
    assert np.allclose(older["embedding"], reference.vectors[1], atol=1e-6)


def test_nothing_to_embed_is_what_ollama_makes_of_it(client):
    none = client.post("/api/embed", json={"model": NAME, "input": []})
    assert none.json()["embeddings"] == []
    assert client.post("/api/embeddings", json={"model": NAME, "prompt": ""}).json() == {
        "embedding": []
    }


def test_a_long_text_is_cut_unless_it_may_not_be(client):
    body = {"model": NAME, "input": "tea " * 2000}
    assert client.post("/api/embed", json=body).status_code == 200
    refused = client.post("/api/embed", json={**body, "truncate": False})
    assert refused.status_code == 400 and "256 tokens" in refused.json()["error"]


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ({"model": "none", "input": "x"}, 404, "`none`"),
        ({"model": NAME, "input": "x", "options": {"num_ctx": 3}}, 400, "'num_ctx'"),
        ({"model": NAME, "input": "x", "dimensions": 3}, 400, "384"),
        ({"model": NAME, "input": "x", "prompt": "y"}, 400, "prompt"),
        ({"model": NAME, "input": ["x", ""]}, 400, "input[1]"),
        ({"model": NAME, "input": 3}, 400, "input"),
    ],
)
def test_what_cannot_be_obeyed_is_refused_by_its_name(client, body, status, said):
    answer = client.post("/api/embed", json=body)
    assert answer.status_code == status and list(answer.json()) == ["error"]
    assert said in answer.json()["error"]


def test_names_and_version(client):
    (model,) = client.get("/api/tags").json()["models"]
    assert model["name"] == model["model"] == f"{NAME}:latest" and model["digest"]
    assert client.get("/api/version").json() == {"version": __version__}


def test_the_real_client(minilm, reference):
    ollama = pytest.importorskip("ollama", reason="needs pip install ollama")
    client = ollama.Client(host=minilm.url)
    told = client.embed(model=NAME, input=TEXTS)
    assert np.allclose(told.embeddings, reference.vectors, atol=1e-6)
    older = client.embeddings(model=NAME, prompt=TEXTS[0])
    assert np.allclose(older.embedding, reference.vectors[0], atol=1e-6)
    assert client.list().models[0].model == f"{NAME}:latest"
    with pytest.raises(ollama.ResponseError, match="num_ctx"):
        client.embed(model=NAME, input="x", options={"num_ctx": 3})
