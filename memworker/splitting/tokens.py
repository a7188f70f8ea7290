"""How many tokens words take: each is tokenised once, and remembered."""

from __future__ import annotations

import re
from collections.abc import Collection
from itertools import accumulate

import numpy as np

from memworker.pool import TokenCounter

# What parts words to every tokenizer; other characters that Python calls white space are control
# characters to some, which drop them, so that no word ends there.
WS = " \t\n\r\u00a0\u1680\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B)))
_REMEMBERED = 200_000
# Words of one text that is tokenised to learn them: one by one they cost half as much again.
_AT_ONCE = 2_000
_WORD = re.compile(f"[^{WS}]+")
_SPECIAL = re.compile(r"<.*>|\[.*\]", re.DOTALL)
# How vocabularies write white space: SentencePiece's with its own sign, GPT's byte by byte.
_SENTENCEPIECE = {"\u2581": " "}
_BYTES = {"\u0120": " ", "\u010a": "\n", "\u0109": "\t", "\u010d": "\r"}


class UnitTokens:
    """Counts the tokens of units; without a counter every unit is one token.

    Where no token reaches over white space, from one word into the next, the tokens of words
    add up to those of the text.
    """

    def __init__(self, counter: TokenCounter | None) -> None:
        self._counter = counter
        self._known: dict[str, int] = {}
        joining = _joining(counter.pieces()) if counter else ""
        self._joining = re.compile(f"[{re.escape(joining)}]") if joining else None

    def may_join(self, text: str) -> bool:
        """Tell whether words of a text may share a token, over white space between them."""
        return self._joining is not None and self._joining.search(text) is not None

    def of(self, units: list[str]) -> list[int]:
        """Return the tokens of each unit, as it stands behind others."""
        counts = list(map(self._known.get, units))
        if None in counts:
            if len(self._known) > _REMEMBERED:
                self._known.clear()
            self._learn([unit for unit in dict.fromkeys(units) if unit not in self._known])
            counts = list(map(self._known.get, units))
        return counts  # type: ignore[return-value]

    def count(self, texts: list[str]) -> list[int]:
        """Return the tokens of whole texts."""
        if self._counter is None:
            return [len(_WORD.findall(text)) for text in texts]
        return self._counter.count(texts)

    def _learn(self, units: list[str]) -> None:
        if self._counter is None:
            self._known.update((unit, 1) for unit in units)
            return
        spaced = [unit for unit in units if unit[0] in WS]
        for at in range(0, len(spaced), _AT_ONCE):
            self._learn_spaced(self._counter, spaced[at : at + _AT_ONCE])
        bare = [unit for unit in units if unit[0] not in WS]
        self._known.update(zip(bare, self._counter.count(bare), strict=True))

    def _learn_spaced(self, counter: TokenCounter, units: list[str]) -> None:
        """Learn units that begin with white space, in one text, as they stand in texts."""
        # Behind a letter, for at the beginning white space is not what it is within a text.
        text = "".join(["a", *units])
        ends = np.fromiter(accumulate(map(len, units), initial=1), np.int64, len(units) + 1)
        of = np.searchsorted(ends, counter.starts(text), side="right")
        counts = np.bincount(of, minlength=len(ends) + 1)[1:]
        self._known.update(zip(units, counts.tolist(), strict=False))


def _joining(pieces: Collection[str]) -> str:
    """Return the white space that some token has behind another character."""
    signs = _SENTENCEPIECE if any("\u2581" in piece for piece in pieces) else _BYTES
    signs = signs | {space: space for space in WS}
    follows = re.compile(f"(?<=[^{''.join(signs)}])[{''.join(signs)}]")
    ordinary = (piece for piece in pieces if not _SPECIAL.fullmatch(piece))
    found = {signs[sign] for piece in ordinary for sign in follows.findall(piece)}
    return "".join(sorted(found))
