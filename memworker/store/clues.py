"""What question and text show beside their scores: how likely a found row is to answer.

BM25 prefers short texts, and of people's talk the shortest say least; a question found for a
question answers nothing; "when" and "how many" are answered by times and numbers; a question
that names a month or a year is mostly about what was told then. All weights are fixed on
LoCoMo's first five conversations (see fuse.py). They scale a row's score and never add to it, so
a row that neither ranking is sure of stays behind. The clues of words are English; in other
languages they say nothing.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property, lru_cache
from math import log

from memworker.store.text import STOP_WORDS

# What each clue multiplies a score by, less one.
STATEMENT, LENGTH, TIMED, DATED = 0.4, 0.6, 0.6, 1.0
# Texts of this many characters and more are equally long.
LONG_CHARS = 200
# Of a long text the beginning is looked at: a hundred of these take
# some 6 ms, a hundred turns of a talk 1.5 ms.
_LOOKED_AT_CHARS = 1_000

_STOP = frozenset(STOP_WORDS)
# Scripts without blanks between words: pairs of characters stand for words.
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff"
_WORD = re.compile(rf"[{_UNSPACED}]+|[^\W_{_UNSPACED}]+")
_IS_UNSPACED = re.compile(f"[{_UNSPACED}]")
# What stands above and below letters: accents, kana's voicing, Arabic's vowels.
_MARKS = re.compile("[\u0300-\u036f\u064b-\u0652\u3099\u309a]")
_ENDINGS = ("ings", "ing", "edly", "ed", "ies", "es", "s", "ly", "e")
_MONTHS = (
    *("january", "february", "march", "april", "may", "june", "july"),
    *("august", "september", "october", "november", "december"),
)
_MONTH = re.compile(
    # "may" and "march" are words too, unless they begin with a capital.
    r"\b(?:(?i:" + "|".join(m for m in _MONTHS if m not in ("may", "march")) + r")|May|March)\b"
)
_YEAR = re.compile(r"\b(?:19|20)\d\d\b")
_ASKS_TIME = re.compile(r"\bwhen\b|\bwhat (?:date|year|month|day|time)\b|\bhow long\b", re.I)
_ASKS_NUMBER = re.compile(r"\bhow (?:many|much|often|long|old)\b", re.I)
_TIME = re.compile(
    r"\b(?:yesterday|today|tonight|tomorrow|last|next|ago|weeks?|weekend|months?|years?|since"
    r"|(?:mon|tues|wednes|thurs|fri|satur|sun)day|" + "|".join(_MONTHS) + r"|recently|just"
    r"|morning|evening|night|\d{4}|\d+(?:st|nd|rd|th)?)\b",
    re.I,
)
_NUMBER = re.compile(
    r"\b(?:\d+|one|two|three|four|five|six|seven|eight|nine|ten|once|twice|dozen|couple|few"
    r"|several)\b",
    re.I,
)


@dataclass(frozen=True)
class Query:
    """A query, taken apart once for all rows that it is held against."""

    text: str

    @cached_property
    def words(self) -> frozenset[str]:
        """Its words as `stems` gives them."""
        return stems(self.text)

    @cached_property
    def months(self) -> frozenset[int]:
        """The months that it names, 1 to 12."""
        named = (found.lower() for found in _MONTH.findall(self.text))
        return frozenset(_MONTHS.index(name) + 1 for name in named)

    @cached_property
    def years(self) -> frozenset[int]:
        """The years that it names."""
        return frozenset(map(int, _YEAR.findall(self.text)))

    @cached_property
    def _answers(self) -> list[re.Pattern[str]]:
        asked = ((_ASKS_TIME, _TIME), (_ASKS_NUMBER, _NUMBER))
        return [answer for question, answer in asked if question.search(self.text)]

    @cached_property
    def most(self) -> float:
        """The largest factor that `factor` can give for this question."""
        timed = TIMED * bool(self._answers)
        dated = DATED * bool(self.months or self.years)
        return 1 + STATEMENT + LENGTH + timed + dated

    def factor(self, text: str, created_at: datetime | None) -> float:
        """Say what the score of a row is multiplied by; 1 is the least."""
        return (
            1
            + STATEMENT * (not text.rstrip().endswith(("?", "？", "؟")))
            + LENGTH * min(len(text), LONG_CHARS) / LONG_CHARS
            + TIMED * any(answer.search(text[:_LOOKED_AT_CHARS]) for answer in self._answers)
            + DATED * self._is_of_its_time(created_at)
        )

    def _is_of_its_time(self, created_at: datetime | None) -> bool:
        if created_at is None or not (self.months or self.years):
            return False
        in_month = not self.months or created_at.month in self.months
        return in_month and (not self.years or created_at.year in self.years)

    def coverage(self, texts: Mapping[str, str]) -> dict[str, float]:
        """Say how much of the question each text has, from 0 to 1, rare words counting more.

        How rare a word is, the texts themselves must tell: they are those that were found.
        """
        if not self.words:
            return dict.fromkeys(texts, 0.0)
        held = {key: self.words & stems(text) for key, text in texts.items()}
        with_word = {word: sum(word in words for words in held.values()) for word in self.words}
        weight = {
            word: log(1 + (len(held) + 0.5) / (count + 0.5)) for word, count in with_word.items()
        }
        most = sum(weight.values())
        return {key: sum(weight[word] for word in words) / most for key, words in held.items()}


def stems(text: str) -> frozenset[str]:
    """Return the words of a text, without the commonest, cut where English adds endings."""
    shown = text[:_LOOKED_AT_CHARS].lower()
    if shown.isascii():
        return frozenset(map(_stem, _WORD.findall(shown))) - {""}
    parts = _MARKS.sub("", unicodedata.normalize("NFKD", shown))
    words = _WORD.findall(unicodedata.normalize("NFC", parts))
    return frozenset(_stem(part) for word in words for part in _parts(word)) - {""}


def _parts(word: str) -> Iterable[str]:
    if not _IS_UNSPACED.match(word):
        return (word,)
    return (word[at : at + 2] for at in range(max(1, len(word) - 1)))


@lru_cache(maxsize=1 << 15)
def _stem(word: str) -> str:
    """Cut a word's ending; "" for one of the commonest."""
    if word in _STOP:
        return ""
    for ending in _ENDINGS:
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            word = word.removesuffix(ending)
            if len(word) > 3 and word[-1] == word[-2]:
                word = word[:-1]
            break
    return word[:-1] if word.endswith(("i", "y")) else word
