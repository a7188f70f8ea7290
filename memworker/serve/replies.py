"""Vectors to the bytes of a reply, without a list of floats where the format is base64."""

from __future__ import annotations

import binascii
import math

import msgspec
import numpy as np

from memworker.pool import Embedded
from memworker.serve.refusals import Refusal


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


def embed_reply(embedded: Embedded) -> bytes:
    """Write the reply of `/embed`: a list of vectors."""
    return b"[%b]" % b",".join(_numbers(row) for row in embedded.vectors)


def refuse_failures(embedded: Embedded, param: str) -> None:
    """Refuse the request for its first text that could not be embedded, naming it."""
    if embedded.failures:
        row = min(embedded.failures)
        raise Refusal(
            500,
            f"{param}[{row}] could not be embedded: {embedded.failures[row]}",
            param=param,
            code="text_failed",
        )


def refuse_truncated(embedded: Embedded, most: int, param: str) -> None:
    """Refuse the request for its first text that the model saw in part only."""
    cut = np.flatnonzero(embedded.truncated)
    if len(cut):
        raise Refusal(
            400,
            f"This model's maximum context length is {most} tokens, and {param}[{cut[0]}] has"
            " more. Shorten it, or start the server with --truncate.",
            param=param,
            code="context_length_exceeded",
        )


def _vectors(embedded: Embedded, dim: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    vectors = embedded.vectors
    if dim == vectors.shape[1]:
        return vectors
    shorter = vectors[:, :dim]
    lengths = np.linalg.norm(shorter, axis=1, keepdims=True)
    return np.ascontiguousarray(shorter / np.maximum(lengths, math.ulp(1.0)), np.float32)


def _base64(row: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> bytes:
    return b'"%b"' % binascii.b2a_base64(row.astype("<f4", copy=False).data, newline=False)


def _numbers(row: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> bytes:
    return msgspec.json.encode(row.tolist())
