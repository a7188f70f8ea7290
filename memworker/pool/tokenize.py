"""Texts to token ids: special tokens, truncation, counts."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt


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

    def __call__(self, texts: list[str]) -> tuple[list[list[int]], npt.NDArray[np.bool_]]:
        """Give token ids a text, and bool[n]: which texts were truncated."""
        encodings = self._tokenizer.encode_batch_fast(texts, add_special_tokens=self._special)
        ids = [encoding.ids for encoding in encodings]
        truncated = np.zeros(len(ids), np.bool_)
        for row, tokens in enumerate(ids):
            if len(tokens) == self._max_tokens:
                truncated[row] = bool(encodings[row].overflowing)
        return ids, truncated

    def frame(self, rows: list[list[int]]) -> tuple[list[list[int]], npt.NDArray[np.bool_]]:
        """Give rows of bare token ids what a text's get: truncation and special tokens.

        Raises ValueError for an id that the vocabulary does not have.
        """
        room = max(0, self._max_tokens - len(self._before) - len(self._after))
        for ids in rows:
            if ids and not (min(ids) >= 0 and max(ids) < self._vocabulary):
                wrong = next(token for token in ids if not 0 <= token < self._vocabulary)
                raise ValueError(
                    f"token id {wrong} is not in the vocabulary, which goes from 0 to"
                    f" {self._vocabulary - 1}"
                )
        truncated = np.fromiter((len(ids) > room for ids in rows), np.bool_, len(rows))
        return [[*self._before, *ids[:room], *self._after] for ids in rows], truncated

    def _around(self) -> tuple[list[int], list[int]]:
        """Find the special tokens that stand before and after a text."""
        bare = self._tokenizer.encode("a", add_special_tokens=False).ids
        full = self._tokenizer.encode("a", add_special_tokens=True).ids
        for start in range(len(full) - len(bare) + 1):
            if full[start : start + len(bare)] == bare:
                return full[:start], full[start + len(bare) :]
        return [], []


@dataclass(frozen=True, slots=True)
class Tokenization:
    """How a model makes tokens of a passage; `prefix` stands before each."""

    path: Path
    add_special_tokens: bool = True
    lowercase: bool = False
    prefix: str = ""


class TokenCounter:
    """Counts the tokens of texts, without special ones, and without an end."""

    def __init__(self, made: Tokenization) -> None:
        self._tokenizer = _opened(made.path, lowercase=made.lowercase)
        self._tokenizer.no_truncation()
        self.around = 0
        """The tokens that go with every passage: special ones, and those of the prefix."""
        if made.add_special_tokens:
            self.around += len(self._tokenizer.encode("a").ids) - self.count(["a"])[0]
        if made.prefix:
            # One more, for what follows may not join with its last blank.
            self.around += self.count([made.prefix])[0] + 1

    def count(self, texts: list[str]) -> list[int]:
        """Return the number of tokens of each text."""
        encoded = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [len(encoding.ids) for encoding in encoded]

    def starts(self, text: str) -> npt.NDArray[np.int64]:
        """Return where each token of a text begins, in characters."""
        offsets = self._tokenizer.encode(text, add_special_tokens=False).offsets
        return np.fromiter((start for start, _ in offsets), np.int64, len(offsets))

    def pieces(self) -> Collection[str]:
        """Return the tokens that there are, as the vocabulary writes them."""
        return self._tokenizer.get_vocab().keys()  # type: ignore[no-any-return]


def _opened(path: Path, *, lowercase: bool) -> Any:
    from tokenizers import Tokenizer as HuggingFaceTokenizer
    from tokenizers.normalizers import Lowercase, Sequence

    tokenizer: Any = HuggingFaceTokenizer.from_file(str(path))
    if lowercase:
        first, own = Lowercase(), tokenizer.normalizer
        tokenizer.normalizer = first if own is None else Sequence([first, own])
    tokenizer.no_padding()
    return tokenizer
