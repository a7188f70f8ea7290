"""Texts to token ids: special tokens, truncation, counts."""

from __future__ import annotations

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
        from tokenizers import Tokenizer as HuggingFaceTokenizer
        from tokenizers.normalizers import Lowercase, Sequence

        self._tokenizer: Any = HuggingFaceTokenizer.from_file(str(path))
        if lowercase:
            first = Lowercase()
            own = self._tokenizer.normalizer
            self._tokenizer.normalizer = first if own is None else Sequence([first, own])
        self._tokenizer.no_padding()
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
