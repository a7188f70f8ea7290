"""The containers that people bring: taken as they expect, or refused with the line that works."""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import json
import sqlite3
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest

from memworker import EmbeddingPool, Memory, Table, errors, ingest, values
from memworker.containers import NotTexts, rows_in, texts_in
from memworker.ingestion import embed_to_file

TEXTS = ["one", "two", "three"]
ROWS = [{"id": str(i), "text": text, "n": i} for i, text in enumerate(TEXTS)]
COLUMNS = {"id": ["0", "1", "2"], "text": TEXTS, "n": [0, 1, 2]}
Row = collections.namedtuple("Row", "id text n")


@dataclasses.dataclass
class Record:
    id: str
    text: str
    n: int


class Series:
    """As pandas' and polars' series: a dtype, a shape, and a way to a list."""

    dtype = "object"

    def __init__(self, values):
        self._values, self.shape = values, (len(values),)

    def tolist(self):
        return list(self._values)

    def __iter__(self):
        return iter(self._values)


class Frame:
    """As the frames of polars and of others: iterating gives columns, Arrow gives rows."""

    columns = list(COLUMNS)

    def __iter__(self):
        return iter(COLUMNS.values())

    def __arrow_c_stream__(self, requested_schema=None):
        return pa.table(COLUMNS).__arrow_c_stream__(requested_schema)


class LazyFrame:
    def collect(self):
        return Frame()


class Dataset:
    """As a data set of Hugging Face's: an iterable of dicts, with named columns."""

    column_names, features = list(COLUMNS), dict.fromkeys(COLUMNS)

    def __iter__(self):
        return iter(ROWS)


class Column:
    """As a column of a data set of Hugging Face's: neither a list nor an array."""

    source, column_name = Dataset(), "text"

    def __iter__(self):
        return iter(TEXTS)


class ObjectFrame(Frame):
    """As a frame of polars with Python objects, of which Arrow is given the addresses."""

    dtypes = ("String", "String", "Object")

    def to_dicts(self):
        return ROWS


async def coming():
    for text in TEXTS:
        yield text


def of_sqlite():
    connection = sqlite3.connect(":memory:")
    connection.row_factory = sqlite3.Row
    return connection.execute(
        "select '0' id, 'one' text, 0 n union select '1', 'two', 1 union select '2', 'three', 2"
    )


@pytest.fixture(scope="module")
def echo():
    with EmbeddingPool("echo", workers=1) as pool:
        yield pool


ARE_TEXTS = {
    "list": TEXTS,
    "tuple": tuple(TEXTS),
    "generator": lambda: iter(TEXTS),
    "values of a dict": dict(zip("abc", TEXTS, strict=True)).values(),
    "deque": collections.deque(TEXTS),
    "numpy": np.array(TEXTS),
    "numpy of objects": np.array(TEXTS, dtype=object),
    "series": Series(TEXTS),
    "string": pa.array(TEXTS),
    "large string": pa.array(TEXTS, pa.large_string()),
    "string view": pa.array(TEXTS, pa.string_view()),
    "dictionary": pa.array(TEXTS).dictionary_encode(),
    "dictionary of views": pa.DictionaryArray.from_arrays(
        [0, 1, 2], pa.array(TEXTS, pa.string_view())
    ),
    "run ends of views": pa.RunEndEncodedArray.from_arrays(
        [1, 2, 3], pa.array(TEXTS, pa.string_view())
    ),
    "run ends": pa.RunEndEncodedArray.from_arrays([1, 2, 3], TEXTS),
    "chunked": pa.chunked_array([TEXTS[:1], TEXTS[1:]]),
    "chunked dictionary": pa.chunked_array([pa.array(TEXTS).dictionary_encode()]),
}


def made(given):
    return given() if callable(given) else given


@pytest.mark.parametrize("given", ARE_TEXTS.values(), ids=ARE_TEXTS)
def test_texts_are_embedded_in_their_order(echo, given):
    expected = echo.embed(TEXTS)
    assert np.array_equal(echo.embed(made(given)), expected)


