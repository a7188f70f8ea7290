"""Ollama's routes for embeddings: bodies, answers, and errors in its shape.

What a request asks beyond what is served is refused by its name; only `keep_alive` means nothing
here, for the model stays as long as the server does.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from memworker import __version__
from memworker.pool import Embedded
from memworker.serve import inputs, replies
from memworker.serve.asgi import AsgiScope, Receive, disconnected, read_body
from memworker.serve.inputs import Inputs
from memworker.serve.refusals import Refusal
from memworker.serve.service import Service

_LATEST = ":latest"


class OllamaEmbedRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What `POST /api/embed` takes. As with Ollama, texts are cut unless `truncate` is false."""

    model: str
    input: str | list[str]
    truncate: bool | None = None
    dimensions: Annotated[int, Meta(ge=1)] | None = None
    options: dict[str, Any] | None = None
    keep_alive: str | float | None = None


class OllamaEmbeddingsRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What `POST /api/embeddings` takes, the older of the two: one text, which may be cut."""

    model: str
    prompt: str
    options: dict[str, Any] | None = None
    keep_alive: str | float | None = None


class OllamaEmbedReply(msgspec.Struct, frozen=True):
    """What `POST /api/embed` answers; durations are nanoseconds."""

    model: str
    embeddings: list[list[float]]
    total_duration: int
    load_duration: int
    prompt_eval_count: int


class OllamaEmbeddingsReply(msgspec.Struct, frozen=True):
    """What `POST /api/embeddings` answers."""

    embedding: list[float]


class OllamaError(msgspec.Struct, frozen=True):
    """What Ollama's routes answer when they refuse."""

    error: str


_EMBED = msgspec.json.Decoder(OllamaEmbedRequest)
_EMBEDDINGS = msgspec.json.Decoder(OllamaEmbeddingsRequest)
TYPES = (
    OllamaEmbedRequest,
    OllamaEmbedReply,
    OllamaEmbeddingsRequest,
    OllamaEmbeddingsReply,
    OllamaError,
)


def refused(refusal: Refusal) -> tuple[int, bytes]:
    """Give status and body of a refusal as Ollama does."""
    return refusal.status, msgspec.json.encode(OllamaError(refusal.message))


async def embed(service: Service, scope: AsgiScope, receive: Receive) -> bytes:
    """Answer `POST /api/embed`."""
    began = time.perf_counter_ns()
    body = await read_body(scope, receive, service.options.max_body_bytes)
    request = inputs.decoded(_EMBED, body)
    _check(service, request.model, request.options)
    dim = service.dimensions(request.dimensions)
    texts = [request.input] if isinstance(request.input, str) else request.input
    written, tokens = [], 0
    if texts:
        given = _given(service, texts, "input", request.truncate is not False)
        embedded = await service.embed(given, lambda: disconnected(receive))
        written, tokens = await _rows(service, embedded, dim), int(embedded.tokens.sum())
    took = time.perf_counter_ns() - began
    return (
        b'{"model":%b,"embeddings":[%b],"total_duration":%d,"load_duration":0'
        b',"prompt_eval_count":%d}'
        % (msgspec.json.encode(request.model), b",".join(written), took, tokens)
    )


async def embeddings(service: Service, scope: AsgiScope, receive: Receive) -> bytes:
    """Answer `POST /api/embeddings`."""
    body = await read_body(scope, receive, service.options.max_body_bytes)
    request = inputs.decoded(_EMBEDDINGS, body)
    _check(service, request.model, request.options)
    if not request.prompt:
        # So clients of Ollama have a model loaded.
        return b'{"embedding":[]}'
    given = _given(service, [request.prompt], "prompt", True)
    embedded = await service.embed(given, lambda: disconnected(receive))
    (row,) = await replies.written_rows(embedded.vectors, replies.numbers)
    return b'{"embedding":%b}' % row


async def tags(service: Service, scope: AsgiScope, receive: Receive) -> bytes:
    """Answer `GET /api/tags`: the names that the model is served under."""
    made = service.pool.identity
    since = datetime.fromtimestamp(service.created, UTC).isoformat().replace("+00:00", "Z")
    details = {
        "parent_model": "",
        "format": "onnx",
        "family": "embedding",
        "families": ["embedding"],
        "parameter_size": "",
        "quantization_level": made.precision.upper(),
    }
    listed = [
        {
            "name": f"{name}{_LATEST}",
            "model": f"{name}{_LATEST}",
            "modified_at": since,
            "size": 0,
            "digest": made.fingerprint,
            "details": details,
        }
        for name in service.names
    ]
    return msgspec.json.encode({"models": listed})


async def version(service: Service, scope: AsgiScope, receive: Receive) -> bytes:
    """Answer `GET /api/version`: that of memworker."""
    return msgspec.json.encode({"version": __version__})


def _check(service: Service, model: str, options: dict[str, Any] | None) -> None:
    service.check_model(model if model in service.names else model.removesuffix(_LATEST))
    asked = [name for name, value in (options or {}).items() if value is not None]
    if asked:
        raise Refusal(
            400,
            f"options has {', '.join(map(repr, asked))}, which this server does not know how to"
            " obey; leave it out. What there is: truncate, dimensions.",
            param="options",
            code="invalid_input",
        )


def _given(service: Service, texts: list[str], param: str, truncate: bool) -> Inputs:
    checked = inputs.checked_texts(texts, param, service.options)
    return Inputs(checked, [], "passage", truncate, param=param)


async def _rows(service: Service, embedded: Embedded, dim: int) -> list[bytes]:
    """Write vectors of length one, as `/api/embed` gives them."""
    rows = replies.vectors_of(embedded, dim)
    if not service.pool.identity.normalized:
        rows = replies.normalised(rows)
    return await replies.written_rows(rows, replies.numbers)
