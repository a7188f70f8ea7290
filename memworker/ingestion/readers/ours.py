"""How a file is recognised as one of ours: by what it holds, not by its name."""

from __future__ import annotations

import os
import re
from functools import partial

import msgspec

from memworker.ingestion.records import Reject

# In the order in which they are written; other programs' files do not begin so.
_REJECT_BEGINS = b'{"path":'
_LINE_BYTES = 1 << 20
# A line that was torn by a kill.
_TORN = re.compile(rb'\{"path":"(?:[^"\\]|\\.)*","line":\d+,"ordinal":\d+,"reason":"')
_decode = msgspec.json.Decoder(Reject).decode


class Ours(Exception):
    """What was found in a folder is one of our own files, and no input."""


def is_reject_list(path: str | os.PathLike[str]) -> bool:
    """Tell whether a file is a list of rejected rows, as our runs leave it, in every line."""
    try:
        with open(path, "rb") as file:
            lines = iter(partial(file.readline, _LINE_BYTES), b"")
            return all(
                is_reject(line[:-1]) if line.endswith(b"\n") else bool(_TORN.match(line))
                for line in lines
            )
    except OSError:
        return False


def begins_reject_list(head: bytes) -> bool:
    """Tell whether a text begins as such a list does."""
    if not head.startswith(_REJECT_BEGINS):
        return False
    first, newline, _ = head.partition(b"\n")
    return is_reject(first) if newline else bool(_TORN.match(first))


def is_reject(line: bytes) -> bool:
    """Tell whether a line is a rejected row as it is written, to the last byte."""
    try:
        return msgspec.json.encode(_decode(line)) == line
    except msgspec.MsgspecError:
        return False
