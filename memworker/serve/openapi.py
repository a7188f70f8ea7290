"""The OpenAPI document: made from the types that bodies are decoded by."""

from __future__ import annotations

from typing import Any

import msgspec

from memworker import __version__
from memworker.serve import bodies, ollama, rerank
from memworker.serve.live import LiveReply
from memworker.serve.options import ServeOptions

_TYPES = (
    bodies.EmbeddingsRequest,
    bodies.EmbeddingsReply,
    bodies.EmbedRequest,
    bodies.SimilarityRequest,
    bodies.TokenizeRequest,
    bodies.Token,
    bodies.ModelInfo,
    bodies.ModelList,
    bodies.Model,
    bodies.ErrorReply,
    bodies.EmbedErrorReply,
    LiveReply,
    *ollama.TYPES,
    *rerank.TYPES,
)
_PLACE = "#/components/schemas/{name}"
_BODY_ERRORS = {
    400: "The body cannot be embedded, and why.",
    408: "The body did not arrive in time.",
    413: "The body is too large.",
    415: "The body is packed in an unknown way.",
    429: "Too much is waiting; Retry-After says when to come again.",
    500: "A text could not be embedded.",
    503: "The server is starting or shutting down.",
}
_VECTORS = {"type": "array", "items": {"type": "array", "items": {"type": "number"}}}
_GATE_ERRORS = {400: "The Host is not served.", 403: "A page of another origin asks."}


def document(options: ServeOptions) -> bytes:
    """Write the document of a server."""
    _, components = msgspec.json.schema_components(_TYPES, ref_template=_PLACE)
    made: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": "memworker", "version": __version__},
        "paths": _paths(),
        "components": {"schemas": components},
    }
    if options.key is not None:
        made["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        made["security"] = [{"key": []}]
    return msgspec.json.encode(made)


def _paths() -> dict[str, Any]:
    found = {404: "No model has that name."}
    return {
        "/v1/embeddings": {
            "post": _operation(
                "Embed texts, as OpenAI does.",
                "EmbeddingsReply",
                errors=_BODY_ERRORS | found,
                body="EmbeddingsRequest",
            )
        },
        "/embed": {
            "post": _tei(
                "Embed texts, as text-embeddings-inference does.", _VECTORS, "EmbedRequest"
            )
        },
        "/rerank": {
            "post": _operation(
                "Rank texts, as text-embeddings-inference, Jina and Cohere do.",
                {"type": ["array", "object"]},
                errors=_BODY_ERRORS | {404: "The server has no reranker.", 424: "A text failed."},
                body="RerankRequest",
                error="EmbedErrorReply",
            )
        },
        "/v1/rerank": {
            "post": _operation(
                "The same.",
                {"type": ["array", "object"]},
                errors=_BODY_ERRORS | {404: "The server has no reranker."},
                body="RerankRequest",
            )
        },
        "/": {"post": _tei("Embed texts, as /embed does.", _VECTORS, "EmbedRequest")},
        "/similarity": {
            "post": _tei(
                "The cosine of one text to each of some others.",
                {"type": "array", "items": {"type": "number"}},
                "SimilarityRequest",
            )
        },
        "/tokenize": {
            "post": _tei("Each text's tokens.", _rows(_reference("Token")), "TokenizeRequest")
        },
        "/info": {
            "get": _operation(
                "The model, and what a request may be.",
                "ModelInfo",
                errors={503: "There is no pool yet."},
                error="EmbedErrorReply",
            )
        },
        "/api/embed": {
            "post": _operation(
                "Embed texts, as Ollama does.",
                "OllamaEmbedReply",
                errors=_BODY_ERRORS | found,
                body="OllamaEmbedRequest",
                error="OllamaError",
            )
        },
        "/api/embeddings": {
            "post": _operation(
                "Embed one text, as Ollama does.",
                "OllamaEmbeddingsReply",
                errors=_BODY_ERRORS | found,
                body="OllamaEmbeddingsRequest",
                error="OllamaError",
            )
        },
        "/api/tags": {
            "get": _operation(
                "The model's names, as Ollama lists them.",
                {"type": "object"},
                errors={503: "There is no pool yet."},
                error="OllamaError",
            )
        },
        "/api/version": {"get": _operation("Which memworker this is.", {"type": "object"})},
        "/v1/models": {"get": _operation("The model's names.", "ModelList")},
        "/v1/models/{name}": {
            "get": _operation("One name.", "Model", errors=found),
            "parameters": [
                {"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}
            ],
        },
        "/healthz": {"get": _operation("Whether the process lives.", {"type": "object"})},
        "/readyz": {
            "get": _operation(
                "Whether requests are taken.", {"type": "object"}, errors={503: "They are not."}
            )
        },
        "/live": {
            "get": _operation(
                "What the page at / shows.", "LiveReply", errors={503: "There is no pool yet."}
            )
        },
    }


def _tei(summary: str, reply: dict[str, Any], body: str) -> dict[str, Any]:
    """Describe a route of text-embeddings-inference's that takes texts."""
    return _operation(
        summary,
        reply,
        errors=_BODY_ERRORS | {424: "A text could not be embedded."},
        body=body,
        error="EmbedErrorReply",
    )


def _operation(
    summary: str,
    reply: str | dict[str, Any],
    *,
    errors: dict[int, str] | None = None,
    body: str = "",
    error: str = "ErrorReply",
) -> dict[str, Any]:
    schema = _reference(reply) if isinstance(reply, str) else reply
    refusals = _GATE_ERRORS | {401: "The key is wrong."} | (errors or {})
    made: dict[str, Any] = {
        "summary": summary,
        "responses": {
            "200": _content("Done.", schema),
            **{str(status): _content(text, _either(error)) for status, text in refusals.items()},
        },
    }
    if body:
        made["requestBody"] = {"required": True, **_content("", _reference(body))}
        del made["requestBody"]["description"]
    return made


def _content(description: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def _either(error: str) -> dict[str, Any]:
    """Give an error's shape; what is refused before the route is known has OpenAI's."""
    if error == "ErrorReply":
        return _reference(error)
    return {"anyOf": [_reference(error), _reference("ErrorReply")]}


def _rows(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": {"type": "array", "items": items}}


def _reference(name: str) -> dict[str, Any]:
    return {"$ref": _PLACE.format(name=name)}
