"""Texts to token ids: special tokens, truncation, counts."""

from __future__ import annotations

import json
from array import array
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

TokenIds: TypeAlias = "list[int] | npt.NDArray[np.int32]"


class Tokenizer:
    """A Hugging Face `tokenizer.json`, with its own padding and truncation switched off.

    The official file of MiniLM pads to 128 and truncates at 128; here a text is
    truncated at `max_tokens`, special tokens included, and never padded.
    """

    def __init__(
        self,
        path: Path,
        max_tokens: int,
        *,
        add_special_tokens: bool = True,
        lowercase: bool = False,
    ) -> None:
        self._tokenizer = _opened(path, lowercase=lowercase)
        self._tokenizer.enable_truncation(max_tokens)
        self._max_tokens = max_tokens
        self._special = add_special_tokens
        self._vocabulary: int = self._tokenizer.get_vocab_size()
        self._before, self._after = self._around() if add_special_tokens else ([], [])

    def __call__(self, texts: list[str]) -> tuple[Sequence[TokenIds], npt.NDArray[np.bool_]]:
        """Give token ids a text, and bool[n]: which texts were truncated."""
        encodings = self._tokenizer.encode_batch_fast(texts, add_special_tokens=self._special)
        ids = [encoding.ids for encoding in encodings]
        truncated = np.zeros(len(ids), np.bool_)
        for row, tokens in enumerate(ids):
            if len(tokens) == self._max_tokens:
                truncated[row] = bool(encodings[row].overflowing)
        return ids, truncated

    def frame(
        self, flat: npt.NDArray[np.int32], ends: list[int]
    ) -> tuple[Sequence[TokenIds], npt.NDArray[np.bool_]]:
        """Give rows of bare token ids what a text's get: truncation and special tokens.

        `flat` has the ids of all rows, each up to one of `ends`, which begin with 0.
        Raises ValueError for an id that the vocabulary does not have.
        """
        room = max(0, self._max_tokens - len(self._before) - len(self._after))
        wrong = flat[(flat < 0) | (flat >= self._vocabulary)]
        if len(wrong):
            raise ValueError(
                f"token id {wrong[0]} is not in the vocabulary, which goes from 0 to"
                f" {self._vocabulary - 1}"
            )
        truncated = np.diff(np.array(ends, np.int64)) > room
        rows = [flat[a : min(b, a + room)] for a, b in zip(ends, ends[1:], strict=False)]
        if not (self._before or self._after):
            return rows, truncated
        before, after = np.array(self._before, np.int32), np.array(self._after, np.int32)
        return [np.concatenate((before, row, after)) for row in rows], truncated

    def _around(self) -> tuple[list[int], list[int]]:
        """Find the special tokens that stand before and after a text."""
        bare = self._tokenizer.encode("a", add_special_tokens=False).ids
        full = self._tokenizer.encode("a", add_special_tokens=True).ids
        found = _within(full, bare)
        return (full[: found[0]], full[found[1] :]) if found else ([], [])


class PairTokenizer:
    """The same of pairs of texts: each token's id is packed with its type, as ``2 * id + type``.

    Of a pair that is too long, tokens are taken from the longer text.
    """

    def __init__(self, path: Path, max_tokens: int, *, lowercase: bool = False) -> None:
        self._tokenizer = _opened(path, lowercase=lowercase)
        self._tokenizer.enable_truncation(max_tokens, strategy="longest_first")

    def __call__(
        self, pairs: list[tuple[str, str]]
    ) -> tuple[Sequence[TokenIds], npt.NDArray[np.bool_]]:
        """Give packed tokens a pair, and bool[n]: which pairs were truncated."""
        encodings = self._tokenizer.encode_batch(pairs)
        packed = [
            2 * np.array(each.ids, np.int32) + np.array(each.type_ids, np.int32)
            for each in encodings
        ]
        truncated = np.fromiter((bool(each.overflowing) for each in encodings), np.bool_)
        return packed, truncated


@dataclass(frozen=True, slots=True)
class Tokenization:
    """How a model makes tokens of a passage; `prefix` stands before each, or before a query."""

    path: Path
    add_special_tokens: bool = True
    lowercase: bool = False
    prefix: str = ""
    query_prefix: str = ""


