"""Vectors to the bytes of a reply, without a list of floats where the format is base64."""

from __future__ import annotations

import binascii

import msgspec
import numpy as np

from memworker.pool import Embedded
from memworker.pool.requests import Floats

# Below it a length is that of a zero vector, which stays one.
_TINY = 1e-12


def embeddings_reply(embedded: Embedded, model: str, *, base64: bool, dim: int) -> bytes:
    """Write the reply of `/v1/embeddings`, vectors of `dim` numbers."""
    rows = _vectors(embedded, dim)
    write = _base64 if base64 else _numbers
    data = b",".join(
        b'{"object":"embedding","index":%d,"embedding":%b}' % (index, write(row))
        for index, row in enumerate(rows)
    )
    tokens = int(embedded.tokens.sum())
    return (
        b'{"object":"list","data":[%b],"model":%b,"usage":{"prompt_tokens":%d,"total_tokens":%d}}'
        % (data, msgspec.json.encode(model), tokens, tokens)
    )


def embed_reply(embedded: Embedded, *, normalize: bool) -> bytes:
    """Write the reply of `/embed`: a list of vectors."""
    rows = _normalised(embedded.vectors) if normalize else embedded.vectors
    return b"[%b]" % b",".join(_numbers(row) for row in rows)


def _vectors(embedded: Embedded, dim: int) -> Floats:
    if dim == embedded.vectors.shape[1]:
        return embedded.vectors
    return _normalised(embedded.vectors[:, :dim])


def _normalised(vectors: Floats) -> Floats:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.ascontiguousarray(vectors / np.maximum(lengths, _TINY), np.float32)


def _base64(row: Floats) -> bytes:
    return b'"%b"' % binascii.b2a_base64(row.astype("<f4", copy=False).data, newline=False)


def _numbers(row: Floats) -> bytes:
    return msgspec.json.encode(row.tolist())
