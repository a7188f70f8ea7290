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


class EmbeddingsRequest(msgspec.Struct, frozen=True):
    """What `POST /v1/embeddings` takes; unknown fields are ignored.

    `input_type` is an addition: models that tell queries from passages need it.
    """

    model: str
    input: Annotated[str | _Rows, Meta(extra_json_schema=_INPUT_SCHEMA)]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Meta(ge=1)] | None = None
    user: str | None = None
    input_type: TextKind | None = None


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
    """What every route but `/embed` answers when it refuses."""

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


class EmbedRequest(msgspec.Struct, frozen=True):
    """What `POST /embed` takes, as text-embeddings-inference has it.

    `truncate` left out means what the server was started with; `prompt_name`
    "query" embeds as a query. Vectors come as the model gives them: `normalize`
    false is refused where that is normalised.
    """

    inputs: str | list[str]
    truncate: bool | None = None
    normalize: bool = True
    prompt_name: TextKind | None = None


class EmbedErrorReply(msgspec.Struct, frozen=True):
    """What `/embed` answers when it refuses."""

    error: str
    error_type: str
