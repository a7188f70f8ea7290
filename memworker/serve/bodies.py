"""The JSON bodies of both interfaces, as types: decoded by them, and described by them."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from memworker.pool import TextKind

# One array type a union is what the decoder takes; `inputs` refuses what is mixed, and the
# document says so beside the type.
_Rows = list[str | int | list[int]]
_INPUT_SCHEMA = {
    "oneOf": [
        {"type": "string", "minLength": 1},
        {"type": "array", "minItems": 1, "items": {"type": "string", "minLength": 1}},
        {"type": "array", "minItems": 1, "items": {"type": "integer", "minimum": 0}},
        {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "array",
                "minItems": 1,
                "items": {"type": "integer", "minimum": 0},
            },
        },
    ]
}


# What other servers' clients call what a text is for.
InputType = Literal["query", "search_query", "passage", "document", "search_document"]
_KINDS: dict[InputType | None, TextKind] = {"query": "query", "search_query": "query"}


def kind_of(given: InputType | None) -> TextKind:
    """Give what a text is embedded as; a passage where nothing is said."""
    return _KINDS.get(given, "passage")


class RequestBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a route takes: a field that it does not know is refused by name."""


class EmbeddingsRequest(RequestBody, frozen=True):
    """What `POST /v1/embeddings` takes.

    `input_type` and `truncate_prompt_tokens` (cut to so many; -1: to the model's length) are
    additions, which other servers have too: models that tell queries from passages need the first.
    """

    model: str
    input: Annotated[str | _Rows, Meta(extra_json_schema=_INPUT_SCHEMA)]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Meta(ge=1)] | None = None
    user: str | None = None
    input_type: InputType | None = None
    truncate_prompt_tokens: Annotated[int, Meta(ge=-1)] | None = None


class Embedding(msgspec.Struct, frozen=True):
    """One input's vector: numbers, or base64 of little-endian float32."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class Usage(msgspec.Struct, frozen=True):
    """Tokens that the model saw, special ones included."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingsReply(msgspec.Struct, frozen=True):
    """What `POST /v1/embeddings` answers."""

    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: Usage


class ErrorFacts(msgspec.Struct, frozen=True):
    """OpenAI's error: `param` names the field at fault, `code` is for programs."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorReply(msgspec.Struct, frozen=True):
    """What a route of OpenAI's answers when it refuses."""

    error: ErrorFacts


class Model(msgspec.Struct, frozen=True):
    """A name that the model is served under; `created` is seconds since 1970."""

    id: str
    object: Literal["model"] = "model"
    created: int = 0
    owned_by: str = "memworker"


class ModelList(msgspec.Struct, frozen=True):
    """What `GET /v1/models` answers."""

    data: list[Model]
    object: Literal["list"] = "list"


Direction = Literal["right", "Right", "left", "Left"]


class EmbedRequest(RequestBody, frozen=True):
    """What `POST /embed` and `POST /` take, as text-embeddings-inference has it.

    `truncate` left out means what the server was started with; texts are cut on the right
    alone. `prompt_name` "query" embeds as a query. `normalize` false leaves vectors as the
    model gives them, which for most are normalised already.
    """

    inputs: str | list[str]
    truncate: bool | None = None
    truncation_direction: Direction | None = None
    normalize: bool | None = None
    prompt_name: InputType | None = None
    dimensions: Annotated[int, Meta(ge=1)] | None = None


class SimilarityInputs(RequestBody, frozen=True):
    """A sentence, and those that it is compared with."""

    source_sentence: str
    sentences: list[str]


class InputsShape(msgspec.Struct, frozen=True):
    """A body of which only the kind of its `inputs` is asked for."""

    inputs: msgspec.Raw = msgspec.Raw(b"")


class SimilarityParameters(RequestBody, frozen=True):
    """How the texts of `POST /similarity` are embedded."""

    truncate: bool | None = None
    truncation_direction: Direction | None = None
    prompt_name: InputType | None = None


class SimilarityRequest(RequestBody, frozen=True):
    """What `POST /similarity` takes, as text-embeddings-inference has it."""

    inputs: SimilarityInputs
    parameters: SimilarityParameters | None = None


class TokenizeRequest(RequestBody, frozen=True):
    """What `POST /tokenize` takes, as text-embeddings-inference has it."""

    inputs: str | list[str]
    add_special_tokens: bool = True
    prompt_name: InputType | None = None


class Token(msgspec.Struct, frozen=True):
    """A token of a text; `start` and `stop` are characters, and null for special tokens."""

    id: int
    text: str
    special: bool
    start: int | None
    stop: int | None


class ModelInfo(msgspec.Struct, frozen=True):
    """What `GET /info` answers, as text-embeddings-inference does."""

    model_id: str
    model_sha: str | None
    model_dtype: str
    model_type: dict[str, dict[str, str]]
    max_concurrent_requests: int
    max_input_length: int
    max_batch_tokens: int
    max_batch_requests: int | None
    max_client_batch_size: int
    auto_truncate: bool
    tokenization_workers: int
    version: str
    sha: str | None
    docker_label: str | None


class EmbedErrorReply(msgspec.Struct, frozen=True):
    """What a route of text-embeddings-inference's answers when it refuses."""

    error: str
    error_type: str
