"""Whether a tokenizer takes words one by one, so that a text's tokens are those of its words.

What is not known here is taken not to: then each chunk is tokenised as it stands.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

# They work on a character, or on those next to it within a word.
_LOCAL_NORMALIZERS = {"BertNormalizer", "NFC", "NFD", "NFKC", "NFKD", "Lowercase", "StripAccents"}
_LOCAL_NORMALIZERS |= {"Prepend", "Precompiled", "Nmt", "ByteLevel"}
_LOCAL_PRE_TOKENIZERS = {"BertPreTokenizer", "Whitespace", "WhitespaceSplit", "Metaspace"}
_LOCAL_PRE_TOKENIZERS |= {"ByteLevel", "Split", "Digits", "Punctuation", "UnicodeScripts"}
_AT_WHITE_SPACE = {"BertPreTokenizer", "Whitespace", "WhitespaceSplit"}
_REPLACED = re.compile(r".| \{2,\}", re.DOTALL)


def adds_up(described: dict[str, Any]) -> bool:
    """Tell whether words have their own tokens, unless one of the vocabulary's spans two.

    `described` is a `tokenizer.json`.
    """
    model, apart = described["model"], False
    for part in _parts(described.get("normalizer"), "normalizers"):
        replaced = part["type"] == "Replace" and _REPLACED.fullmatch(_pattern(part))
        if part["type"] not in _LOCAL_NORMALIZERS and not replaced:
            return False
    for part in _parts(described.get("pre_tokenizer"), "pretokenizers"):
        if part["type"] not in _LOCAL_PRE_TOKENIZERS:
            return False
        apart = apart or _parts_words(part)
    if model["type"] == "BPE":
        # Which pieces merge depends on what stands next to them alone, but for these.
        affixed = model.get("continuing_subword_prefix") or model.get("end_of_word_suffix")
        fused = model.get("fuse_unk") and not model.get("byte_fallback")
        return not model.get("dropout") and (apart or not (affixed or fused))
    return apart and model["type"] in ("WordPiece", "WordLevel", "Unigram")


def added_tokens(described: dict[str, Any]) -> re.Pattern[str] | None:
    """Return what finds in a text the tokens added to a vocabulary; text around them is apart."""
    added = described.get("added_tokens") or []
    found = [re.escape(token["content"]) for token in added if token["content"]]
    normalizers = [part["type"] for part in _parts(described.get("normalizer"), "normalizers")]
    if set(normalizers) - {"Prepend", "Replace", "Lowercase"} and any(
        token.get("normalized") for token in added
    ):
        # They are looked for in what the text has become, which other characters may become too.
        found.append(r"[^\x20-\x7e\s]")
    return re.compile("|".join(found), re.IGNORECASE) if found else None


def _parts(given: dict[str, Any] | None, within: str) -> Iterator[dict[str, Any]]:
    if given is None:
        return
    if given["type"] != "Sequence":
        yield given
        return
    for part in given[within]:
        yield from _parts(part, within)


def _pattern(part: dict[str, Any]) -> str:
    pattern = part.get("pattern") or {}
    return str(pattern.get("String") or pattern.get("Regex") or "")


def _parts_words(part: dict[str, Any]) -> bool:
    """Tell whether a pre-tokenizer parts each word from the white space behind it."""
    return (
        part["type"] in _AT_WHITE_SPACE
        or (part["type"] == "Metaspace" and part.get("split", True))
        or (part["type"] == "ByteLevel" and part.get("use_regex", True))
    )
