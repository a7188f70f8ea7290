"""From a decoded body to what the pool takes: texts or token ids, checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import msgspec

from memworker.serve.bodies import EmbeddingsRequest, EmbedRequest, Kind
from memworker.serve.options import ServeOptions
from memworker.serve.refusals import Refusal

_EMBEDDINGS = msgspec.json.Decoder(EmbeddingsRequest)
_EMBED = msgspec.json.Decoder(EmbedRequest)
Body = TypeVar("Body")


@dataclass(frozen=True, slots=True)
class Inputs:
    """Either `texts` or `token_rows`, the other is empty; and what they are embedded as."""

    texts: list[str]
    token_rows: list[list[int]]
    kind: Kind
    truncate: bool


def embeddings_request(body: bytes) -> EmbeddingsRequest:
    """Decode a body of `/v1/embeddings`; Refusal for what is none."""
    return _decoded(_EMBEDDINGS, body)


def embed_request(body: bytes) -> EmbedRequest:
    """Decode a body of `/embed`; Refusal for what is none."""
    return _decoded(_EMBED, body)


def of_embeddings(request: EmbeddingsRequest, options: ServeOptions) -> Inputs:
    """Check what `/v1/embeddings` was given; Refusal 400 naming what is wrong."""
    given = request.input
    kind = request.input_type or "passage"
    if isinstance(given, str):
        return Inputs(_texts([given], "input", options), [], kind, options.truncate)
    if given and all(type(item) is int for item in given):
        return Inputs([], _token_rows([given], options), kind, options.truncate)
    if given and all(type(item) is list for item in given):
        return Inputs([], _token_rows(given, options), kind, options.truncate)
    return Inputs(_texts(given, "input", options), [], kind, options.truncate)


def of_embed(request: EmbedRequest, options: ServeOptions) -> Inputs:
    """Check what `/embed` was given; Refusal naming what is wrong."""
    given = [request.inputs] if isinstance(request.inputs, str) else request.inputs
    truncate = options.truncate if request.truncate is None else request.truncate
    kind = request.prompt_name or "passage"
    return Inputs(_texts(given, "inputs", options), [], kind, truncate)


def _decoded(decoder: msgspec.json.Decoder[Body], body: bytes) -> Body:
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        message, _, place = str(error).partition(" - at `$.")
        param = place.rstrip("`").partition("[")[0] or None
        where = f" ({place.rstrip('`')})" if place else ""
        raise Refusal(400, f"{message}{where}.", param=param, code="invalid_type") from error
    except (msgspec.DecodeError, RecursionError) as error:
        raise Refusal(400, f"The body is not valid JSON: {error}.", code="invalid_json") from error


def _texts(given: Sequence[object], param: str, options: ServeOptions) -> list[str]:
    _check_count(len(given), param, options)
    texts = []
    for position, item in enumerate(given):
        if type(item) is not str:
            raise Refusal(
                400,
                f"{param} must be all texts, all token ids or all lists of token ids;"
                f" {param}[{position}] is of another type than those before it.",
                param=param,
                code="invalid_type",
            )
        if not item:
            raise _empty(f"{param}[{position}] is an empty string", param)
        texts.append(item)
    return texts


def _token_rows(given: object, options: ServeOptions) -> list[list[int]]:
    assert isinstance(given, list)
    _check_count(len(given), "input", options)
    tokens = 0
    for position, row in enumerate(given):
        if not row:
            raise _empty(f"input[{position}] is an empty list of tokens", "input")
        tokens += len(row)
    if tokens > options.max_tokens:
        raise too_many_tokens(tokens, options)
    return given


def too_many_tokens(tokens: int, options: ServeOptions) -> Refusal:
    """Refuse a request whose inputs are too much together."""
    return Refusal(
        400,
        f"Requested {tokens} tokens, max {options.max_tokens} tokens per request.",
        param="input",
        code="max_tokens_per_request",
    )


def _check_count(count: int, param: str, options: ServeOptions) -> None:
    if not count:
        raise _empty(f"{param} is an empty list", param)
    if count > options.max_inputs:
        raise Refusal(
            400,
            f"{param} has {count:,} items; at most {options.max_inputs:,} are taken a request.",
            param=param,
            code="too_many_inputs",
        )


def _empty(what: str, param: str) -> Refusal:
    return Refusal(400, f"{what}; there is nothing to embed.", param=param, code="empty_input")
