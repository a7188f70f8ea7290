"""JSON that is not one object a line: arrays, objects over several lines or one behind the other.

::

    blocks of text ─► shape_of: one object a line? ─► lines, each decoded by itself
                                       └─ else ────► values_of: cut where brackets close
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from itertools import chain

from memworker.ingestion.readers.encodings import BOM, TornStream

# A string, which holds no brackets that count, or a bracket. One that is cut off has no end.
_TOKEN = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*("?)|[{}\[\]]', re.S)
# Between values may stand commas, white space, marks, and the record separator of RFC 7464.
_BETWEEN = b", \t\r\n\x1e" + BOM
_SPACE = b" \t\r\n\x1e" + BOM
_RESUME = b"\n{"
_QUOTE, _BRACKET = 0x22, 0x5B


class Shape(Enum):
    """How the values of a text stand in it."""

    LINES = "one a line"
    VALUES = "arrays, or objects one behind the other"


@dataclass(frozen=True, slots=True)
class Value:
    """A value as it stands, its number, and what is wrong with it, or ""."""

    number: int
    raw: bytes
    fault: str = ""


def over_the_cap(what: str, cap: int) -> str:
    """Say that a piece of the input is not even held, and what allows it."""
    return (
        f"{what} over the cap of {cap:,} bytes, which grows with --max-text-bytes (max_text_bytes=)"
    )


def shape_of(blocks: Iterator[bytes], cap: int) -> tuple[Shape, Iterator[bytes]]:
    """Tell how values stand in a text, by its first one; give the blocks anew.

    No more than `cap` bytes are looked at, and no longer than a pipe goes on to write.
    """
    head = b""
    torn: list[TornStream] = []
    try:
        for block in blocks:
            head += block
            enough = len(head) > cap or (head and not block)
            if (shape := _seen(head, ended=bool(enough))) is not None or enough:
                return shape or Shape.LINES, chain([head], blocks)
    except TornStream as error:
        torn.append(error)
    return _seen(head, ended=True) or Shape.LINES, _then(head, torn)


def _then(head: bytes, torn: list[TornStream]) -> Iterator[bytes]:
    if head:
        yield head
    for error in torn:
        raise error


def _seen(head: bytes, *, ended: bool = False) -> Shape | None:
    """Judge by what there is; None where more of it is needed."""
    text = head.lstrip(_SPACE)
    if not text:
        return None
    line, newline, rest = text.partition(b"\n")
    if text[:1] == b"[":
        return _seen_array(line, newline, rest, ended)
    if text[:1] != b"{":
        return Shape.LINES
    end = _end_of_first(text)
    if end is None:
        return None  # the line may be torn, or be one of several
    if end > len(line):
        return Shape.VALUES if _is_object(text[:end]) else Shape.LINES
    behind = line[end:].strip(_BETWEEN)
    if behind[:1] == b"{" and _is_object(text[:end]):
        return Shape.VALUES
    return Shape.LINES


def _seen_array(line: bytes, newline: bytes, rest: bytes, ended: bool) -> Shape | None:
    if not newline and not ended:
        # An array of any size may stand in one line; a line of its own that is whole is short.
        return Shape.VALUES if _end_of_first(line) is None else None
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return Shape.VALUES
    whole = not rest.strip(_SPACE)
    return Shape.VALUES if whole or all(isinstance(v, dict) for v in value) else Shape.LINES


def _end_of_first(text: bytes) -> int | None:
    """Find where the first value ends; None where it does not."""
    depth = 0
    for match in _TOKEN.finditer(text):
        token = text[match.start()]
        if token in b"{[":
            depth += 1
        elif token in b"}]":
            depth -= 1
            if depth <= 0:
                return match.end()
    return None


def _is_object(raw: bytes) -> bool:
    try:
        return isinstance(json.loads(raw), dict)
    except (ValueError, RecursionError):
        return False


def values_of(blocks: Iterator[bytes], cap: int) -> Iterator[list[Value]]:
    """Yield the values of a text as they come; an empty list where a pipe has been idle.

    Elements of an array are numbered from 1, other values by the line that they begin in.
    A value that does not end costs what stands before the next line that begins with "{".
    """
    cutter = _ValueCutter(cap)
    try:
        for block in blocks:
            yield cutter.cut(block) if block else []
        yield cutter.rest("")
    except TornStream as error:
        yield cutter.rest(str(error))


@dataclass(slots=True)
class _ValueCutter:
    """Cuts values out of blocks; what is begun and not ended is kept for the next block.

    Offsets into `buffer`: `gap` begins what stands between values, `start` the value that is
    open, `seen` is behind the last token, and lines are `counted` up to there.
    """

    cap: int
    buffer: bytes = b""
    gap: int = 0
    start: int | None = None
    seen: int = 0
    counted: int = 0
    line: int = 1
    elements: int = 0
    depth: int = 0
    in_array: bool = False
    lost: bool = False
    found: list[Value] = field(default_factory=list)

    def cut(self, block: bytes) -> list[Value]:
        """Give the values that end in this block."""
        self.buffer += block
        if self.lost:
            self._find_again()
        if not self.lost:
            self._scan()
            begun = self.gap if self.start is None else self.start
            if len(self.buffer) - begun > self.cap:
                self._give_up(over_the_cap("line", self.cap))
        self._drop()
        return self._taken()

    def rest(self, torn: str) -> list[Value]:
        """Give what is left at the end of the text, which `torn` says is not its own end."""
        why = f"{torn}; nothing can be read after this line" if torn else ""
        while self.start is not None and not self.lost:
            self._give_up(why or "malformed JSON: it ends before this value does")
            if not self.lost:
                self._scan()
        told = bool(self.found and self.found[-1].fault)
        if not self.lost:
            self._between(len(self.buffer))
        if torn and not told:
            self.found.append(Value(self._number(len(self.buffer)), b"", why))
        elif self.in_array and not told and not self.lost:
            cut_off = "malformed JSON: the array does not end; the file may be cut off"
            self.found.append(Value(self._number(len(self.buffer)), b"", cut_off))
        return self._taken()

    def _scan(self) -> None:
        while not self._scanned():
            pass

    def _scanned(self) -> bool:
        for match in _TOKEN.finditer(self.buffer, self.seen):
            token = self.buffer[match.start()]
            if token == _QUOTE:
                if not match.group(1):
                    break  # the rest of the string is still to come
            elif token in b"{[":
                self._opens(match.start(), token)
            elif not self._closes(match.end(), token):
                return False
            self.seen = match.end()
        return True

    def _opens(self, at: int, token: int) -> None:
        if self.depth == 0:
            self._between(at)
            if token == _BRACKET and not self.in_array:
                self.in_array, self.gap = True, at + 1
                return
            self.start = at
        self.depth += 1

    def _closes(self, end: int, token: int) -> bool:
        """Take note of a closing bracket; False where scanning goes on from somewhere else."""
        if self.depth == 0:
            if self.in_array and token == _BRACKET + 2:
                self._between(end - 1)
                self.in_array, self.gap = False, end
            return True
        self.depth -= 1
        if self.depth or self.start is None:
            return True
        raw = self.buffer[self.start : end]
        # A value that holds a line which begins as an object does may have swallowed it.
        if not self.in_array and _RESUME in raw and not _is_object(raw):
            self._give_up("malformed JSON: its brackets or quotes do not match")
            return False
        self.found.append(Value(self._number(self.start), raw))
        self.start, self.gap = None, end
        return True

    def _between(self, end: int) -> None:
        """Tell of what stands between two values, if it is more than separators."""
        text = self.buffer[self.gap : end].strip(_BETWEEN)
        at, self.gap = self.gap, end
        if not text:
            return
        try:
            for value in json.loads(b"[" + text + b"]"):
                self.found.append(Value(self._number(at), json.dumps(value).encode()))
        except (ValueError, RecursionError):
            fault = "malformed JSON: no object"
            self.found.append(Value(self._number(at), text, fault))

    def _give_up(self, why: str) -> None:
        """Leave the value that is open, up to the next line that begins an object."""
        begun = self.gap if self.start is None else self.start
        end = -1 if self.in_array else self.buffer.find(_RESUME, begun + 1)
        self.lost = end < 0
        behind = "" if not self.in_array or "nothing" in why else "; nothing can be read after it"
        end = len(self.buffer) if self.lost else end
        self.found.append(Value(self._number(begun), self.buffer[begun:end], why + behind))
        self.start, self.depth, self.gap, self.seen = None, 0, end, end

    def _find_again(self) -> None:
        at = -1 if self.in_array else self.buffer.find(_RESUME)
        self.lost = at < 0
        # The last byte may be the end of the line before an object.
        self.gap = self.seen = max(0, len(self.buffer) - 1) if self.lost else at

    def _number(self, at: int) -> int:
        self.line += self.buffer.count(b"\n", self.counted, at)
        self.counted = max(self.counted, at)
        if not self.in_array:
            return self.line
        self.elements += 1
        return self.elements

    def _drop(self) -> None:
        kept = self.gap if self.start is None else self.start
        self._number_lines(kept)
        self.buffer = self.buffer[kept:]
        self.gap, self.counted = max(0, self.gap - kept), 0
        self.seen = max(0, self.seen - kept)
        self.start = None if self.start is None else 0

    def _number_lines(self, at: int) -> None:
        self.line += self.buffer.count(b"\n", self.counted, at)

    def _taken(self) -> list[Value]:
        found, self.found = self.found, []
        return found
