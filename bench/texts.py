"""The texts that benches measure on: a jsonl file, or the sample that memworker ships."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Iterator
from importlib.resources import files
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from memworker.errors import InputNotFound, MissingField, NoRows, UsageError
from memworker.models import ReadyModel


def read_texts(path: Path | None = None, limit: int | None = None) -> list[str]:
    """Read the first `limit` texts of a .jsonl or .jsonl.gz file, by default of the shipped sample.

    Raises InputNotFound, MissingField and NoRows.
    """
    path = path or shipped_sample()
    texts = [_text(row, path) for row in islice(read_jsonl(path), limit)]
    if not texts:
        raise NoRows(f"{path} holds no rows")
    return texts


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the objects of a .jsonl or .jsonl.gz file."""
    if not path.is_file():
        raise InputNotFound(f"no such file: {path}")
    with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as lines:
        for line in lines:
            yield json.loads(line)


def shipped_sample() -> Path:
    """Say where the 4,000 memory texts lie that the package ships."""
    return Path(str(files("memworker"))) / "data" / "memories.jsonl.gz"


def data_dir(given: Path | None) -> Path:
    """Find the reference data: `given`, else MEMWORKER_DATA."""
    named = given or os.environ.get("MEMWORKER_DATA")
    if not named:
        raise UsageError("this needs the reference data: --data DIR, or set MEMWORKER_DATA.")
    path = Path(named)
    if not path.is_dir():
        raise InputNotFound(f"no such folder of reference data: {path}")
    return path


def many_texts(count: int, path: Path | None = None) -> list[str]:
    """Take `count` different texts, repeating the file with a running number where it ends."""
    texts = read_texts(path, count)
    return [
        texts[row] if row < len(texts) else f"{texts[row % len(texts)]} ({row})"
        for row in range(count)
    ]


def token_counts(texts: list[str], model: ReadyModel) -> npt.NDArray[np.int64]:
    """Count what the model sees of each text, special tokens included; int64[n]."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(model.tokenizer))
    tokenizer.no_padding()
    tokenizer.enable_truncation(model.max_tokens)
    special = model.spec.add_special_tokens
    encoded = tokenizer.encode_batch_fast(texts, add_special_tokens=special)
    return np.array([len(row.ids) for row in encoded], np.int64)


def _text(row: dict[str, Any], path: Path) -> str:
    text = row.get("text")
    if not isinstance(text, str):
        raise MissingField(f"{path}: a row without a field 'text'; it has {sorted(row)}", list(row))
    return text
