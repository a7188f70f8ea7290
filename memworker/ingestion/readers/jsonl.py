"""JSON: one object a line, so that a bad line costs that line alone; or arrays, or objects at will.

What stands in the text is told by its first value, and not by the suffix.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Set as AbstractSet
from typing import Any

import msgspec
import numpy as np

from memworker.ingestion.readers.checked import ReadOptions
from memworker.ingestion.readers.encodings import interleaved
from memworker.ingestion.readers.lines import LineBlock, lines_of
from memworker.ingestion.readers.objects import ObjectRows, type_name
from memworker.ingestion.readers.paths import Source
from memworker.ingestion.readers.shapes import Shape, Value, over_the_cap, shape_of, values_of
from memworker.ingestion.readers.streams import text_blocks
from memworker.ingestion.records import EXCERPT_CHARS
from memworker.json_lines import without_doubles

_DECODE = msgspec.json.Decoder(dict[str, Any]).decode
_LIST_OF_TEXTS = "; of a list of texts make objects: jq -c '.[] | {text: .}'"
# Said once a file, where not even the first line looks like JSON.
_NOT_JSON = "; it is read as JSON, and if it is something else, say so: --format csv, tsv or txt"
_ERRORS = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


def read_rows(source: Source, options: ReadOptions) -> Iterator[ObjectRows]:
    """Yield the rows of a text of JSON objects; raises InputError where it is no text."""
    cap = options.max_line_bytes
    shape, blocks = shape_of(text_blocks(source), cap)
    if shape is Shape.VALUES:
        yield from _values(blocks, options)
        return
    for block in lines_of(blocks, options.batch_rows, cap):
        yield from _lines(block, options)


def _values(blocks: Iterator[bytes], options: ReadOptions) -> Iterator[ObjectRows]:
    gathered: list[Value] = []
    for values in values_of(blocks, options.max_line_bytes):
        gathered += values
        # An idle pipe gives no values: what there is goes on.
        while len(gathered) >= options.batch_rows or (gathered and not values):
            yield _of_values(gathered[: options.batch_rows])
            gathered = gathered[options.batch_rows :]
    if gathered:
        yield _of_values(gathered)


def _of_values(values: list[Value]) -> ObjectRows:
    faults = {i: value.fault for i, value in enumerate(values) if value.fault}
    raw = [value.raw for value in values]
    objects = _decoded(raw, faults)
    if values[0].number == 1 and raw[0][:1] == b'"' and 0 in faults:
        faults[0] += _LIST_OF_TEXTS
    lines = np.array([value.number for value in values], dtype=np.int64)
    return ObjectRows(lines, objects, lambda i: excerpt(raw[i]), faults)


def _lines(block: LineBlock, options: ReadOptions) -> Iterator[ObjectRows]:
    faults = stream_faults(block, options)
    # A blank line is no row, unless it is where the stream broke.
    kept = [i for i, line in enumerate(block.lines) if line and not line.isspace() or i in faults]
    if not kept:
        return
    lines = np.asarray(kept, dtype=np.int64) + block.first
    raw = block.lines if len(kept) == len(block.lines) else [block.lines[i] for i in kept]
    faults = {row: faults[i] for row, i in enumerate(kept) if i in faults} if faults else faults
    known = frozenset(faults)
    objects = _decoded(raw, faults)
    if block.first == 1 and 0 in faults.keys() - known and faults[0].startswith("malformed"):
        faults[0] += _NOT_JSON * (raw[0].lstrip()[:1] not in b"{[")
    if len(faults) > len(known):
        several = _several_of(raw, faults.keys() - known, options)
        lines, raw, objects, faults = _parted(lines, raw, objects, faults, several)
    yield ObjectRows(lines, objects, lambda i: excerpt(raw[i]), faults)


def _several_of(
    raw: list[bytes], bad: AbstractSet[int], options: ReadOptions
) -> dict[int, list[bytes]]:
    """Find lines that hold several objects, as where files were joined without a line's end."""
    found = {i: _several(raw[i], options) for i in bad if b"}" in raw[i]}
    return {i: objects for i, objects in found.items() if objects}