@pytest.mark.parametrize("given", ARE_TEXTS.values(), ids=ARE_TEXTS)
def test_texts_are_memories_in_their_order(echo, tmp_path, given):
    with Memory(tmp_path / "db", pool=echo) as memory:
        done = memory.add_batch(made(given), user_id="u")["results"]
    assert [each["memory"] for each in done] == TEXTS


@pytest.mark.parametrize("given", ARE_TEXTS.values(), ids=ARE_TEXTS)
def test_a_stream_of_texts_is_cut_into_batches(echo, given):
    batches = list(echo.embed_batches(made(given), batch_size=np.int64(2)))
    assert [batch for batch, _ in batches] == [TEXTS[:2], TEXTS[2:]]


NO_TEXTS = {
    "str": ("one", r"\[text\]"),
    "bytes": (b"one", r"\[text\]"),
    "dict": (dict.fromkeys(TEXTS), "a dict; pass list"),
    "set": (set(TEXTS), r"a set; which has no order; pass sorted"),
    "table": (pa.table(COLUMNS), r"a pyarrow Table; pass one of its columns.*\['text'\]"),
    "batch": (pa.RecordBatch.from_pydict(COLUMNS), "a pyarrow RecordBatch"),
    "reader": (lambda: pa.table(COLUMNS).to_reader(), "a pyarrow RecordBatchReader"),
    "frame": (Frame(), "Frame; pass one of its columns"),
    "lazy frame": (LazyFrame(), r"LazyFrame; pass a column of its rows.*collect\(\)"),
    "data set": (Dataset(), "Dataset; pass one of its columns"),
    "two dimensions": (np.array([TEXTS, TEXTS]), "2 dimensions"),
    "number": (7, "a int; for one text"),
    "coroutines'": (coming(), "async for"),
}


@pytest.mark.parametrize(("given", "told"), NO_TEXTS.values(), ids=NO_TEXTS)
def test_what_holds_no_texts_is_refused_by_its_name(given, told):
    with pytest.raises(NotTexts, match=told):
        texts_in(made(given))


@pytest.mark.parametrize("given", [pa.table(COLUMNS), Frame(), set(TEXTS), {"a": "b"}, "one", 7])
def test_every_door_for_texts_refuses_it(echo, tmp_path, given):
    with pytest.raises(TypeError, match="texts must be"):
        echo.embed(given)
    with pytest.raises(TypeError, match="texts must be"):
        echo.submit(given)
    with pytest.raises(TypeError, match="texts must be"):
        list(echo.embed_batches(given))
    with Memory(tmp_path / "db", pool=echo) as memory:
        with pytest.raises(errors.UsageError, match=r"add_batch\(\) takes a list"):
            memory.add_batch(given, user_id="u")


@pytest.mark.parametrize("bad", [["one", 2], np.array([1, 2]), Series(["one", float("nan")])])
def test_an_item_that_is_no_text_is_told_by_its_place(echo, bad):
    with pytest.raises(TypeError, match=r"texts\[[01]\] is (int|float), not str"):
        echo.embed(bad)


@pytest.mark.parametrize(
    "nulls", [pa.array(["a", None]), pa.DictionaryArray.from_arrays([0, 1], ["a", None])]
)
def test_a_null_among_texts_is_told(echo, nulls):
    with pytest.raises(TypeError, match="nulls; 1 found"):
        echo.embed(nulls)


ARE_ROWS = {
    "dicts": ROWS,
    "generator": lambda: iter(ROWS),
    "table": pa.table(COLUMNS),
    "batch": pa.RecordBatch.from_pydict(COLUMNS),
    "reader": lambda: pa.table(COLUMNS).to_reader(),
    "batches": [pa.RecordBatch.from_pydict(COLUMNS)],
    "frame": Frame(),
    "frames by chunks": lambda: iter([Frame()]),
    "data set": Dataset(),
    "named tuples": [Row(**row) for row in ROWS],
    "dataclasses": [Record(**row) for row in ROWS],
    "sqlite": of_sqlite,
    "structured array": np.array(
        [tuple(row.values()) for row in ROWS], [("id", "U9"), ("text", "U9"), ("n", "i4")]
    ),
    "mappings": [collections.ChainMap(row) for row in ROWS],
}


