"""What people bring texts and rows in: lists, arrays, series and frames of many libraries.

Each is taken as one expects, or refused by its type's name, with the line that works. No library
is asked for that a value did not come from.
"""

from __future__ import annotations

import asyncio
import dataclasses
import io
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterable, Iterator, Mapping
from typing import Any, NoReturn

import pyarrow as pa

from memworker.errors import UsageError

_ARROW_ROWS = (pa.Table, pa.RecordBatch, pa.RecordBatchReader)
_ARROW_COLUMN = (pa.Array, pa.ChunkedArray)
_ROWS_AT_ONCE = 8192
_END = object()


class NotTexts(TypeError):
    """What was given holds no texts that could be told one by one."""


def texts_in(given: Any) -> list[Any] | pa.Array | pa.ChunkedArray:
    """Return the texts of a list, an array, a series or any other iterable, in their order.

    Raises NotTexts for what is none, or would give something else than it looks like: of a
    frame or a dict the names, of a set any order.
    """
    if type(given) is list or isinstance(given, _ARROW_COLUMN):
        return given
    _must_be_texts(given)
    return _listed(given) if is_column(given) else list(given)


def stream_of(given: Any) -> Iterator[Any]:
    """Yield the texts that `texts_in` returns, without gathering them. Raises NotTexts at once."""
    if type(given) is list or isinstance(given, Iterator):
        return iter(given)
    if isinstance(given, _ARROW_COLUMN):
        return (text.as_py() for text in given)
    _must_be_texts(given)
    return iter(_listed(given) if is_column(given) else given)


def _must_be_texts(given: Any) -> None:
    if isinstance(given, str | bytes):
        raise NotTexts("texts must be a list of str; for one text pass [text]")
    if isinstance(given, Mapping):
        _refuse(given, "pass list(texts.values()), or the list under one of its keys")
    if _is_lazy(given):
        _refuse(given, "pass a column of its rows, such as texts.collect()['text']")
    if is_rows(given):
        _refuse(given, "pass one of its columns, such as texts['text']")
    if isinstance(given, set | frozenset):
        _refuse(given, "which has no order; pass sorted(texts)")
    if isinstance(given, AsyncIterable):
        _refuse(given, "gather it first: [text async for text in texts]")
    if not isinstance(given, Iterable) and not is_column(given):
        _refuse(given, "for one text pass [text]")


def rows_in(given: Any) -> Iterator[Any]:
    """Yield the rows of an iterable of rows: records and texts as they are, frames as batches.

    Frames may stand among the rows, as a reader by chunks gives them. Raises UsageError.
    """
    if isinstance(given, Mapping):
        raise UsageError(
            "give paths, or an iterable of records such as [{'text': …}], not one"
            f" {type(given).__name__}. {_of_a_mapping(given)}"
        )
    if is_rows(given) and not _is_dataset(given):
        return iter(batches_of(given))
    if is_column(given) or isinstance(given, _ARROW_COLUMN):
        return _flat(_listed(given))
    if isinstance(given, io.IOBase | io.TextIOBase):
        raise UsageError(f"give the path of a file, not an open one: {given!r:.100}")
    if isinstance(given, AsyncIterable):
        return _flat(_waited_for(given))
    if not isinstance(given, Iterable):
        raise UsageError(
            "give paths, or an iterable of records such as [{'text': …}], not one"
            f" {type(given).__name__}"
        )
    return _flat(given)


def _waited_for(given: AsyncIterable[Any]) -> Iterator[Any]:
    """Yield what coroutines give, on an event loop of its own. Raises UsageError within one."""
    if _within_a_loop():
        raise UsageError(
            f"{_a(given)} would be waited for by the event loop that this call holds up; call it in"
            " a thread: await asyncio.to_thread(memworker.ingest, rows, …)"
        )
    return _on_a_loop(given)


def _on_a_loop(given: AsyncIterable[Any]) -> Iterator[Any]:
    rows = aiter(given)

    async def following() -> Any:
        return await anext(rows, _END)

    with asyncio.Runner() as runner:
        try:
            while (row := runner.get_loop().run_until_complete(following())) is not _END:
                yield row
        finally:
            if isinstance(rows, AsyncGenerator):
                runner.run(rows.aclose())


def _within_a_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def is_rows(given: Any) -> bool:
    """Tell a frame, a table or a data set: something of named columns."""
    if isinstance(given, _ARROW_ROWS) or _is_dataset(given):
        return True
    if _is_lazy(given):
        return True
    named = hasattr(given, "columns") and not isinstance(given, type)
    return named and any(hasattr(given, way) for way in ("__arrow_c_stream__", "to_dict"))


def is_column(given: Any) -> bool:
    """Tell a column of values: a series, an index or an array of one library or another."""
    if isinstance(given, _ARROW_COLUMN) or _is_dataset_column(given):
        return True
    return hasattr(given, "dtype") and hasattr(given, "shape") and not is_rows(given)


def batches_of(frame: Any) -> Iterator[pa.RecordBatch]:
    """Yield a frame as Arrow batches, with the index where it has a name. Raises UsageError."""
    if _is_lazy(frame):
        raise UsageError(f"{_a(frame)} holds no rows yet; give frame.collect()")
    try:
        for batch in _arrow(frame):
            for at in range(0, batch.num_rows, _ROWS_AT_ONCE):
                yield batch.slice(at, _ROWS_AT_ONCE)
    except pa.ArrowException as error:
        its_rows = "to_dicts()" if hasattr(frame, "to_dicts") else "to_dict('records')"
        raise UsageError(
            f"{_a(frame)} cannot be read column by column: {error}. Give each column one type, or"
            f" give its rows: frame.{its_rows}"
        ) from error


