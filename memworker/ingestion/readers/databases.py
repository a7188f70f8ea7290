"""Rows that a database gives for a query: SQLite by Python's own module, DuckDB by its package.

Databases are opened to be read, and asked one SELECT, whose rows are taken as they come.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from threading import Timer
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import numpy as np
import pyarrow as pa

from memworker.errors import InputError, UsageError
from memworker.ingestion.readers.addresses import TABLES
from memworker.ingestion.readers.checked import CheckedRows, ReadOptions, distinct
from memworker.ingestion.readers.columnar import checked_batches
from memworker.ingestion.readers.objects import ObjectRows

if TYPE_CHECKING:
    from memworker.ingestion.readers.paths import Source

# What a table file is called in a query that is asked of it.
_INPUT = "input"
_ALLOWED = frozenset(
    (sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE)
)


def read_rows(source: Source, options: ReadOptions) -> Iterator[ObjectRows | CheckedRows]:
    """Yield the rows of a query. Raises InputError and UsageError in the database's own words."""
    if source.format == "sqlite":
        return _of_sqlite(source, options)
    return _of_duckdb(source, options)


def _of_sqlite(source: Source, options: ReadOptions) -> Iterator[ObjectRows]:
    address = f"file:{quote(os.path.abspath(source.path))}?mode=ro"
    done = 0
    try:
        # Rows are read ahead by another thread than the first ones, one after the other.
        with closing(sqlite3.connect(address, uri=True, check_same_thread=False)) as database:
            database.text_factory = lambda raw: raw.decode(errors="surrogateescape")
            database.set_authorizer(_only_reads)
            found = database.execute(source.sql)
            if found.description is None:
                raise UsageError(_no_rows(source))
            names = distinct(source.path, [each[0] for each in found.description], options.fields)
            while rows := found.fetchmany(options.batch_rows):
                lines = np.arange(done + 1, done + len(rows) + 1, dtype=np.int64)
                done += len(rows)
                yield _sqlite_rows(names, rows, lines)
    except (sqlite3.Error, sqlite3.Warning) as error:
        raise InputError(_failed(source, done, error)) from error


def _sqlite_rows(names: list[str], rows: list[Any], lines: Any) -> ObjectRows:
    objects: list[Any] = [dict(zip(names, row, strict=True)) for row in rows]
    return ObjectRows(
        lines,
        objects,
        lambda i: repr(rows[i]).encode(errors="replace").decode(),
        not_utf8="is not valid UTF-8",
        header=names,
    )


def _only_reads(action: int, *_: Any) -> int:
    return sqlite3.SQLITE_OK if action in _ALLOWED else sqlite3.SQLITE_DENY


def _of_duckdb(source: Source, options: ReadOptions) -> Iterator[CheckedRows]:
    try:
        import duckdb
    except ImportError:
        raise UsageError(
            "DuckDB is not installed, which --sql needs for this input:"
            " pip install 'memworker[sql]'"
        ) from None
    done = 0
    try:
        with _opened(duckdb, source.path) as database:
            statements = database.extract_statements(source.sql)
            if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
                raise UsageError(_no_rows(source))
            batches = _batches(database.sql(source.sql), options.batch_rows)
            for rows in checked_batches(batches, options, path=source.path):
                done += rows.rows.num_rows
                yield rows
    except (duckdb.Error, pa.ArrowException) as error:
        raise InputError(_failed(source, done, error)) from error


def _batches(found: Any, rows: int) -> Any:
    """Give a reader of the rows as they come; versions of DuckDB call it by different names."""
    names = ("to_arrow_reader", "fetch_arrow_reader", "fetch_record_batch")
    reader = next(getattr(found, name) for name in names if hasattr(found, name))
    return reader(rows)


def _opened(duckdb: Any, path: str) -> Any:
    if not path.lower().removesuffix(".gz").removesuffix(".zst").endswith(TABLES):
        # Other files are out of a query's reach: it names none, and writes none.
        return duckdb.connect(path, read_only=True, config={"enable_external_access": False})
    database = duckdb.connect(":memory:")
    name = os.path.abspath(path).replace("'", "''")
    database.execute(f"CREATE VIEW {_INPUT} AS SELECT * FROM '{name}'")
    return database


def _no_rows(source: Source) -> str:
    return f"--sql takes one SELECT, which gives rows, and {source.sql[:80]!r} is none"


def _failed(source: Source, done: int, error: Exception) -> str:
    told = " ".join(str(error).split())
    where = f" after {done:,} rows" if done else ""
    hint = ""
    if "not authorized" in told or "prohibited" in told:
        hint = "; --sql takes one SELECT, and writes nothing"
    return f"{source.path}: the query failed{where}: {told}{hint}"


def count_rows(source: Source, seconds: float) -> int | None:
    """Have a database count the rows of a query; None where that takes longer. Raises InputError.

    The query was asked before, and gave rows.
    """
    query = f"SELECT count(*) FROM ({source.sql.strip().rstrip(';')})"
    if source.format == "sqlite":
        return _counted_by_sqlite(source, query, seconds)
    import duckdb

    with _opened(duckdb, source.path) as database:
        too_long = Timer(seconds, database.interrupt)
        too_long.start()
        try:
            return int(database.execute(query).fetchone()[0])
        except duckdb.Error:
            return None
        finally:
            too_long.cancel()
            too_long.join()


def _counted_by_sqlite(source: Source, query: str, seconds: float) -> int | None:
    end = time.monotonic() + seconds
    address = f"file:{quote(os.path.abspath(source.path))}?mode=ro"
    with closing(sqlite3.connect(address, uri=True)) as database:
        database.set_authorizer(_only_reads)
        database.set_progress_handler(lambda: time.monotonic() > end, 10_000)
        try:
            return int(database.execute(query).fetchone()[0])
        except sqlite3.Error:
            return None
