"""How long texts are cut into chunks, as callers say it and as a table remembers it."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from memworker.errors import UsageError
from memworker.values import shown, whole

MODEL = "model"
# Less than that is no passage, and a character may take four tokens.
_LEAST_TOKENS = 8
# By which rule texts are cut, and ids made. Another rule cuts the same texts elsewhere.
_RULE = 1


@dataclass(frozen=True, slots=True)
class Chunking:
    """Chunks of at most `tokens` tokens, special ones and prefixes included.

    0 tokens are what the model takes. `overlap` is how many tokens, at most, a chunk
    repeats of the one before. `contextual` puts title and headings before each chunk for its
    embedding. `markdown` is whether texts are read as Markdown: None goes by the files' names.
    """

    tokens: int = 0
    overlap: int = 0
    contextual: bool = False
    markdown: bool | None = None

    def __post_init__(self) -> None:
        tokens, overlap = whole(self.tokens), whole(self.overlap)
        if tokens is None or (tokens != 0 and tokens < _LEAST_TOKENS):
            raise UsageError(
                f"chunk (--chunk) needs at least {_LEAST_TOKENS} tokens, not {shown(self.tokens)};"
                f" {MODEL!r} stands for as many as the model takes"
            )
        if overlap is None or overlap < 0:
            raise UsageError(
                f"overlap (--overlap) is a whole number of tokens, not {shown(self.overlap)}"
            )
        object.__setattr__(self, "tokens", tokens)
        object.__setattr__(self, "overlap", overlap)
        if tokens:
            self._check_overlap()

    def for_model(self, max_tokens: int) -> Chunking:
        """Say it with numbers, for a model that takes `max_tokens`. Raises UsageError."""
        if self.tokens > max_tokens:
            raise UsageError(
                f"chunks of {self.tokens} tokens are longer than the {max_tokens} that the model"
                f" takes; give --chunk {max_tokens} at most, or {MODEL!r}"
            )
        return replace(self, tokens=self.tokens or max_tokens)

    def facts(self) -> str:
        """Write what a table remembers of it, as JSON."""
        facts = {"tokens": self.tokens, "overlap": self.overlap, "contextual": self.contextual}
        return json.dumps({**facts, "rule": _RULE})

    @classmethod
    def of_facts(cls, facts: str) -> Chunking:
        """Read what `facts` has written. Raises ValueError, KeyError."""
        told = json.loads(facts)
        return cls(int(told["tokens"]), int(told["overlap"]), bool(told["contextual"]))

    def same_as(self, other: Chunking) -> bool:
        """Tell whether both give the same chunks of the same texts."""
        return self.facts() == other.facts()

    def told(self) -> str:
        """Say it as the options do."""
        overlap = f" --overlap {self.overlap}" if self.overlap else ""
        return f"--chunk {self.tokens}{overlap}{' --contextual' if self.contextual else ''}"

    def _check_overlap(self) -> None:
        if self.overlap >= self.tokens:
            raise UsageError(
                f"overlap (--overlap) of {self.overlap} tokens leaves nothing new in chunks of"
                f" {self.tokens}; say one below --chunk"
            )


ChunkGiven: TypeAlias = "int | str | Chunking | None"


def chunking_of(
    given: Any, overlap: int | None = None, contextual: bool | None = None
) -> Chunking | None:
    """Read `chunk=`: a number of tokens, "model", a `Chunking`, or None; and what goes with it.

    Raises UsageError.
    """
    if given is None:
        if overlap or contextual:
            name = "overlap" if overlap else "contextual"
            raise UsageError(
                f"{name} (--{name}) says how texts are cut, and chunk (--chunk) that they are:"
                " give both"
            )
        return None
    cut = given if isinstance(given, Chunking) else Chunking(_tokens(given))
    if overlap is not None:
        cut = replace(cut, overlap=overlap)
    return cut if contextual is None else replace(cut, contextual=contextual)


def _tokens(given: Any) -> int:
    if given == MODEL:
        return 0
    if isinstance(given, str) and given.isascii() and given.isdigit():
        given = int(given)
    tokens = None if isinstance(given, bool | str) else whole(given)
    if not tokens:
        raise UsageError(
            f"chunk (--chunk) is a number of tokens, or {MODEL!r} for as many as the model takes,"
            f" not {shown(given)}"
        )
    return tokens
