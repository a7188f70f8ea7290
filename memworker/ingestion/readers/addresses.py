"""Which database an input names, and of which kind it is."""

from __future__ import annotations

import os
import re
from typing import Any
from urllib.parse import unquote

from memworker.errors import InputError, InputNotFound, UsageError
from memworker.values import shown

_ADDRESS = re.compile(r"(sqlite|duckdb):(?:///?)?(.*)", re.S)
# By how their files begin: SQLite's at once, DuckDB's behind a checksum.
_SQLITE, _DUCKDB, _DUCKDB_AT = b"SQLite format 3\0", b"DUCK", 8
TABLES = (".parquet", ".csv", ".tsv", ".json", ".jsonl", ".ndjson")


def located(address: Any) -> tuple[str, str]:
    """Return which kind of database an address, or a file's path, names, and its path.

    Raises UsageError, InputNotFound.
    """
    text = os.fsdecode(address) if isinstance(address, str | bytes | os.PathLike) else ""
    match = _ADDRESS.fullmatch(text)
    kind, path = (match[1], unquote(match[2])) if match else ("", text)
    if not path or (not match and re.match(r"[A-Za-z][\w+.-]+://", text)):
        raise UsageError(
            f"--from (the input of sql=) names a database on this machine, such as"
            f" sqlite:///notes.db or duckdb:///notes.duckdb, not {shown(address)}"
        )
    path = os.path.expanduser(path)
    if not os.path.isfile(path):
        raise InputNotFound(f"{text}: no such database; there is no file {path}")
    kind = kind or _kind(path)
    if not kind:
        raise UsageError(
            f"{path} is no database of SQLite or DuckDB, and no table in {' '.join(TABLES)};"
            " leave --sql out to read it as it is"
        )
    return kind, path


def _kind(path: str) -> str:
    try:
        with open(path, "rb") as file:
            head = file.read(16)
    except OSError as error:
        raise InputError(f"{path} cannot be opened: {error.strerror}") from error
    if head.startswith(_SQLITE):
        return "sqlite"
    tables = path.lower().removesuffix(".gz").removesuffix(".zst").endswith(TABLES)
    return "duckdb" if head[_DUCKDB_AT:].startswith(_DUCKDB) or tables else ""
