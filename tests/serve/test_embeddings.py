"""Vectors over HTTP: the same as the pool's, in every format, for every client."""

from __future__ import annotations

import asyncio
import gzip
import json
from importlib.resources import files

import msgspec
import numpy as np
import openai
import pytest

from memworker import EmbeddingPool
from memworker.serve.bodies import EmbeddingsReply, ModelList
from tests.serve.processes import serving

TEXTS = ["I like tea.", "Tea is what I like, and has been for years.", "The bus is late.", "ü€😀"]
NAME = "all-MiniLM-L6-v2"


@pytest.fixture(scope="module")
def reference():
    with EmbeddingPool(workers=1) as pool:
        yield pool.submit_rows(TEXTS).result()


@pytest.fixture(scope="module")
def client(minilm):
    with openai.OpenAI(base_url=f"{minilm.url}/v1", api_key="any", max_retries=0) as client:
        yield client


def vectors(reply):
    return np.array([item.embedding for item in reply.data], np.float32)


@pytest.mark.parametrize("encoding", ["float", "base64", None])
def test_a_client_gets_the_pools_vectors(client, reference, encoding):
    # Left out, the client asks for base64 and decodes it; told so, it gives the text itself.
    told = {} if encoding is None else {"encoding_format": encoding}
    reply = client.embeddings.create(model=NAME, input=TEXTS, **told)
    if encoding == "base64":
        import base64

        got = np.array([np.frombuffer(base64.b64decode(d.embedding), "<f4") for d in reply.data])
    else:
        got = vectors(reply)
    np.testing.assert_allclose(got, reference.vectors, atol=1e-6)
    assert [item.index for item in reply.data] == [0, 1, 2, 3]
    tokens = int(reference.tokens.sum())
    assert (reply.usage.prompt_tokens, reply.usage.total_tokens) == (tokens, tokens)
    assert reply.model == NAME


def test_one_text_is_a_list_of_one(client, reference):
    reply = client.embeddings.create(model=NAME, input=TEXTS[0], user="somebody", dimensions=384)
    np.testing.assert_allclose(vectors(reply), reference.vectors[:1], atol=1e-6)


def test_token_ids_are_embedded_as_their_text(client):
    # "i like tea" in the model's vocabulary, without special tokens.
    tea = [1045, 2066, 5572]
    text = client.embeddings.create(model=NAME, input="i like tea")
    for given in (tea, [tea], [[5572], tea]):
        reply = client.embeddings.create(model=NAME, input=given)
        np.testing.assert_allclose(vectors(reply)[-1], vectors(text)[0], atol=1e-6)
    assert reply.usage.prompt_tokens == 3 + 5


def test_a_token_id_that_the_model_does_not_have_is_named(minilm):
    answer = minilm.embed([[101], [30_522]], model=NAME)
    error = answer.json()["error"]
    assert answer.status_code == 400 and error["code"] == "invalid_token"
    assert "input[1]" in error["message"] and "30521" in error["message"]


def test_a_text_over_the_models_tokens_is_refused(minilm):
    answer = minilm.embed(["short", "tea " * 400], model=NAME)
    error = answer.json()["error"]
    assert answer.status_code == 400 and error["code"] == "context_length_exceeded"
    assert "256 tokens" in error["message"] and "input[1]" in error["message"]


def test_other_dimensions_are_refused(minilm):
    answer = minilm.embed(model=NAME, dimensions=100)
    assert answer.status_code == 400 and answer.json()["error"]["param"] == "dimensions"


def test_embed_as_text_embeddings_inference_has_it(minilm, reference):
    many = minilm.http.post("/embed", json={"inputs": TEXTS, "normalize": True}).json()
    np.testing.assert_allclose(np.array(many, np.float32), reference.vectors, atol=1e-6)
    one = minilm.http.post("/embed", json={"inputs": TEXTS[0], "prompt_name": "query"}).json()
    np.testing.assert_allclose(np.array(one, np.float32), reference.vectors[:1], atol=1e-6)
    long = {"inputs": ["tea " * 400]}
    cut = minilm.http.post("/embed", json={**long, "truncate": True})
    assert cut.status_code == 200 and len(cut.json()[0]) == 384
    whole = minilm.http.post("/embed", json={**long, "truncate": False})
    assert whole.status_code == 413 and whole.json()["error_type"] == "Validation"
    raw = minilm.http.post("/embed", json={"inputs": "tea", "normalize": False})
    # Nothing is added to what the model gives, which is of length one already.
    np.testing.assert_allclose(np.linalg.norm(raw.json()), 1, atol=1e-5)


def test_replies_are_what_their_types_say(minilm):
    for told in ({}, {"encoding_format": "base64"}):
        msgspec.json.decode(minilm.embed(model=NAME, **told).content, type=EmbeddingsReply)
    listed = msgspec.json.decode(minilm.http.get("/v1/models").content, type=ModelList)
    assert [model.id for model in listed.data] == [NAME]
    one = minilm.http.get(f"/v1/models/{NAME}").json()
    assert one["id"] == NAME and one["object"] == "model"
    missing = minilm.http.get("/v1/models/other")
    assert missing.status_code == 404 and missing.json()["error"]["code"] == "model_not_found"


def test_many_callers_at_once_each_get_their_own(echo):
    texts = [json.loads(line)["text"] for line in _sample()][:300]

    async def all_of_them():
        async with openai.AsyncOpenAI(base_url=f"{echo.url}/v1", api_key="any") as client:
            asked = [client.embeddings.create(model="echo", input=text) for text in texts]
            return await asyncio.gather(*asked)

    lengths = [vectors(reply)[0][1] for reply in asyncio.run(all_of_them())]
    assert lengths == [len(text.encode()) for text in texts]


def test_a_large_request_and_a_large_reply(echo):
    texts = [f"memory {row}" * 20 for row in range(2048)]
    reply = echo.embed(texts, model="echo", encoding_format="float").json()
    assert [item["embedding"][1] for item in reply["data"]] == [len(text) for text in texts]


def _sample():
    path = files("memworker") / "data" / "memories.jsonl.gz"
    with path.open("rb") as file, gzip.open(file) as lines:
        yield from lines


def test_a_matryoshka_models_vectors_may_be_shortened():
    with EmbeddingPool("wordllama-256", workers=1) as pool:
        full = pool.embed(TEXTS)
    with serving("--model", "wordllama-256") as served:
        reply = served.embed(TEXTS, model="wordllama-256", dimensions=64, encoding_format="float")
        short = np.array([item["embedding"] for item in reply.json()["data"]], np.float32)
        more = served.embed("tea", model="wordllama-256", dimensions=257)
    expected = full[:, :64] / np.linalg.norm(full[:, :64], axis=1, keepdims=True)
    np.testing.assert_allclose(short, expected, atol=1e-6)
    assert more.status_code == 400 and "1 to 256" in more.json()["error"]["message"]
