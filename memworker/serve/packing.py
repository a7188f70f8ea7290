"""Packed bodies: requests that come so, and replies to clients that take them so."""

from __future__ import annotations

import asyncio
import re
import zlib
from collections.abc import Callable, Iterable
from io import BytesIO

import zstandard

from memworker.serve.refusals import Headers, Refusal

# Beneath it a reply is a packet or two either way.
_LEAST_BYTES = 1400
# Beyond it packing would hold up the event loop.
_BYTES_ON_THE_LOOP = 32 << 10
# The fastest: numbers hardly get any shorter with more effort.
_LEVEL = 1
_GZIP, _DEFLATE = 16 + zlib.MAX_WBITS, zlib.MAX_WBITS
_TAKES_GZIP = re.compile(rb"(?:^|,)\s*(?:gzip|\*)\s*(?:;\s*q\s*=\s*([0-9.]+)\s*)?(?:,|$)", re.I)
_ZSTD_WINDOW_BYTES = 8 << 20

Unpacker = Callable[[bytes, int], bytes]


def unpacker(encoding: bytes) -> Unpacker:
    """Give what unpacks a body, to one byte over a bound at most; Refusal 415 for another way.

    What it unpacks stops at the bound, however much a body says that it holds.
    """
    found = _UNPACKERS.get(encoding.strip().lower())
    if found is None:
        raise Refusal(
            415,
            "Bodies are taken as they are, or packed by gzip, deflate or zstd.",
            code="unsupported_encoding",
            headers=[(b"accept-encoding", b"gzip, deflate, zstd")],
        )
    return found


def _as_it_is(body: bytes, most: int) -> bytes:
    return body


def _inflated(body: bytes, most: int, bits: int) -> bytes:
    whole = bytearray()
    # A gzip file may be several, one behind the other.
    while body and len(whole) <= most:
        inflating = zlib.decompressobj(bits)
        try:
            whole += inflating.decompress(body, most + 1 - len(whole))
        except zlib.error as error:
            raise _damaged_error() from error
        if not inflating.eof and len(whole) <= most:
            raise _damaged_error()
        body = inflating.unused_data
    return bytes(whole)


def _zstd(body: bytes, most: int) -> bytes:
    try:
        reader = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW_BYTES).stream_reader(
            BytesIO(body), read_across_frames=True
        )
        return reader.read(most + 1)
    except zstandard.ZstdError as error:
        raise _damaged_error() from error


_UNPACKERS: dict[bytes, Unpacker] = {
    b"": _as_it_is,
    b"identity": _as_it_is,
    b"gzip": lambda body, most: _inflated(body, most, _GZIP),
    b"x-gzip": lambda body, most: _inflated(body, most, _GZIP),
    b"deflate": lambda body, most: _inflated(body, most, _DEFLATE),
    b"zstd": _zstd,
}


async def packed(body: bytes, headers: Iterable[tuple[bytes, bytes]]) -> tuple[bytes, Headers]:
    """Pack a reply for a client whose headers ask for that, and give the headers that say so."""
    if len(body) < _LEAST_BYTES:
        return body, []
    vary = (b"vary", b"accept-encoding")
    asked = b",".join(value for name, value in headers if name == b"accept-encoding")
    if not _takes_gzip(asked):
        return body, [vary]
    if len(body) <= _BYTES_ON_THE_LOOP:
        made = _deflated(body)
    else:
        made = await asyncio.to_thread(_deflated, body)
    return made, [vary, (b"content-encoding", b"gzip")]


def _takes_gzip(asked: bytes) -> bool:
    found = _TAKES_GZIP.search(asked)
    return found is not None and (found[1] is None or found[1].strip(b"0.") != b"")


def _deflated(body: bytes) -> bytes:
    return zlib.compress(body, _LEVEL, _GZIP)


def _damaged_error() -> Refusal:
    return Refusal(400, "The packed body is damaged or ends early.", code="invalid_encoding")
