"""Keys of rows: the dedup key that a row's text and scope give, and hashes to look rows up by."""

from __future__ import annotations

import binascii
from collections.abc import Iterable
from itertools import repeat
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from xxhash import xxh3_64_intdigest, xxh3_128_digest, xxh3_128_hexdigest

from memworker.errors import UsageError

Hashes = npt.NDArray[np.uint64]
ScopeColumn: TypeAlias = pa.Array | str | None

# Odd, so that multiplying by it is a bijection of 64 bits (the golden ratio, as in splitmix64).
_SPREAD = np.uint64(0x9E3779B97F4A7C15)


def dedup_keys(
    texts: pa.Array,
    user_ids: ScopeColumn = None,
    agent_ids: ScopeColumn = None,
    run_ids: ScopeColumn = None,
) -> pa.Array:
    """Return 32 hex digits a text: xxh3-128 over its scope and itself.

    A scope is an array (null = none) or one string for all rows. The hashed
    bytes are ``LEN:user LEN:agent LEN:run text`` without the blanks, so that
    no two different records run together.
    """
    rows = string_array(texts).cast(pa.binary()).to_pylist()
    scopes = [_constant(scope) for scope in (user_ids, agent_ids, run_ids)]
    if all(isinstance(scope, str) for scope in scopes):
        prefix = _scope_prefix(tuple(str(scope) for scope in scopes))
        keys = [xxh3_128_hexdigest(prefix + text) for text in rows]
    else:
        keys = _keys_of_mixed_scopes(rows, scopes)
    return pa.array(keys, pa.string())


def keys_of_texts(texts: Iterable[str], user_id: str, agent_id: str, run_id: str) -> list[str]:
    """Return what `dedup_keys` does, of texts of one scope."""
    prefix = _scope_prefix((user_id, agent_id, run_id))
    return [xxh3_128_hexdigest(prefix + str.encode(text)) for text in texts]


def hash_rows(
    ids: pa.Array,
    keys: pa.Array,
    seed: int,
    metadata: pa.Array | None = None,
    places: pa.Array | None = None,
) -> tuple[Hashes, Hashes]:
    """Return (uint64[n] of the id, uint64[n] of id, dedup key, metadata and place).

    The two are independent: rows that agree in both have the same id, dedup key and
    metadata but for one chance in 2^128. Equal metadata may be written in two ways, and
    then have two hashes.
    """
    rows = string_array(ids).cast(pa.binary()).to_pylist()
    digests = b"".join(map(xxh3_128_digest, rows, repeat(seed)))
    halves = np.frombuffer(digests, np.uint64).reshape(-1, 2)
    records = halves[:, 1] ^ (_hash_keys(string_array(keys)) * _SPREAD)
    if metadata is not None and metadata.null_count < len(metadata):
        records ^= _hash_metadata(metadata, seed)
    if places is not None and places.null_count < len(places):
        # By another seed, for a place may read as some metadata do.
        records ^= _hash_metadata(places, seed + 1)
    return halves[:, 0].copy(), records


def hash_texts(texts: pa.Array, seed: int) -> Hashes:
    """Return uint64[n], equal where the texts are."""
    rows = string_array(texts).cast(pa.binary()).to_pylist()
    return np.fromiter((xxh3_64_intdigest(row, seed) for row in rows), np.uint64, len(rows))


def string_array(values: pa.Array | pa.ChunkedArray) -> pa.Array:
    """Return one contiguous ``string`` array without nulls."""
    if isinstance(values, pa.ChunkedArray):
        values = values.combine_chunks()
    if values.null_count:
        first = pc.index(pc.is_null(values), True).as_py()
        raise UsageError(f"row {first} has no value where text is needed; leave such rows out")
    return values if values.type == pa.string() else values.cast(pa.string())


def _hash_keys(keys: pa.Array) -> Hashes:
    try:
        digits = keys.cast(pa.binary()).cast(pa.binary(32))
        start = 32 * digits.offset
        raw = binascii.unhexlify(digits.buffers()[1][start : start + 32 * len(digits)])
    except (pa.ArrowInvalid, binascii.Error):
        # Only another program's rows come here: each odd key is replaced by its own hash.
        return _hash_keys(pa.array([_as_hex(key) for key in keys.to_pylist()], pa.string()))
    # xxh3-128 is evenly spread, so half of it is as good a hash as any.
    return np.frombuffer(raw, np.uint64)[::2]


def _hash_metadata(metadata: pa.Array | pa.ChunkedArray, seed: int) -> Hashes:
    written = metadata.cast(pa.string()).cast(pa.binary()).to_pylist()
    # An empty object says as much as none.
    hashes = (xxh3_64_intdigest(text, seed) if text and text != b"{}" else 0 for text in written)
    return np.fromiter(hashes, np.uint64, len(written)) * _SPREAD


def _as_hex(key: str) -> str:
    try:
        if len(binascii.unhexlify(key)) == 16:
            return key
    except ValueError:
        pass
    return xxh3_128_hexdigest(key.encode())


def _constant(scope: ScopeColumn) -> str | list[str]:
    if scope is None:
        return ""
    if isinstance(scope, str):
        return scope
    values: list[str] = scope.fill_null("").to_pylist()
    # One user a file is the usual case, and it saves a lookup a row.
    return values[0] if len(set(values)) == 1 else values


def _keys_of_mixed_scopes(rows: list[bytes], scopes: list[str | list[str]]) -> list[str]:
    columns = [repeat(scope) if isinstance(scope, str) else scope for scope in scopes]
    prefixes: dict[tuple[str, ...], bytes] = {}
    keys = []
    for text, *scope in zip(rows, *columns, strict=False):
        names = tuple(scope)
        prefix = prefixes.get(names)
        if prefix is None:
            prefix = prefixes[names] = _scope_prefix(names)
        keys.append(xxh3_128_hexdigest(prefix + text))
    return keys


def _scope_prefix(names: tuple[str, ...]) -> bytes:
    encoded = [name.encode() for name in names]
    return b"".join(b"%d:%b" % (len(name), name) for name in encoded)
