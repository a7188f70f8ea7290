"""JSON, one object a line, decoded line by line so that a bad line costs that line alone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np

from memworker.errors import InputError
from memworker.ingest.readers.checked import CheckedRows, ReadOptions
from memworker.ingest.readers.objects import ObjectRows, checked_objects, type_name
from memworker.ingest.readers.paths import Source
from memworker.ingest.readers.streams import LineBlock, TornStream, byte_blocks, line_blocks
from memworker.ingest.records import EXCERPT_CHARS

_ARRAY_BYTES = 256 << 20
_DECODE = msgspec.json.Decoder(dict[str, Any]).decode
_ERRORS = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


def read_rows(source: Source, options: ReadOptions) -> Iterator[CheckedRows]:
    """Yield the rows of a file with one JSON object a line."""
    for block in line_blocks(source, options.batch_rows, options.max_line_bytes):
        yield from _checked(source.path, block, options)


def read_lines_or_array(source: Source, options: ReadOptions) -> Iterator[CheckedRows]:
    """Yield the rows of a .json file: one object a line, or one array of objects in all."""
    if not _is_array(source):
        yield from read_rows(source, options)
        return
    items = _array_items(source)
    for at in range(0, len(items), options.batch_rows):
        block = LineBlock(at + 1, items[at : at + options.batch_rows])
        yield from _checked(source.path, block, options)


def _checked(path: str, block: LineBlock, options: ReadOptions) -> Iterator[CheckedRows]:
    faults = stream_faults(block, options)
    # A blank line is no row, unless it is where the stream broke.
    kept = [i for i, line in enumerate(block.lines) if line and not line.isspace() or i in faults]
    if not kept:
        return
    lines = np.asarray(kept, dtype=np.int64) + block.first
    raw = block.lines if len(kept) == len(block.lines) else [block.lines[i] for i in kept]
    faults = {row: faults[i] for row, i in enumerate(kept) if i in faults} if faults else faults
    objects = _decoded(raw, faults)
    rows = ObjectRows(lines, objects, lambda i: excerpt(raw[i]), faults)
    yield checked_objects(path, rows, options)


def stream_faults(block: LineBlock, options: ReadOptions) -> dict[int, str]:
    cap = options.max_line_bytes
    faults = {i: f"line over the cap of {cap:,} bytes (max_line_bytes)" for i in block.too_long}
    if block.torn:
        faults[len(block.lines) - 1] = f"{block.torn}; nothing can be read after this line"
    return faults


def _decoded(raw: list[bytes], faults: dict[int, str]) -> list[Any]:
    if not faults:
        try:
            return [_DECODE(line) for line in raw]
        except _ERRORS:
            pass  # once more, line by line
    return [{} if i in faults else _decode_one(line, i, faults) for i, line in enumerate(raw)]


def _decode_one(line: bytes, i: int, faults: dict[int, str]) -> dict[str, Any]:
    try:
        return _DECODE(line)
    except UnicodeDecodeError:
        faults[i] = "invalid UTF-8"
    except _ERRORS as error:
        faults[i] = _reason(line, error)
    return {}


def _reason(line: bytes, error: Exception) -> str:
    """Say more than the fast decoder does, with the slow one: it is asked for bad lines only."""
    try:
        value = json.loads(line)
    except RecursionError:
        return "malformed JSON: nested too deeply"
    except ValueError:
        return "invalid UTF-8" if not _is_utf8(line) else f"malformed JSON: {error}"
    if not isinstance(value, dict):
        return f"not a JSON object but {type_name(value)}"
    if b"\\u" in line:
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            return r"a lone surrogate (half of a pair such as \ud83d\ude00), which is no character"
    return f"malformed JSON: {error}"


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError:
        return False
    return True


def excerpt(line: bytes) -> str:
    """Return the beginning of a line, readable whatever its bytes."""
    return line[: 4 * EXCERPT_CHARS].decode(errors="replace")[:EXCERPT_CHARS]


def _is_array(source: Source) -> bool:
    if source.path == "-":
        return False  # it cannot be read twice
    try:
        for block in byte_blocks(source):
            if text := block.removeprefix(b"\xef\xbb\xbf").lstrip():
                return text.startswith(b"[")
    except TornStream:
        pass
    return False


def _array_items(source: Source) -> list[bytes]:
    gathered = bytearray()
    try:
        for block in byte_blocks(source):
            gathered += block
            if len(gathered) > _ARRAY_BYTES:
                raise InputError(
                    f"{source.path} is one JSON array of over {_ARRAY_BYTES >> 20} MiB; "
                    "make it one object a line: jq -c '.[]'"
                )
        items = msgspec.json.decode(gathered.removeprefix(b"\xef\xbb\xbf"), type=list[msgspec.Raw])
    except (*_ERRORS, TornStream) as error:
        raise InputError(f"{source.path} is no readable JSON array: {error}") from error
    return [bytes(item) for item in items]
