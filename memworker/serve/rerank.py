"""`POST /rerank`: a query against texts, as text-embeddings-inference and as Jina and Cohere ask.

The first sends `texts` and gets a list, the others `documents` and get `results`. There is a
reranker only where the server was started with one.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from memworker.pool import paired, sigmoid
from memworker.serve import inputs, refusals
from memworker.serve.asgi import AsgiScope, Receive, disconnected, read_body
from memworker.serve.refusals import Refusal
from memworker.serve.service import Service


class RerankRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What `POST /rerank` takes: either `texts`, with what belongs to them, or `documents`.

    `truncate` left out means what the server was started with; `raw_scores` are the model's own
    numbers, which are else brought to 0 to 1. `top_n` and `return_documents` go with `documents`.
    """

    query: Annotated[str, Meta(min_length=1)]
    texts: list[str] | None = None
    documents: list[str] | None = None
    model: str | None = None
    truncate: bool | None = None
    raw_scores: bool = False
    return_text: bool = False
    top_n: Annotated[int, Meta(ge=1)] | None = None
    return_documents: bool = False


_REQUEST = msgspec.json.Decoder(RerankRequest)
TYPES = (RerankRequest,)


async def rerank(service: Service, scope: AsgiScope, receive: Receive) -> bytes:
    """Answer `POST /rerank` and `POST /v1/rerank`."""
    body = await read_body(scope, receive, service.options.max_body_bytes)
    request = inputs.decoded(_REQUEST, body)
    texts = _texts(request, service.options.max_inputs)
    service.pool  # noqa: B018 - it refuses before there is one, and at the end
    if service.reranker is None:
        raise Refusal(
            404, "No reranker is served; start the server with --rerank MODEL.", code="no_reranker"
        )
    pool = service.reranker.pool
    with service.in_hand(), refusals.translated():
        future = pool.submit_rows(paired(request.query, texts), wait_s=0)
        embedded = await service.awaiting(future, lambda: disconnected(receive))
        embedded.raise_first()
    truncate = service.options.truncate if request.truncate is None else request.truncate
    if not truncate and embedded.truncated.any():
        raise Refusal(
            400,
            f"Of the query and text {int(embedded.truncated.argmax())} together only"
            f" {pool.identity.max_tokens} tokens are seen. Shorten them, or send truncate: true.",
            param="texts",
            code="context_length_exceeded",
        )
    logits = embedded.vectors[:, 0]
    scores = (logits if request.raw_scores else sigmoid(logits)).tolist()
    order = sorted(range(len(texts)), key=lambda row: -scores[row])[: request.top_n]
    tokens = int(embedded.tokens.sum())
    return msgspec.json.encode(_reply(request, texts, scores, order, tokens))


def _texts(request: RerankRequest, most: int) -> list[str]:
    given = [texts for texts in (request.texts, request.documents) if texts is not None]
    if len(given) != 1:
        raise Refusal(400, "Send either texts or documents.", param="texts", code="invalid_type")
    if not request.query.strip():
        raise Refusal(400, "The query is empty.", param="query", code="empty_input")
    if not given[0]:
        raise Refusal(400, "There are no texts to rank.", param="texts", code="empty_input")
    if len(given[0]) > most:
        raise Refusal(
            400,
            f"{len(given[0]):,} texts were sent; at most {most:,} are taken.",
            param="texts",
            code="too_many_inputs",
        )
    return given[0]


def _reply(
    request: RerankRequest, texts: list[str], scores: list[float], order: list[int], tokens: int
) -> Any:
    if request.texts is not None:
        return [
            {"index": row, "score": scores[row]}
            | ({"text": texts[row]} if request.return_text else {})
            for row in order
        ]
    shown = request.return_documents
    results = [
        {"index": row, "relevance_score": scores[row]}
        | ({"document": {"text": texts[row]}} if shown else {})
        for row in order
    ]
    return {"model": request.model or "", "results": results, "usage": {"total_tokens": tokens}}