@pytest.mark.parametrize("given", ARE_ROWS.values(), ids=ARE_ROWS)
def test_rows_land_whole(echo, tmp_path, given):
    report = ingest(made(given), db=tmp_path / "db", table="t", pool=echo)
    assert (report.read, report.written, report.rejects) == (3, 3, None)
    rows = Table.open(tmp_path / "db", "t").rows(columns=["id", "text", "metadata"])
    assert rows["text"].to_pylist() == TEXTS
    assert rows["id"].to_pylist() == ["0", "1", "2"]
    assert rows["metadata"].to_pylist() == ['{"n":0}', '{"n":1}', '{"n":2}']


COLUMNS_OF_TEXTS = {
    "numpy": np.array(TEXTS),
    "series": Series(TEXTS),
    "arrow": pa.array(TEXTS),
    "column of a data set": Column(),
}


@pytest.mark.parametrize("given", COLUMNS_OF_TEXTS.values(), ids=COLUMNS_OF_TEXTS)
def test_a_column_of_texts_is_rows_and_no_list_of_paths(tmp_path, given):
    done = embed_to_file(given, tmp_path / "v.npy", model="echo", workers=1)
    assert done.embedded == 3 and np.load(tmp_path / "v.npy").shape[0] == 3


class Awaited:
    """Rows that coroutines wait for, of no generator."""

    def __init__(self):
        self.rows = iter(ROWS)

    def __aiter__(self):
        return self

    async def __anext__(self):
        await asyncio.sleep(0)
        try:
            return next(self.rows)
        except StopIteration:
            raise StopAsyncIteration from None


def test_rows_of_coroutines_are_waited_for(echo, tmp_path):
    closed = []

    async def arriving():
        try:
            for row in ROWS:
                await asyncio.sleep(0)
                yield row
        finally:
            closed.append(True)

    done = ingest(arriving(), db=tmp_path / "db", table="t", pool=echo)
    assert (done.read, done.written) == (len(ROWS), len(ROWS)) and closed == [True]
    assert ingest(Awaited(), db=tmp_path / "db", table="t", pool=echo).written == 0
    ended = ingest(arriving(), db=tmp_path / "db", table="u", pool=echo, limit=1)
    assert ended.written == 1 and closed == [True, True]


def test_rows_of_coroutines_that_end_in_an_error_raise_it(echo, tmp_path):
    async def failing():
        yield ROWS[0]
        raise RuntimeError("the feed broke")

    with pytest.raises(RuntimeError, match="the feed broke"):
        ingest(failing(), db=tmp_path / "db", table="t", pool=echo)


def test_a_loop_that_would_be_held_up_is_said(tmp_path):
    async def main():
        ingest(Awaited(), db=tmp_path / "db", table="t", model="echo")

    with pytest.raises(errors.UsageError, match=r"await asyncio.to_thread"):
        asyncio.run(main())
    assert not (tmp_path / "db").exists()


NO_ROWS = {
    "record": (ROWS[0], r"give \[record\]"),
    "columns": (COLUMNS, r"pyarrow.table\(columns\)"),
    "splits": ({"train": Dataset()}, r"data\['train'\]"),
    "lazy frame": (LazyFrame(), r"collect\(\)"),
    "number": (7, "iterable of records"),
    "object": (SimpleNamespace(), "iterable of records"),
    "texts": (["one text of words", "and another one"], r"\{'text': t\} for t in texts"),
    "words": (TEXTS, r"\{'text': t\} for t in texts"),
    "objects in a frame": (ObjectFrame(), r"'n' .* holds Python objects.*frame.to_dicts\(\)"),
}