class TokenCounter:
    """Counts the tokens of texts, without special ones, and without an end."""

    def __init__(self, made: Tokenization) -> None:
        self._tokenizer = _opened(made.path, lowercase=made.lowercase)
        self._tokenizer.no_truncation()
        self._special, self._prefixed = made.add_special_tokens, bool(made.prefix)
        self.special = 0
        """The special tokens that go with every text."""
        if made.add_special_tokens:
            self.special = len(self._tokenizer.encode("a").ids) - self.count(["a"])[0]
        self.around = self.special
        """The tokens that go with every passage: special ones, and those of the prefix."""
        if made.prefix:
            # One more, for what follows may not join with its last blank.
            self.around += self.count([made.prefix])[0] + 1

    def count(self, texts: list[str]) -> list[int]:
        """Return the number of tokens of each text."""
        encoded = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [len(encoding.ids) for encoding in encoded]

    def ids(self, texts: list[str]) -> list[bytes]:
        """Return the token ids of each text, int32 each."""
        encoded = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [array("i", encoding.ids).tobytes() for encoding in encoded]

    def first_ids(self, texts: list[str], most: int) -> tuple[list[list[int]], int]:
        """Return the ids that each text keeps of `most` tokens, and how many texts have more.

        Special tokens count, and are left out of what is returned.
        """
        encoded = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        room = most - self.special
        cut = sum(len(encoding.ids) > room for encoding in encoded)
        return [encoding.ids[:room] for encoding in encoded], cut

    def located(self, text: str) -> tuple[npt.NDArray[np.int64], bytes]:
        """Return where each token of a text begins, in characters, and the ids of all."""
        encoded = self._tokenizer.encode(text, add_special_tokens=False)
        offsets = encoded.offsets
        starts = np.fromiter((start for start, _ in offsets), np.int64, len(offsets))
        return starts, array("i", encoded.ids).tobytes()

    def tokens(
        self, text: str, *, special: bool
    ) -> list[tuple[int, str, bool, tuple[int, int] | None]]:
        """Return each token of a text: id, as it is written, special or not, its characters."""
        made = self._tokenizer.encode(text, add_special_tokens=special)
        rows = zip(made.ids, made.tokens, made.special_tokens_mask, made.offsets, strict=True)
        return [
            (number, word, bool(mask), None if mask else place)
            for number, word, mask, place in rows
        ]

    def pieces(self) -> Collection[str]:
        """Return the tokens that there are, as the vocabulary writes them."""
        return self._tokenizer.get_vocab().keys()  # type: ignore[no-any-return]

    def described(self) -> dict[str, Any]:
        """Return the tokenizer as its file describes it, but for the vocabulary's size."""
        return json.loads(self._tokenizer.to_str())  # type: ignore[no-any-return]

    @property
    def framed(self) -> bool:
        """Whether a passage's ids are its text's own, behind and before always the same ones."""
        if self._prefixed or not self._special:
            return not self._prefixed
        around = set()
        for text in ("a", "b a"):
            full = self._tokenizer.encode(text).ids
            found = _within(full, self._tokenizer.encode(text, add_special_tokens=False).ids)
            around.add(found and (tuple(full[: found[0]]), tuple(full[found[1] :])))
        return len(around) == 1 and None not in around


def _within(full: list[int], bare: list[int]) -> tuple[int, int] | None:
    """Find where ids stand among others: from where to where."""
    for start in range(len(full) - len(bare) + 1):
        if full[start : start + len(bare)] == bare:
            return start, start + len(bare)
    return None


def _opened(path: Path, *, lowercase: bool) -> Any:
    from tokenizers import Tokenizer as HuggingFaceTokenizer
    from tokenizers.normalizers import Lowercase, Sequence

    tokenizer: Any = HuggingFaceTokenizer.from_file(str(path))
    if lowercase:
        first, own = Lowercase(), tokenizer.normalizer
        tokenizer.normalizer = first if own is None else Sequence([first, own])
    tokenizer.no_padding()
    return tokenizer