def _parted(
    lines: Any,
    raw: list[bytes],
    objects: list[Any],
    faults: dict[int, str],
    several: dict[int, list[bytes]],
) -> tuple[Any, list[bytes], list[Any], dict[int, str]]:
    """Make one row of each object of a line."""
    if not several:
        return lines, raw, objects, faults
    counts = np.array([len(several.get(i, " ")) for i in range(len(raw))])
    starts = np.cumsum(counts) - counts
    raw = [each for i, line in enumerate(raw) for each in several.get(i, [line])]
    moved = {int(starts[i]): reason for i, reason in faults.items() if i not in several}
    return np.repeat(lines, counts), raw, _decoded(raw, moved), moved


def _several(line: bytes, options: ReadOptions) -> list[bytes]:
    """Give the objects of a line, if it holds nothing but objects."""
    values = [v for got in values_of(iter([line]), options.max_line_bytes) for v in got]
    try:
        for value in values:
            if value.fault:
                return []
            _DECODE(value.raw)
    except _ERRORS:
        return []
    return [value.raw for value in values]


def stream_faults(block: LineBlock, options: ReadOptions) -> dict[int, str]:
    """Tell what is wrong with lines before anything is made of them."""
    cap = options.max_line_bytes
    faults = {i: over_the_cap("line", cap) for i in block.too_long}
    for i in block.with_nuls:
        if interleaved(block.lines[i]):
            faults[i] = "NUL bytes between its letters: a piece of UTF-16, or no text"
    if block.torn:
        faults[len(block.lines) - 1] = f"{block.torn}; nothing can be read after this line"
    return faults


def _decoded(raw: list[bytes], faults: dict[int, str]) -> list[Any]:
    if not faults:
        try:
            return [_decoded_whole(line) for line in raw]
        except _ERRORS:
            pass  # once more, line by line
    return [{} if i in faults else _decode_one(line, i, faults) for i, line in enumerate(raw)]


def _decoded_whole(line: bytes) -> dict[str, Any]:
    """Decode an object; raises _Doubled where it has two fields of one name."""
    found = _DECODE(line)
    # As many as there are fields, but for texts that look like one, and doubles.
    if line.count(b'":') + line.count(b'" :') > _fields(found):
        try:
            json.loads(line, object_pairs_hook=without_doubles)
        except (ValueError, RecursionError) as error:
            raise _Doubled(str(error)) from None
    return found


def _fields(value: Any) -> int:
    inner = value.values() if type(value) is dict else value
    count = len(value) if type(value) is dict else 0
    for each in inner:
        if type(each) is dict or type(each) is list:
            count += _fields(each)
    return count


class _Doubled(msgspec.MsgspecError):
    """An object has two fields of one name, of which the decoder keeps the last."""


def _decode_one(line: bytes, i: int, faults: dict[int, str]) -> dict[str, Any]:
    try:
        return _decoded_whole(line)
    except _Doubled as error:
        faults[i] = str(error)
    except UnicodeDecodeError:
        faults[i] = "invalid UTF-8"
    except _ERRORS as error:
        if b"NaN" in line or b"Infinity" in line:
            return _with_constants(line, i, faults)
        faults[i] = _reason(line, error)
    return {}


def _with_constants(line: bytes, i: int, faults: dict[int, str]) -> dict[str, Any]:
    """Decode an object with NaN or Infinity, which Python and others write, and JSON has not."""
    try:
        found = json.loads(line.decode(), object_pairs_hook=without_doubles)
        if isinstance(found, dict):
            return found
        faults[i] = f"not a JSON object but {type_name(found)}"
    except (ValueError, RecursionError) as error:
        faults[i] = _reason(line, error)
    return {}


def _reason(line: bytes, error: Exception) -> str:
    """Return the slow decoder's reason, which says more; used for bad lines only."""
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