@pytest.mark.parametrize(("given", "told"), NO_ROWS.values(), ids=NO_ROWS)
def test_what_holds_no_rows_is_refused_by_its_name(tmp_path, given, told):
    with pytest.raises((errors.UsageError, errors.InputNotFound), match=told):
        ingest(given, db=tmp_path / "db", table="t", model="echo")
    assert not (tmp_path / "db").exists()


def test_what_is_missing_is_told_as_that(tmp_path):
    rows = [{"text": float("nan")}, {"text": np.ma.masked}, {"text": "a", "id": np.ma.masked}]
    done = ingest(rows, db=tmp_path / "db", table="t", model="echo", workers=1)
    reasons = [json.loads(line)["reason"] for line in Path(done.rejects).read_text().splitlines()]
    assert [reason.partition(";")[0] for reason in reasons] == [
        "field 'text' is nan, as a missing value is",
        "field 'text' is null",
    ]
    assert done.written == 1


class Unwritable:
    def __repr__(self):
        raise RuntimeError("no words for it")


@pytest.mark.parametrize("bad", [10**5000, Unwritable()], ids=["digits", "repr"])
def test_a_value_that_cannot_be_written_out_costs_its_row(echo, tmp_path, bad):
    rows = [{"text": "a", "v": bad}, {"text": bad}, {"text": "a", "id": bad}, bad]
    rows += [{"text": "a", "m": {bad: 1}}, {"text": "a"}]
    done = ingest(rows, db=tmp_path / "db", table="t", pool=echo)
    assert (done.read, done.written, done.rejected) == (6, 1, 5)
    assert len(Path(done.rejects).read_text().splitlines()) == 5


@pytest.mark.parametrize("bad", [10**5000, Unwritable()], ids=["digits", "repr"])
def test_a_value_that_cannot_be_written_out_is_refused_as_any_other(echo, tmp_path, bad):
    with pytest.raises(TypeError, match="cannot be written"):
        echo.embed([bad])
    with Memory(tmp_path / "db", pool=echo) as memory:
        for door in (memory.get, memory.delete, memory.history, lambda x: memory.search(x)):
            with pytest.raises(errors.UsageError, match="cannot be written"):
                door(bad)
        with pytest.raises(errors.UsageError, match="cannot be written"):
            memory.add("a", user_id="u", metadata={bad: 1})
    for where in ({"db": bad, "table": "t"}, {"db": tmp_path, "table": bad}):
        with pytest.raises(errors.UsageError, match="cannot be written"):
            ingest([{"text": "a"}], pool=echo, **where)


def taken(frame):
    return pa.Table.from_batches(rows_in(frame))


def test_frames_of_pandas_lose_no_column_and_keep_their_index():
    pandas = pytest.importorskip("pandas")
    twice = pandas.DataFrame([["a", 1, "x"]], columns=["text", "n", "n"])
    assert taken(twice).schema.names == ["text", "n", "n"]
    same = pandas.DataFrame({"id": ["7"], "text": ["a"]}).set_index("id", drop=False)
    assert taken(same).to_pylist() == [{"id": "7", "text": "a"}]
    other = pandas.DataFrame({"n": [1]}, index=pandas.Index([2], name="n"))
    assert [each.to_pylist() for each in taken(other).columns] == [[2], [1]]


def test_pandas_own_types_are_taken_by_what_they_say():
    pandas = pytest.importorskip("pandas")
    months = pandas.PeriodIndex(["2024-01", None], freq="M")
    frame = pandas.DataFrame({"p": months, "s": pandas.arrays.SparseArray([0, 1])})
    assert taken(frame).to_pylist() == [{"p": "2024-01", "s": 0}, {"p": None, "s": 1}]
    assert values.plain(months[0]) == "2024-01"


def test_an_open_file_is_refused_with_its_path(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"text": "x"}\n')
    with (tmp_path / "x.jsonl").open() as file:
        with pytest.raises(errors.UsageError, match="give the path of a file"):
            rows_in(file)
