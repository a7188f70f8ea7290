"""The records that cross a pipe, encoded as MessagePack and checked on arrival.

Nothing that comes from a worker is unpickled, and texts and vectors never
cross a pipe: these are headers of a few dozen bytes. What a record alone can
show to be nonsense, such as a negative count, does not pass the decoder.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

REASON_CHARS = 300
HEAD_BYTES = 4
ERROR_CHARS = 4000

# Far more than the tokens that any slot holds, and few enough to add up for ever.
Count = Annotated[int, msgspec.Meta(ge=0, le=1 << 40)]
Seconds = Annotated[float, msgspec.Meta(ge=0.0, le=1e9)]
RowNumber = Annotated[int, msgspec.Meta(ge=0, lt=1 << 31)]
Reason = Annotated[str, msgspec.Meta(max_length=REASON_CHARS)]


class Encode(msgspec.Struct, frozen=True, tag="encode", array_like=True):
    """Parent to worker: the shard in this slot is filled, encode it."""

    shard: int
    slot: int
    generation: int
    rows: int
    form: int = 0


class Shutdown(msgspec.Struct, frozen=True, tag="stop", array_like=True):
    """Parent to worker: finish nothing more, leave."""


class FromWorker(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What a worker sends; it may not be longer than what is known of it."""


class Ready(FromWorker, frozen=True, tag="ready", array_like=True):
    """Worker to parent: the session is open."""

    dim: int


class BootFailed(FromWorker, frozen=True, tag="boot_failed", array_like=True):
    """Worker to parent: the session could not be opened; the last word of this worker."""

    error: Annotated[str, msgspec.Meta(max_length=ERROR_CHARS)]


class Done(FromWorker, frozen=True, tag="done", array_like=True):
    """Worker to parent: every row of the shard is written, or marked failed with its reason."""

    shard: int
    slot: int
    generation: int
    real_tokens: Count
    padded_tokens: Count
    tokenize_s: Seconds
    encode_s: Seconds
    reasons: dict[RowNumber, Reason] = {}


ToWorker = Encode | Shutdown
ToParent = Ready | BootFailed | Done

encode = msgspec.msgpack.Encoder().encode
decode_for_worker = msgspec.msgpack.Decoder(ToWorker).decode
decode_for_parent = msgspec.msgpack.Decoder(ToParent).decode


def framed(message: ToWorker | ToParent) -> bytes:
    """Give a message as it goes through a pipe: behind its length, as multiprocess has it."""
    data = encode(message)
    return len(data).to_bytes(HEAD_BYTES, "big") + data
