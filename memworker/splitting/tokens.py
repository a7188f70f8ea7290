"""How words become tokens: each is tokenised once, and remembered."""

from __future__ import annotations

import re
from collections.abc import Collection
from itertools import accumulate

import numpy as np

from memworker.pool import TokenCounter
from memworker.splitting.locality import added_tokens, adds_up

# What parts words to every tokenizer; other characters that Python calls white space are control
# characters to some, which drop them, so that no word ends there.
WS = " \t\n\r\u00a0\u1680\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B)))
SIZE = 4
"""Bytes of a token's id."""
_REMEMBERED = 200_000
# Words of one text that is tokenised to learn them: one by one they cost half as much again.
_AT_ONCE = 2_000
_WORD = re.compile(f"[^{WS}]+")
_SPECIAL = re.compile(r"<.*>|\[.*\]", re.DOTALL)
# How vocabularies write white space: SentencePiece's with its own sign, GPT's byte by byte.
_SENTENCEPIECE = {"\u2581": " "}
_BYTES = {"\u0120": " ", "\u010a": "\n", "\u0109": "\t", "\u010d": "\r"}
_ONE = bytes(SIZE)


class UnitTokens:
    """Gives the token ids of units, int32 each; without a counter every unit is one token.

    Where no token reaches over white space, from one word into the next, those of words in
    their order are those of the text. `tell_ids` says whether ids stand for texts at all.
    """

    def __init__(self, counter: TokenCounter | None) -> None:
        self._counter = counter
        self._known: dict[str, bytes] = {}
        self.tell_ids = counter is not None and counter.framed
        self._joining: re.Pattern[str] | None = None
        self._added: re.Pattern[str] | None = None
        self._never = False
        if counter is not None:
            described = counter.described()
            self._never = not adds_up(described)
            self._added = added_tokens(described)
            if joining := _joining(counter.pieces()):
                self._joining = re.compile(f"[{re.escape(joining)}]")

    def may_join(self, text: str) -> bool:
        """Tell whether the tokens of a text may be others than those of its words."""
        return (
            self._never
            or (self._joining is not None and self._joining.search(text) is not None)
            or (self._added is not None and self._added.search(text) is not None)
        )

    def ids(self, units: list[str]) -> list[bytes]:
        """Return the token ids of each unit, as it stands behind others."""
        found = list(map(self._known.get, units))
        if None in found:
            self._learn(set(units).difference(self._known))
            found = list(map(self._known.get, units))
        return found  # type: ignore[return-value]

    def learn(self, units: list[str]) -> None:
        """Tokenise the units of texts to come; what was learnt before may be forgotten."""
        if len(self._known) > _REMEMBERED:
            self._known.clear()
        self._learn(set(units).difference(self._known))

    def of(self, units: list[str]) -> list[int]:
        """Return the number of tokens of each unit."""
        return list(map(tokens_in, self.ids(units)))

    def whole(self, texts: list[str]) -> list[bytes]:
        """Return the token ids of whole texts, each tokenised as it stands."""
        if self._counter is None:
            return [_ONE * len(_WORD.findall(text)) for text in texts]
        return self._counter.ids(texts)

    def _learn(self, new: set[str]) -> None:
        if not new:
            return
        # In an order of their own, not in that of a set, which differs from run to run.
        units = sorted(new)
        if self._counter is None:
            self._known.update((unit, _ONE) for unit in units)
            return
        alone = [unit for unit in units if unit[0] not in WS or self._parts_others(unit)]
        self._known.update(zip(alone, self._counter.ids(alone), strict=True))
        spaced = [unit for unit in units if unit not in self._known]
        for at in range(0, len(spaced), _AT_ONCE):
            self._learn_spaced(self._counter, spaced[at : at + _AT_ONCE])

    def _parts_others(self, unit: str) -> bool:
        """Tell whether a unit has a token added to the vocabulary: what follows begins anew."""
        return self._added is not None and self._added.search(unit) is not None

    def _learn_spaced(self, counter: TokenCounter, units: list[str]) -> None:
        """Learn units that begin with white space, in one text, as they stand in texts."""
        # Behind a letter, for at the beginning white space is not what it is within a text.
        text = "".join(["a", *units])
        ends = np.fromiter(accumulate(map(len, units), initial=1), np.int64, len(units) + 1)
        starts, ids = counter.located(text)
        # Of each unit, the tokens that begin in it; they are in the order of the text. One that
        # is put before others of its word begins where these do, and not behind.
        starts = np.maximum.accumulate(starts)
        begins = (np.searchsorted(starts, ends) * SIZE).tolist()
        for unit, begin, end in zip(units, begins, begins[1:], strict=False):
            self._known[unit] = ids[begin:end]


def tokens_in(ids: bytes) -> int:
    """Return how many tokens ids are of."""
    return len(ids) // SIZE


def _joining(pieces: Collection[str]) -> str:
    """Return the white space that some token has behind another character."""
    signs = _SENTENCEPIECE if any("\u2581" in piece for piece in pieces) else _BYTES
    signs = signs | {space: space for space in WS}
    follows = re.compile(f"(?<=[^{''.join(signs)}])[{''.join(signs)}]")
    ordinary = (piece for piece in pieces if not _SPECIAL.fullmatch(piece))
    found = {signs[sign] for piece in ordinary for sign in follows.findall(piece)}
    return "".join(sorted(found))
