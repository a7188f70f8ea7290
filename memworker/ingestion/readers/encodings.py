"""Bytes of text to UTF-8: which encoding they are in, by their mark or by where their NULs stand.

What is certain is decoded; what is not is refused by name, and never stored with NULs
between its letters.
"""

from __future__ import annotations

import codecs
import unicodedata
from collections.abc import Iterator
from itertools import chain

from memworker.errors import InputError

BOM = b"\xef\xbb\xbf"
_SAMPLE = 16 << 10
# UTF-32 first: its little-endian mark begins with that of UTF-16.
_MARKS = (
    (BOM, "utf-8"),
    (b"\xff\xfe\0\0", "utf-32-le"),
    (b"\0\0\xfe\xff", "utf-32-be"),
    (b"\xff\xfe", "utf-16-le"),
    (b"\xfe\xff", "utf-16-be"),
)
_WIDE = ("utf-32-le", "utf-32-be", "utf-16-le", "utf-16-be")
_SPACES = "\t\n\v\f\r"
# UTF-16 of English is half NULs; of 8-bit text that holds some by accident, a few in a hundred.
_FEW_NULS = 0.2
_ZEROS = 16


class TornStream(Exception):
    """A stream is damaged or ends too early; all before it was delivered."""


def utf8_blocks(path: str, blocks: Iterator[bytes], given: str = "") -> Iterator[bytes]:
    """Yield the blocks in UTF-8, without a mark at their beginning; empty ones stay.

    `given` is the encoding that the user names; a mark that says another goes before it.
    Raises InputError where the bytes are no text of any Unicode encoding, and TornStream
    behind the last good block where they are not what they began as.
    """
    head, rest = begun(blocks, 4)
    encoding, mark = encoding_of(path, head, given)
    whole = chain([head[mark:]] if head[mark:] else [], rest)
    return whole if encoding == "utf-8" else _decoded(encoding, whole)


def begun(blocks: Iterator[bytes], size: int) -> tuple[bytes, Iterator[bytes]]:
    """Take blocks until there are `size` bytes or no more, and give them with what is left.

    An empty block tells of a pipe that is idle: then what is there has to do.
    """
    head = b""
    for block in blocks:
        if len(head) >= size - len(block) or (head and not block):
            head += block
            break
        head += block
    return head, blocks


def interleaved(line: bytes) -> bool:
    """Tell whether a line has NULs between its letters, as a piece of UTF-16 has."""
    return line.count(0) > _FEW_NULS * len(line)


def encoding_of(path: str, head: bytes, given: str) -> tuple[str, int]:
    """Name the encoding, and how many bytes its mark has. Raises InputError."""
    for mark, name in _MARKS:
        if head.startswith(mark):
            return name, len(mark)
    if given:
        # Without a mark these mean this machine's order of bytes, as Python has it.
        return given, 0
    sample = head[:_SAMPLE]
    nuls = sample.count(0)
    if not nuls:
        return "utf-8", 0
    # A file that was cut off by a power loss may end in zeros: they cost their line.
    body = sample.rstrip(b"\0") if sample.endswith(bytes(_ZEROS)) else sample
    if body.count(0) <= _FEW_NULS * len(body) and _of_bytes(body.replace(b"\0", b"")):
        return "utf-8", 0
    for name in _WIDE:
        if _certain(sample, name):
            return name, 0
    raise InputError(
        f"{path} is no text in UTF-8: {nuls:,} of its first {len(sample):,} bytes are NUL. If it is"
        " text, say in which encoding it is, such as --encoding utf-16-le"
    )


def _of_bytes(sample: bytes) -> bool:
    """Tell whether this is text of single bytes or UTF-8, but for a bad one here and there."""
    if not sample:
        return False
    controls = sum(b < 32 and chr(b) not in _SPACES for b in sample)
    if controls > 0.02 * len(sample):
        return False
    try:
        codecs.getincrementaldecoder("utf-8")("strict").decode(sample)
    except UnicodeDecodeError:
        return sum(b < 0x80 for b in sample) > 0.9 * len(sample)
    return True


def _certain(sample: bytes, name: str) -> bool:
    """Tell whether the sample reads as text in `name`: with line ends or spaces, nothing wild."""
    width = 4 if "32" in name else 2
    whole = sample[: len(sample) // width * width]
    try:
        text = codecs.getincrementaldecoder(name)("strict").decode(whole)
    except UnicodeDecodeError:
        return False
    if not text or not any(c.isascii() for c in text):
        return False
    if any(unicodedata.category(c) in ("Cn", "Co", "Cs") for c in text):
        return False
    if any(ord(c) < 32 and c not in _SPACES for c in text):
        return False
    # Half of the bytes of Latin letters are NUL; where few are, the NULs must be line ends
    # and spaces among letters of other scripts, and not of the mirrored encoding.
    latin = sum(ord(c) < 0x250 for c in text) / len(text)
    swapped = f"{name[:-2]}{'be' if name.endswith('le') else 'le'}"
    mirrored = whole.decode(swapped, errors="ignore")
    return latin > 0.5 or (latin > 0 and sum(ord(c) < 0x250 for c in mirrored) < latin * len(text))


def _decoded(encoding: str, blocks: Iterator[bytes]) -> Iterator[bytes]:
    # Half pairs, and bytes that stand for nothing, are let through: they cost their line.
    errors = "surrogatepass" if encoding.startswith(("utf-16", "utf-32")) else "surrogateescape"
    decoder = codecs.getincrementaldecoder(encoding)(errors)
    done = 0
    try:
        for block in blocks:
            yield decoder.decode(block).encode("utf-8", errors)
            done += len(block)
        yield decoder.decode(b"", final=True).encode("utf-8", errors)
    except UnicodeDecodeError as error:
        raise TornStream(
            f"the text is not valid {encoding.upper()} near byte {done + error.start:,}:"
            f" {error.reason}"
        ) from error
