"""What int8 is calibrated on, as token ids of a model: shipped texts, and rare tokens."""

from __future__ import annotations

import gzip
import hashlib
import json
from functools import cache
from importlib.resources import files
from pathlib import Path

from memworker import interpreters
from memworker.errors import ModelUnsupported
from memworker.models.spec import ModelSpec

_TEXTS = 256
_MOST_TOKENS = 128
_TIMEOUT_S = 300.0
_LONE_TOKENS, _RARE_ROWS, _RARE_TOKENS = 64, 32, 16
_STRIDE = 2_654_435_761


def calibration_ids(spec: ModelSpec, tokenizer: Path) -> list[list[int]]:
    """Return the token ids of the calibration texts under a model's own tokenizer.

    Raises ModelUnsupported where the tokenizer cannot be opened.
    """
    job = {
        "texts": [spec.passage_prefix + text for text in calibration_texts()],
        "limit": min(spec.max_tokens, _MOST_TOKENS),
        "special": spec.add_special_tokens,
        "lowercase": spec.lowercase,
        "pairs": bool(spec.pair_width),
    }
    # In a process of its own: this one neither tokenises nor starts tokenizers' threads.
    command = interpreters.command(_TOKENISE, str(tokenizer))
    try:
        printed = interpreters.output(
            command,
            timeout_s=_TIMEOUT_S,
            given=json.dumps(job),
            TOKENIZERS_PARALLELISM="false",
        )
    except interpreters.Failed as failure:
        raise ModelUnsupported(
            f"{tokenizer} cannot be used: {failure}. If it is damaged, fetch it again."
        ) from failure
    ids: list[list[int]] = json.loads(printed)
    return [tokens for tokens in ids if tokens]


def calibration_facts(spec: ModelSpec) -> list[str]:
    """Say what of a model's settings the token ids depend on, where that is not the usual.

    A fingerprint has these settings of its own; but what was built before they changed is
    another graph.
    """
    limit = min(spec.max_tokens, _MOST_TOKENS)
    usual = not spec.passage_prefix and not spec.lowercase and limit == _MOST_TOKENS
    return [] if usual else [spec.passage_prefix, str(spec.lowercase), str(limit)]


def with_rare_tokens(texts: list[list[int]], vocabulary: int) -> list[list[int]]:
    """Add tokens from all over the vocabulary, alone and in rows, framed as the texts are.

    Ranges are fixed by what is seen here: the texts alone, English notes, would make them too
    narrow for a lone odd word or another language.
    """
    first, last = texts[0][:1], texts[0][-1:]
    if any(ids[:1] != first or ids[-1:] != last for ids in texts):
        first, last = [], []
    lone = range(0, vocabulary, max(vocabulary // _LONE_TOKENS, 1))
    # A stride that no vocabulary is a multiple of meets its tokens in no order of theirs.
    count = _RARE_ROWS * _RARE_TOKENS
    mixed = [(number * _STRIDE) % vocabulary for number in range(1, count + 1)]
    rows = [[token] for token in lone] + [mixed[start::_RARE_ROWS] for start in range(_RARE_ROWS)]
    return texts + [[*first, *row, *last] for row in rows]


@cache
def calibration_texts() -> tuple[str, ...]:
    """Return the fixed selection: every so many of the shipped memories."""
    return _every_so_many(0)


@cache
def measuring_texts() -> tuple[str, ...]:
    """Return others of the shipped memories, to measure on what int8 was not fitted to."""
    return _every_so_many(1)


def _every_so_many(half: int) -> tuple[str, ...]:
    """Return so many of the shipped memories; with `half`, those half way to the next."""
    packed = (files("memworker") / "data" / "memories.jsonl.gz").read_bytes()
    lines = gzip.decompress(packed).decode().splitlines()
    step = max(len(lines) // _TEXTS, 1)
    chosen = lines[half * (step // 2) :: step][:_TEXTS]
    return tuple(str(json.loads(line)["text"]) for line in chosen)


def calibration_digest() -> str:
    """Return one hash for the calibration texts: part of an int8 model's fingerprint."""
    return hashlib.sha256(json.dumps([_MOST_TOKENS, *calibration_texts()]).encode()).hexdigest()


_TOKENISE = """
import json, sys
from tokenizers import Tokenizer
job = json.load(sys.stdin)
tokenizer = Tokenizer.from_file(sys.argv[1])
tokenizer.no_padding()
tokenizer.enable_truncation(job["limit"])
texts = [text.lower() for text in job["texts"]] if job["lowercase"] else job["texts"]
texts = list(zip(texts, texts[1:])) if job["pairs"] else texts
encoded = tokenizer.encode_batch(texts, add_special_tokens=job["special"])
print(json.dumps([e.ids for e in encoded]))
"""