def record_of(row: Any) -> Mapping[str, Any] | None:
    """Return a row with named fields as a mapping; None for what has none."""
    if isinstance(row, Mapping):
        return row
    if isinstance(row, tuple) and hasattr(row, "_asdict"):
        return dict(row._asdict())
    if dataclasses.is_dataclass(row) and not isinstance(row, type):
        return {each.name: getattr(row, each.name) for each in dataclasses.fields(row)}
    names = getattr(getattr(row, "dtype", None), "names", None)
    if names:
        return {name: row[name] for name in names}
    # As the rows of sqlite3 and of other databases have it; pydantic's models.
    if hasattr(row, "keys") and hasattr(row, "__getitem__"):
        return {name: row[name] for name in row.keys()}  # noqa: SIM118
    if hasattr(row, "model_dump"):
        return dict(row.model_dump())
    return None


def _arrow(frame: Any) -> Iterator[pa.RecordBatch]:
    if isinstance(frame, pa.RecordBatch):
        return iter([frame])
    if isinstance(frame, pa.Table):
        return iter(frame.to_batches())
    if isinstance(frame, pa.RecordBatchReader):
        return iter(frame)
    if type(frame).__module__.partition(".")[0] == "pandas":
        return iter(_of_pandas(frame).to_batches())
    if hasattr(frame, "__arrow_c_stream__"):
        _must_be_said(frame)
        return iter(pa.RecordBatchReader.from_stream(frame))
    return iter(pa.Table.from_pylist(frame.to_dict("records")).to_batches())


def _of_pandas(frame: Any) -> pa.Table:
    """Convert a frame of pandas with all its columns, also those of one name, and a named index."""
    if any(name is not None for name in frame.index.names):
        # An index without a name counts the rows, or what is left of them: no data.
        frame = _with_index(frame)
    names = [str(name) for name in frame.columns]
    if not frame.columns.is_unique:
        frame = frame.set_axis(range(len(names)), axis=1)
    for name, kind in frame.dtypes.items():
        convert = _ARROW_WANTS.get(type(kind).__name__)
        if convert is not None:
            frame = frame.copy(deep=False)
            frame[name] = convert(frame[name])
    return pa.Table.from_pandas(frame, preserve_index=False).rename_columns(names)


def _with_index(frame: Any) -> Any:
    """Give a frame with its index among its columns, where it is not one of them already."""
    names = list(frame.index.names)
    there = len(names) == 1 and list(frame.columns).count(names[0]) == 1
    if there and frame.index.equals(frame.set_index(names[0]).index):
        return frame
    return frame.reset_index(allow_duplicates=True)


# Of periods Arrow would keep the number alone, which says nothing without pandas.
_ARROW_WANTS: dict[str, Callable[[Any], Any]] = {
    "PeriodDtype": lambda column: column.astype("string"),
    "SparseDtype": lambda column: column.sparse.to_dense(),
}


def _must_be_said(frame: Any) -> None:
    """Raise UsageError for a frame whose columns of Python objects would go as their addresses."""
    kinds = getattr(frame, "dtypes", None) or []
    held = [name for name, kind in zip(frame.columns, kinds, strict=False) if str(kind) == "Object"]
    if held:
        raise UsageError(
            f"column {held[0]!r} of {_a(frame)} holds Python objects, which Arrow does not take;"
            " give its rows: frame.to_dicts()"
        )


def _is_lazy(given: Any) -> bool:
    return type(given).__name__ == "LazyFrame"


def _flat(rows: Iterable[Any]) -> Iterator[Any]:
    for row in rows:
        if type(row) is not dict and not isinstance(row, str) and is_rows(row):
            yield from batches_of(row)
        else:
            yield row


def _listed(column: Any) -> list[Any]:
    if isinstance(column, _ARROW_COLUMN):
        found: list[Any] = column.to_pylist()
        return found
    if _is_dataset_column(column):
        return list(column)
    if len(column.shape) != 1:
        _refuse(column, f"it has {len(column.shape)} dimensions where texts have one")
    names = getattr(column.dtype, "names", None)
    take = None if names else getattr(column, "tolist", None) or getattr(column, "to_list", None)
    return list(column) if take is None else list(take())


def _is_dataset(given: Any) -> bool:
    return hasattr(given, "column_names") and hasattr(given, "features")


def _is_dataset_column(given: Any) -> bool:
    return hasattr(given, "column_name") and hasattr(given, "source")


def _of_a_mapping(given: Mapping[Any, Any]) -> str:
    held = list(given.values())
    if held and all(map(_is_dataset, held)):
        return f"Give one of its splits, such as data[{next(iter(given))!r}]"
    if held and all(isinstance(value, list | tuple) or is_column(value) for value in held):
        return "For a dict of columns give pyarrow.table(columns)"
    return "For one record give [record]"


def _refuse(given: Any, instead: str) -> NoReturn:
    raise NotTexts(f"texts must be a list of str, not {_a(given)}; {instead}")


def _a(given: Any) -> str:
    kind = type(given)
    library = kind.__module__.partition(".")[0]
    whose = "" if library in ("builtins", "__main__", "collections") else f"{library} "
    return f"a {whose}{kind.__name__}"
