"""What AgentMem's Rust client sends to an OpenAI-compatible base URL, and what it needs back.

Its requests are replayed: at most 100 texts, a Bearer key, floats, 30 s to answer. It retries
429 and 5xx after fixed waits, and gives a whole batch up for any other failure.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest

from tests import PATIENCE_S
from tests.integrations.served import serving

pytest.importorskip("starlette", reason='needs pip install "memworker[serve]"')

KEY = "a-key-for-the-tests"
MODEL = "all-MiniLM-L6-v2"
# A model's name on which the client sends `dimensions` too.
SIZED_MODEL = "text-embedding-3-small"
MEMORIES = [f"On day {n} Alice {'met a friend and ' * (n % 7)}went for a walk" for n in range(200)]


@pytest.fixture(scope="module")
def base_url():
    names = ("--served-model-name", MODEL, "--served-model-name", SIZED_MODEL)
    with serving(*names, key=KEY) as url:
        yield url


@pytest.fixture(scope="module")
def client():
    with httpx.Client(timeout=PATIENCE_S) as made:
        yield made


@pytest.fixture(scope="module")
def expected(pool):
    return pool.embed(MEMORIES)


def post(client, base_url, texts, *, model=MODEL, key=KEY, **more):
    body = {"input": texts, "model": model, "encoding_format": "float", **more}
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    return client.post(f"{base_url}/embeddings", json=body, headers=headers)


def parsed(reply):
    """Read a reply as strictly as its typed client does; float32[n, dim] in the order of index."""
    assert reply.status_code == 200, reply.text
    body = reply.json()
    assert type(body["model"]) is str
    assert type(body["usage"]["prompt_tokens"]) is int
    assert type(body["usage"]["total_tokens"]) is int
    assert all(each["object"] == "embedding" for each in body["data"])
    assert all(type(each["index"]) is int for each in body["data"])
    assert sorted(each["index"] for each in body["data"]) == list(range(len(body["data"])))
    ordered = sorted(body["data"], key=lambda each: each["index"])
    return np.array([each["embedding"] for each in ordered], np.float32)


def batches(size):
    return [MEMORIES[at : at + size] for at in range(0, len(MEMORIES), size)]


def test_a_batch_comes_back_in_order(client, base_url, expected):
    vectors = parsed(post(client, base_url, MEMORIES[:100]))
    assert np.abs(vectors - expected[:100]).max() < 1e-5


def test_usage_counts_tokens(client, base_url):
    usage = post(client, base_url, ["two words", "two words"]).json()["usage"]
    # [CLS] two words [SEP], twice.
    assert usage == {"prompt_tokens": 8, "total_tokens": 8}


@pytest.mark.parametrize("size", [1, 7, 100])
def test_concurrent_batches_get_their_own_vectors(client, base_url, expected, size):
    with ThreadPoolExecutor(10) as callers:
        replies = list(callers.map(lambda texts: post(client, base_url, texts), batches(size)))
    vectors = np.concatenate([parsed(reply) for reply in replies])
    assert np.abs(vectors - expected).max() < 1e-5


def test_dimensions_are_taken_where_they_are_the_models(client, base_url):
    reply = post(client, base_url, ["a text"], model=SIZED_MODEL, dimensions=384)
    assert parsed(reply).shape == (1, 384)
    refused = post(client, base_url, ["a text"], model=SIZED_MODEL, dimensions=1536)
    assert refused.status_code == 400 and "384" in refused.json()["error"]["message"]


@pytest.mark.parametrize(
    "texts, key, status",
    [(["good", ""], KEY, 400), ([], KEY, 400), (["good"], "another-key-entirely", 401)],
)
def test_what_cannot_succeed_is_not_worth_a_retry(client, base_url, texts, key, status):
    reply = post(client, base_url, texts, key=key)
    assert reply.status_code == status and reply.json()["error"]["message"]
