"""The headings of a Markdown text, and which of them a place stands under."""

from __future__ import annotations

import re
from bisect import bisect_left
from typing import NamedTuple

# A fence hides what looks like a heading in it.
_FENCE = re.compile(r"^ {0,3}(`{3,}|~{3,})")
_HEADING = re.compile(r"^ {0,3}(#{1,6})[ \t]+(.+?)[ \t]*#*[ \t]*$")


class Heading(NamedTuple):
    """A heading: where its line begins, its depth from 1 to 6, and the headings above it and it."""

    at: int
    path: tuple[str, ...]


def headings_of(text: str) -> list[Heading]:
    """Return the headings of a Markdown text, in order, those within fenced code left out."""
    found: list[Heading] = []
    above: list[tuple[int, str]] = []
    fence, at = "", 0
    for line in text.splitlines(keepends=True):
        if match := _FENCE.match(line):
            mark = match.group(1)
            if not fence:
                fence = mark
            elif mark[0] == fence[0] and len(mark) >= len(fence):
                fence = ""
        elif not fence and (match := _HEADING.match(line.rstrip("\r\n"))):
            depth = len(match.group(1))
            above = [(d, name) for d, name in above if d < depth] + [(depth, match.group(2))]
            found.append(Heading(at, tuple(name for _, name in above)))
        at += len(line)
    return found


def path_at(headings: list[Heading], place: int) -> tuple[str, ...]:
    """Return the headings that a place stands under: of those that begin before it, the last."""
    before = bisect_left(headings, place, key=lambda heading: heading.at)
    if not before:
        return ()
    return headings[before - 1].path
