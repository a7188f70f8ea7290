"""From a decoded body to what the pool takes: texts or token ids, checked."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

import msgspec
import numpy as np

from memworker.json_lines import without_doubles
from memworker.pool import Costs, Embedded, TextKind, estimate_tokens
from memworker.serve.bodies import (
    EmbeddingsRequest,
    EmbedRequest,
    InputsShape,
    SimilarityParameters,
    SimilarityRequest,
    TokenizeRequest,
    kind_of,
)
from memworker.serve.options import ServeOptions
from memworker.serve.refusals import Refusal

_EMBEDDINGS = msgspec.json.Decoder(EmbeddingsRequest)
_EMBED = msgspec.json.Decoder(EmbedRequest)
_SIMILARITY = msgspec.json.Decoder(SimilarityRequest)
_SHAPE = msgspec.json.Decoder(InputsShape)
_TOKENIZE = msgspec.json.Decoder(TokenizeRequest)
_UNKNOWN_FIELD = re.compile(
    r"Object contains unknown field `(.*?)`(?: - at `\$\.?(.*)`)?", re.DOTALL
)
_HIGHEST_TOKEN = 2**31 - 1
_TOKEN_BYTES = 4
_SHOWN_CHARS = 100
Body = TypeVar("Body")


@dataclass(frozen=True, slots=True)
class Inputs:
    """Either `texts` or `token_rows`, the other is empty; and what they are embedded as.

    `param` is what the interface calls them. `most_tokens` is what the request has each cut to,
    where that is less than the model sees.
    """

    texts: list[str]
    token_rows: list[list[int]]
    kind: TextKind
    truncate: bool
    param: str = "input"
    most_tokens: int | None = None

    def refuse_too_many_tokens(self, costs: Costs, most: int) -> None:
        """Refuse a request whose inputs are too much together, by an estimate for texts."""
        if self.token_rows:
            tokens = sum(map(len, self.token_rows))
        elif sum(map(len, self.texts)) <= most:
            return  # nearly always: no text has more tokens than characters, by the estimate
        else:
            lengths = np.fromiter((len(text.encode()) for text in self.texts), np.int64)
            tokens = int(estimate_tokens(lengths, costs).sum())
        if tokens > most:
            raise Refusal(
                400,
                f"Requested {tokens} tokens, max {most} tokens per request.",
                param=self.param,
                code="max_tokens_per_request",
            )

    def too_large_error(self, most: int) -> Refusal:
        """Give the refusal for the largest input, of which the pool said that it is too large."""
        if self.token_rows:
            row = max(range(len(self.token_rows)), key=lambda row: len(self.token_rows[row]))
            has = f"{len(self.token_rows[row]):,} tokens; at most {most // _TOKEN_BYTES:,}"
        else:
            row = max(range(len(self.texts)), key=lambda row: len(self.texts[row].encode()))
            has = f"{len(self.texts[row].encode()):,} bytes; at most {most:,}"
        return Refusal(
            400,
            f"{self.param}[{row}] has {has} are taken. Split it.",
            param=self.param,
            code="invalid_input",
        )

    def refuse_unfit(self, embedded: Embedded, max_tokens: int) -> None:
        """Refuse the request for its first input that failed, or that the model saw in part only.

        The latter unless it may be truncated.
        """
        if embedded.failures:
            raise self._failed_error(embedded)
        if not self.truncate and embedded.truncated.any():
            row = int(embedded.truncated.argmax())
            raise Refusal(
                400,
                f"This model's maximum context length is {max_tokens} tokens, and"
                f" {self.param}[{row}] has more. Shorten it, or start the server with --truncate.",
                param=self.param,
                code="context_length_exceeded",
            )

    def _failed_error(self, embedded: Embedded) -> Refusal:
        row = min(embedded.failures)
        reason = embedded.failures[row]
        # Of bare token ids the vocabulary is the one thing that a caller can get wrong.
        wrong = bool(self.token_rows) and "vocabulary" in reason
        return Refusal(
            400 if wrong else 500,
            f"{self.param}[{row}] could not be embedded: {reason}",
            param=self.param,
            code="invalid_token" if wrong else "text_failed",
        )


def embeddings_request(body: bytes) -> EmbeddingsRequest:
    """Decode a body of `/v1/embeddings`; Refusal for what is none."""
    return decoded(_EMBEDDINGS, body)


def embed_request(body: bytes) -> EmbedRequest:
    """Decode a body of `/embed`; Refusal for what is none."""
    return decoded(_EMBED, body)


def is_similarity(body: bytes) -> bool:
    """Say whether `inputs` is an object, as `/similarity` has it."""
    try:
        return bytes(_SHAPE.decode(body).inputs)[:1] == b"{"
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False


def similarity_request(body: bytes) -> SimilarityRequest:
    """Decode a body of `/similarity`; Refusal for what is none."""
    return decoded(_SIMILARITY, body)


def tokenize_request(body: bytes) -> TokenizeRequest:
    """Decode a body of `/tokenize`; Refusal for what is none."""
    return decoded(_TOKENIZE, body)


def of_tokenize(request: TokenizeRequest, options: ServeOptions) -> list[str]:
    """Check what `/tokenize` was given."""
    given = [request.inputs] if isinstance(request.inputs, str) else request.inputs
    return checked_texts(given, "inputs", options)


def of_embeddings(request: EmbeddingsRequest, options: ServeOptions, max_tokens: int) -> Inputs:
    """Check what `/v1/embeddings` was given; Refusal 400 naming what is wrong."""
    given = request.input
    kind = kind_of(request.input_type)
    texts, rows = _texts_or_rows(given, options)
    most = request.truncate_prompt_tokens
    truncate = options.truncate if most is None else True
    # A model without a limit of its own has no tokens that could be counted: told when it is cut.
    fewer = most if most is not None and (-1 < most < max_tokens or not max_tokens) else None
    return Inputs(texts, rows, kind, truncate, most_tokens=None if fewer == -1 else fewer)


def of_embed(request: EmbedRequest, options: ServeOptions) -> Inputs:
    """Check what `/embed` was given; Refusal naming what is wrong."""
    given = [request.inputs] if isinstance(request.inputs, str) else request.inputs
    truncate = _cuts(request.truncate, request.truncation_direction, options)
    kind = kind_of(request.prompt_name)
    return Inputs(checked_texts(given, "inputs", options), [], kind, truncate, param="inputs")


def of_similarity(request: SimilarityRequest, options: ServeOptions) -> Inputs:
    """Check what `/similarity` was given: the sentence first, then the others."""
    told = request.parameters or SimilarityParameters()
    truncate = _cuts(told.truncate, told.truncation_direction, options)
    given, param = request.inputs, "inputs.sentences"
    _check_count(len(given.sentences), param, options)
    if not given.source_sentence:
        raise _empty_error("inputs.source_sentence is an empty string", "inputs.source_sentence")
    texts = [given.source_sentence, *checked_texts(given.sentences, param, options)]
    # Whatever is said of a row counts the sentence as the first.
    return Inputs(texts, [], kind_of(told.prompt_name), truncate, param="inputs")


def refuse_query(query: bytes) -> None:
    """Refuse parameters in a path: these routes are told everything by their bodies."""
    name = query.partition(b"&")[0].partition(b"=")[0].decode("latin-1")[:_SHOWN_CHARS]
    if query:
        raise _unknown_error(name, "in the URL; it belongs into the body")


def too_few_tokens(tokens: int, special: int) -> Refusal:
    """Give the refusal for a cut to so few tokens that nothing of a text would be left."""
    return Refusal(
        400,
        f"truncate_prompt_tokens is {tokens}, and the model's special tokens take {special} of"
        f" them: {special + 1} and more leave something of a text; -1 cuts to the model's length.",
        param="truncate_prompt_tokens",
        code="invalid_truncate_prompt_tokens",
    )


def _texts_or_rows(
    given: str | Sequence[object], options: ServeOptions
) -> tuple[list[str], list[list[int]]]:
    if isinstance(given, str):
        return checked_texts([given], "input", options), []
    if given and all(type(item) is int for item in given):
        return [], _token_rows([given], options)
    if given and all(type(item) is list for item in given):
        return [], _token_rows(given, options)
    return checked_texts(given, "input", options), []


def _cuts(truncate: bool | None, direction: str | None, options: ServeOptions) -> bool:
    if direction in ("left", "Left"):
        raise Refusal(
            400,
            "Texts are cut on the right alone; leave `truncation_direction` out, or say Right.",
            param="truncation_direction",
            code="invalid_truncation_direction",
        )
    return options.truncate if truncate is None else truncate


def decoded(decoder: msgspec.json.Decoder[Body], body: bytes) -> Body:
    """Decode a body; Refusal 400 that names what is unknown, of another type, or no JSON."""
    try:
        _refuse_doubles(body, decoder.type)
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        if found := _UNKNOWN_FIELD.fullmatch(str(error)):
            name = ".".join(filter(None, (found[2], found[1])))[:_SHOWN_CHARS]
            fields: Any = decoder.type
            known = ", ".join(fields.__struct_encode_fields__)
            raise _unknown_error(name, "here" if found[2] else f"here; known: {known}") from error
        message, _, place = str(error).partition(" - at `$.")
        param = place.rstrip("`").partition("[")[0] or None
        where = f" ({place.rstrip('`')})" if place else ""
        raise Refusal(400, f"{message}{where}.", param=param, code="invalid_type") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Refusal(400, f"The body is not valid JSON: {error}.", code="invalid_json") from error


def _refuse_doubles(body: bytes, kind: Any) -> None:
    """Refuse a field that stands twice, of which the decoder would keep the last.

    Texts may hold a name as well: only then the body is read once more.
    """
    if any(body.count(name) > 1 for name in _quoted(kind)):
        try:
            json.loads(body, object_pairs_hook=without_doubles)
        except (UnicodeDecodeError, RecursionError, json.JSONDecodeError):
            return  # no JSON, as the decoder says
        except ValueError as error:
            raise Refusal(400, f"The body is not taken: {error}.", code="invalid_json") from error


@cache
def _quoted(kind: Any) -> list[bytes]:
    return [f'"{name}"'.encode() for name in kind.__struct_encode_fields__]


def checked_texts(given: Sequence[object], param: str, options: ServeOptions) -> list[str]:
    """Return the texts, none empty, and not too many; Refusal 400 naming the position."""
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
            raise _empty_error(f"{param}[{position}] is an empty string", param)
        texts.append(item)
    return texts


def _unknown_error(name: str, where: str) -> Refusal:
    return Refusal(
        400, f"There is no parameter `{name}` {where}.", param=name, code="unknown_parameter"
    )


def _token_rows(given: object, options: ServeOptions) -> list[list[int]]:
    assert isinstance(given, list)
    if not options.accept_token_ids:
        raise Refusal(
            400,
            "input holds token ids, which mean something in the vocabulary of one model alone."
            " Clients made for OpenAI send ids of OpenAI's tokenizer, and would get vectors of"
            " other texts. Send texts (LangChain: OpenAIEmbeddings(check_embedding_ctx_length="
            "False)), or start the server with --accept-token-ids where ids are this model's own.",
            param="input",
            code="token_ids_not_accepted",
        )
    _check_count(len(given), "input", options)
    for position, row in enumerate(given):
        if not row:
            raise _empty_error(f"input[{position}] is an empty list of tokens", "input")
        if min(row) < 0 or max(row) > _HIGHEST_TOKEN:
            raise Refusal(
                400,
                f"input[{position}] holds a number that is no token id.",
                param="input",
                code="invalid_token",
            )
    return given


def _check_count(count: int, param: str, options: ServeOptions) -> None:
    if not count:
        raise _empty_error(f"{param} is an empty list", param)
    if count > options.max_inputs:
        raise Refusal(
            400,
            f"{param} has {count:,} items; at most {options.max_inputs:,} are taken a request.",
            param=param,
            code="too_many_inputs",
        )


def _empty_error(what: str, param: str) -> Refusal:
    return Refusal(400, f"{what}; there is nothing to embed.", param=param, code="empty_input")
