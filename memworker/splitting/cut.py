"""Where a text is cut: at the best boundary that leaves each chunk within its tokens.

::

    text ─► units (a word, with the white space before it) ─► tokens of each, added up
                                                                   │
    chunks ◄─ verified where sums are no proof ◄─ best boundary in the second half of the room

A text is tokenised a word at a time, and each word once: counting costs a look-up a word, where
tokenising pieces of the text over and over costs several times what embedding a static model
does. Of boundaries of one kind the one is taken that a hash of what follows chooses: a
paragraph put in front then moves the cuts near it, and not those of the whole text.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate, islice
from typing import NamedTuple
from zlib import crc32

from memworker.chunking import Chunking
from memworker.splitting.headings import headings_of, path_at
from memworker.splitting.tokens import SIZE, WS, UnitTokens, tokens_in

# Scripts that part words by nothing: a few characters are a unit, and their stops end it.
_RUN_ON = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\U00020000-\U0002fa1f"
)
_STOPS = "。、，！？；：…"
_CLOSING = "\"'”’)\\]」』）】"
_WORDS = re.compile(f"[{WS}]*[^{WS}]+")
_UNITS = re.compile(f"[{WS}]*(?:[{_RUN_ON}]{{1,4}}[{_STOPS}{_CLOSING}]*|[^{WS}{_RUN_ON}]{{1,32}})")
_HAS_RUN_ON = re.compile(f"[{_RUN_ON}]")
_LONG_WORD = 48

_HEADING = re.compile(r"\n(?=#{1,6}[ \t])")
# Boundaries, the best first; cut is at their ends.
_PARAGRAPH = re.compile(r"\n(?=[ \t\r]*\n)")
_WHOLE_LINE = re.compile(
    r"\n(?:(?<=[.!?:;。！？]\n)|(?<=[.!?:;。！？]\r\n)|(?=[ \t]*(?:[-*+•|]|\d+[.)])[ \t]))"
)
# A full stop ends a sentence before white space alone; theirs ends one in any case.
_SENTENCE = re.compile(rf"[.!?…。！？]+[{_CLOSING}]*(?:(?=[{WS}])|(?<=[。！？…」』】）]))")
_LINE = re.compile(r"\n")
_SENTENCE_OR_LINE = re.compile(rf"\n|{_SENTENCE.pattern}")
_HASHED_CHARS = 32
_TRIES = 6
_TEXTS_AT_ONCE = 256
# What context may take of a chunk's room at most.
_CONTEXT_SHARE = 4


class Piece(NamedTuple):
    """A chunk of a text: its characters from `start` to `end`, and what stands before it.

    `ids` are the token ids (int32 each) of both, as the tokenizer gives them for the words as
    they are embedded; None where ids are not the tokenizer's alone.
    """

    start: int
    end: int
    context: str = ""
    ids: bytes | None = None


@dataclass(frozen=True, slots=True)
class Cutter:
    """Cuts texts for one model; `around` tokens go with each chunk, as special ones do."""

    tokens: UnitTokens
    chunking: Chunking
    around: int

    def pieces(self, text: str, title: str = "", *, markdown: bool = False) -> list[Piece]:
        """Cut one text; no piece is empty, and all but white space is in one."""
        (pieces,) = self.all_pieces([(text, title, markdown)])
        return pieces

    def all_pieces(self, given: Iterable[tuple[str, str, bool]]) -> Iterator[list[Piece]]:
        """Cut texts, each with its title and whether it is Markdown."""
        rest = iter(given)
        while some := list(islice(rest, _TEXTS_AT_ONCE)):
            # Their new words together: each call of a tokenizer has a price of its own.
            words = [_Words.of(text) for text, _, _ in some]
            self.tokens.learn([unit for each in words for unit in each.units])
            for (text, title, markdown), each in zip(some, words, strict=True):
                yield self._pieces(text, each, title, markdown)

    def _pieces(self, text: str, words: _Words, title: str, markdown: bool) -> list[Piece]:
        room = self.chunking.tokens - self.around
        scale = 1.0
        units = _Units.of(words, self.tokens, room)
        if not units.ends:
            return []
        for left in reversed(range(_TRIES)):
            cut = _Cut(text, units, self, room, scale, title, markdown)
            pieces = list(cut.pieces())
            if not cut.unsure:
                return pieces
            whole = self.tokens.whole([_embedded(text, piece) for piece in pieces])
            most = max(map(tokens_in, whole))
            if most <= room:
                return [self._with(piece, ids) for piece, ids in zip(pieces, whole, strict=True)]
            scale *= 1.02 * most / room
            if not left:
                break
        return list(self._by_force(text, pieces, room))

    def _by_force(self, text: str, pieces: list[Piece], room: int) -> Iterator[Piece]:
        """Halve the pieces that are still too long until they are not, or are one character."""
        for piece in pieces:
            (ids,) = self.tokens.whole([_embedded(text, piece)])
            if piece.end - piece.start < 2 or tokens_in(ids) <= room:
                yield self._with(piece, ids)
                continue
            middle = (piece.start + piece.end) // 2
            halves = [piece._replace(end=middle), piece._replace(start=middle)]
            yield from self._by_force(text, halves, room)

    def _with(self, piece: Piece, ids: bytes) -> Piece:
        return piece._replace(ids=ids) if self.tokens.tell_ids else piece


def _embedded(text: str, piece: Piece) -> str:
    chunk = text[piece.start : piece.end]
    return f"{piece.context}\n\n{chunk}" if piece.context else chunk


class _Words(NamedTuple):
    """The units of a text; `inside` words some of them begin."""

    units: list[str]
    inside: bool

    @classmethod
    def of(cls, text: str) -> _Words:
        end = len(text.rstrip(WS))
        units = _WORDS.findall(text, 0, end)
        if (
            not text.isascii()
            and _HAS_RUN_ON.search(text)
            or max(map(len, units), default=0) > _LONG_WORD
        ):
            return cls(_UNITS.findall(text, 0, end), True)
        return cls(units, False)


@dataclass(frozen=True, slots=True)
class _Units:
    """Units of a text: where each ends, and its tokens added up; `ids` are those of all, in order.

    `joined` are those before which there is no white space.
    """

    ends: list[int]
    tokens: list[int]
    joined: frozenset[int]
    ids: bytes

    @classmethod
    def of(cls, words: _Words, tokens: UnitTokens, room: int) -> _Units:
        units, inside = words
        ids = tokens.ids(units)
        if max(map(len, ids), default=0) > SIZE * room:
            units, inside = _with_letters(units, list(map(tokens_in, ids)), room), True
            ids = tokens.ids(units)
        joined = (i for i, unit in enumerate(units) if i and unit[0] not in WS) if inside else ()
        ends = list(accumulate(map(len, units)))
        sums = [size // SIZE for size in accumulate(map(len, ids), initial=0)]
        return cls(ends, sums, frozenset(joined), b"".join(ids))


def _with_letters(units: list[str], counts: list[int], room: int) -> list[str]:
    """Take units apart that no chunk has room for."""
    found: list[str] = []
    for unit, count in zip(units, counts, strict=True):
        if count <= room:
            found.append(unit)
            continue
        bare = unit.lstrip(WS)
        found += [unit[: len(unit) - len(bare)] + bare[:1], *bare[1:]]
    return found


class _Cut:
    """One pass over a text; `unsure` tells whether the sums of its tokens are no proof."""

    def __init__(
        self,
        text: str,
        units: _Units,
        cutter: Cutter,
        room: int,
        scale: float,
        title: str,
        markdown: bool,
    ) -> None:
        self._text, self._ends, self._sums = text, units.ends, units.tokens
        self._joined, self._markdown, self._ids = units.joined, markdown, units.ids
        self._cutter, self._room, self._scale = cutter, room, scale
        self._headings = headings_of(text) if markdown and cutter.chunking.contextual else []
        self._title = title if cutter.chunking.contextual else ""
        self.unsure = scale != 1.0 or bool(units.joined) or cutter.tokens.may_join(text)

    def pieces(self) -> Iterator[Piece]:
        first, end, last = 0, 0, len(self._ends)
        while True:
            context, room = self._context(first)
            end = self._end(first, end + 1, room)
            yield Piece(
                self._start_of(first), self._ends[end - 1], context, self._told(first, end, context)
            )
            if end == last:
                return
            first = self._next(first, end, room)

    def _told(self, first: int, end: int, context: str) -> bytes | None:
        """Put together the ids of a chunk, where its words' are those of the whole."""
        tokens = self._cutter.tokens
        if context and tokens.may_join(f"{context}\n\n"):
            self.unsure = True
        if self.unsure or not tokens.tell_ids:
            return None
        begin = self._text[self._start_of(first) : self._ends[first]]
        rest = self._ids[SIZE * self._sums[first + 1] : SIZE * self._sums[end]]
        if not context:
            return tokens.ids([begin])[0] + rest
        one, *more = context.split(" ")
        before = tokens.ids([one, *(f" {word}" for word in more), f"\n\n{begin}"])
        return b"".join(before) + rest

    def _context(self, first: int) -> tuple[str, float]:
        """Give what stands before a chunk, and the room that is left, in tokens as added up."""
        room = self._room / self._scale
        if not (self._title or self._headings):
            return "", room
        path = path_at(self._headings, self._start_of(first))
        names = dict.fromkeys(name for name in (self._title, *path) if name)
        words = " > ".join(names).split()
        counts = [0, *accumulate(self._cutter.tokens.of([f" {word}" for word in words]))]
        kept = bisect_right(counts, self._room / _CONTEXT_SHARE) - 1
        # A title with line breaks is a line of words here; two tokens are for the blank line.
        return " ".join(words[:kept]), room - (counts[kept] + 2) / self._scale if kept else room

    def _end(self, first: int, least: int, room: float) -> int:
        """Return the unit, `least` or later, before which the chunk ends that begins at `first`."""
        sums, start = self._sums, self._sums[first]
        before_first = self._extra(first)
        highest = bisect_right(sums, start + room - before_first) - 1
        if highest >= len(sums) - 1:
            return len(sums) - 1
        highest = max(highest, least)
        left = sums[-1] - start
        lowest = start + room / 2
        if left <= 1.5 * room:
            # The last two are of like size, rather than one of a few words.
            lowest = start + left / 3
            highest = max(least, min(highest, bisect_right(sums, start + 2 * left / 3) - 1))
        if self._markdown:
            # A section may be shorter than what is cut within one.
            quarter = max(bisect_left(sums, start + room / 4), least)
            if (heading := self._heading(min(quarter, highest), highest)) is not None:
                return heading
        return self._best(min(max(bisect_left(sums, lowest), least), highest), highest)

    def _heading(self, lowest: int, highest: int) -> int | None:
        """Choose a heading that one of these units begins with, of the highest rank."""
        low, high = self._ends[lowest - 1], self._start_of(highest)
        found = [m.end() for m in _HEADING.finditer(self._text, max(0, low - 1), high + 8)]
        found = [at for at in found if low <= at <= high]
        if not found:
            return None
        depth = min(_depth(self._text, at) for at in found)
        best = [at for at in found if _depth(self._text, at) == depth]
        return self._unit_at(self._chosen(best))

    def _best(self, lowest: int, highest: int) -> int:
        """Choose a boundary between two units, the best there is from `lowest` to `highest`."""
        text, ends = self._text, self._ends
        # From the end of the unit before to the beginning of that which would follow.
        low, high = ends[lowest - 1], self._start_of(highest)
        lines = text.find("\n", low, high) >= 0
        kinds = (_PARAGRAPH, _WHOLE_LINE, _SENTENCE, _LINE) if lines else (_SENTENCE,)
        for kind in kinds:
            found = [
                m.end() for m in kind.finditer(text, max(0, low - 1), min(len(text), high + 2))
            ]
            units = {self._unit_at(at) for at in found if low <= at <= high}
            units = {unit for unit in units if lowest <= unit <= highest}
            if units:
                return self._unit_at(self._chosen([ends[unit - 1] for unit in sorted(units)]))
        # A word's end; within a word only where there is no other.
        for unit in range(highest, lowest - 1, -1):
            if unit not in self._joined:
                return unit
        return highest

    def _chosen(self, places: list[int]) -> int:
        if len(places) == 1:
            return places[0]
        text = self._text
        return min(places, key=lambda at: _hash(text[at : at + _HASHED_CHARS]))

    def _unit_at(self, place: int) -> int:
        """Return the first unit that ends behind a place."""
        return bisect_right(self._ends, place)

    def _next(self, first: int, end: int, room: float) -> int:
        """Return the unit that the next chunk begins with: `end`, or before it for the overlap."""
        overlap = self._cutter.chunking.overlap / self._scale
        if not overlap:
            return end
        sums = self._sums
        begin = max(first + 1, bisect_left(sums, sums[end] - overlap))
        # The next unit must have room behind what is repeated.
        fits = bisect_left(sums, sums[end + 1] - room + self._extra(begin))
        begin = min(max(begin, fits), end)
        if begin < end:
            low, high = self._ends[begin - 1], self._ends[end - 1]
            found = _SENTENCE_OR_LINE.search(self._text, max(0, low - 1), high - 1)
            if found and begin <= (unit := self._unit_at(found.end())) < end:
                return unit
        return begin

    def _start_of(self, unit: int) -> int:
        """Return where the text of a unit begins, behind its white space."""
        text = self._text
        at = self._ends[unit - 1] if unit else 0
        while at < len(text) and text[at] in WS:
            at += 1
        return at

    def _extra(self, first: int) -> int:
        """Return how many tokens more a unit takes where a chunk begins with it."""
        low, high = self._start_of(first), self._ends[first]
        bare = self._cutter.tokens.of([self._text[low:high]])[0]
        return bare - (self._sums[first + 1] - self._sums[first])


def _hash(follows: str) -> int:
    return crc32(follows.lstrip(WS).encode("utf-8", "surrogatepass"))


def _depth(text: str, at: int) -> int:
    depth = 0
    while text[at + depth : at + depth + 1] == "#":
        depth += 1
    return depth
