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

    def __init__(self, path: Path, max_tokens: int, *, add_special_tokens: bool = True) -> None:
        from tokenizers import Tokenizer as HuggingFaceTokenizer

        self._tokenizer: Any = HuggingFaceTokenizer.from_file(str(path))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(max_tokens)
        self._max_tokens = max_tokens
        self._special = add_special_tokens

    def __call__(self, texts: list[str]) -> tuple[list[list[int]], npt.NDArray[np.bool_]]:
        """Give token ids a text, and bool[n]: which texts were truncated."""
        encodings = self._tokenizer.encode_batch_fast(texts, add_special_tokens=self._special)
        ids = [encoding.ids for encoding in encodings]
        truncated = np.zeros(len(ids), np.bool_)
        for row, tokens in enumerate(ids):
            if len(tokens) == self._max_tokens:
                truncated[row] = bool(encodings[row].overflowing)
        return ids, truncated
