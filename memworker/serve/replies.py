"""Vectors to the bytes of a reply, without a list of floats where the format is base64."""

from __future__ import annotations

import asyncio
import binascii
from collections.abc import Callable

import msgspec
import numpy as np
import orjson

from memworker.pool import Embedded, Floats

# Below it a length is that of a zero vector, which stays one.
_TINY = 1e-12
_ROWS_AT_ONCE = 64


async def embeddings_reply(embedded: Embedded, model: str, *, base64: bool, dim: int) -> bytes:
    """Write the reply of `/v1/embeddings`, vectors of `dim` numbers."""
    written = await written_rows(vectors_of(embedded, dim), _base64 if base64 else numbers)
    data = b",".join(
        b'{"object":"embedding","index":%d,"embedding":%b}' % (index, vector)
        for index, vector in enumerate(written)
    )
    tokens = sum(embedded.tokens.tolist())
    return (
        b'{"object":"list","data":[%b],"model":%b,"usage":{"prompt_tokens":%d,"total_tokens":%d}}'
        % (data, msgspec.json.encode(model), tokens, tokens)
    )


async def embed_reply(embedded: Embedded, *, normalize: bool, dim: int) -> bytes:
    """Write the reply of `/embed`: a list of vectors of `dim` numbers."""
    rows = vectors_of(embedded, dim)
    if normalize:
        rows = normalised(rows)
    return b"[%b]" % b",".join(await written_rows(rows, numbers))


def similarity_reply(embedded: Embedded) -> bytes:
    """Write the reply of `/similarity`: the cosine of the first row to each of the others."""
    rows = normalised(embedded.vectors)
    return numbers(np.ascontiguousarray(rows[1:] @ rows[0]))


async def written_rows(vectors: Floats, write: Callable[[Floats], bytes]) -> list[bytes]:
    """Write each row, letting others have the loop in between: many numbers take long."""
    written = [write(row) for row in vectors[:_ROWS_AT_ONCE]]
    for start in range(_ROWS_AT_ONCE, len(vectors), _ROWS_AT_ONCE):
        await asyncio.sleep(0)
        written += [write(row) for row in vectors[start : start + _ROWS_AT_ONCE]]
    return written


def vectors_of(embedded: Embedded, dim: int) -> Floats:
    """Return the vectors, or of each the first `dim` numbers at length one; float32[n, dim]."""
    if dim == embedded.vectors.shape[1]:
        return embedded.vectors
    return normalised(embedded.vectors[:, :dim])


def normalised(vectors: Floats) -> Floats:
    """Return each vector at length one; float32[n, dim]. A zero vector stays one."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.ascontiguousarray(vectors / np.maximum(lengths, _TINY), np.float32)


def _base64(row: Floats) -> bytes:
    return b'"%b"' % binascii.b2a_base64(row.astype("<f4", copy=False).data, newline=False)


def numbers(row: Floats) -> bytes:
    """Write numbers as short as they can be and still be the same float32."""
    return orjson.dumps(row, option=orjson.OPT_SERIALIZE_NUMPY)
