"""The records that cross a pipe, encoded as MessagePack and checked on arrival.

Nothing that comes from a worker is unpickled, and texts and vectors never
cross a pipe: these are headers of a few dozen bytes.
"""

from __future__ import annotations

import msgspec


class Encode(msgspec.Struct, frozen=True, tag="encode", array_like=True):
    """Parent to worker: the shard in this slot is filled, encode it."""

    shard: int
    slot: int
    generation: int
    form: int = 0


class Stop(msgspec.Struct, frozen=True, tag="stop", array_like=True):
    """Parent to worker: finish nothing more, leave."""


class Ready(msgspec.Struct, frozen=True, tag="ready", array_like=True):
    """Worker to parent: the session is open."""

    dim: int


class BootFailed(msgspec.Struct, frozen=True, tag="boot_failed", array_like=True):
    """Worker to parent: the session could not be opened; the last word of this worker."""

    error: str


class Done(msgspec.Struct, frozen=True, tag="done", array_like=True):
    """Worker to parent: every row of the shard is written, or marked failed with its reason."""

    shard: int
    slot: int
    generation: int
    real_tokens: int
    padded_tokens: int
    tokenize_s: float
    encode_s: float
    reasons: dict[int, str] = {}


ToWorker = Encode | Stop
ToParent = Ready | BootFailed | Done

encode = msgspec.msgpack.Encoder().encode
decode_for_worker = msgspec.msgpack.Decoder(ToWorker).decode
decode_for_parent = msgspec.msgpack.Decoder(ToParent).decode
