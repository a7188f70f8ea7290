"""Filters over lists and objects in metadata, held against a plain reading in Python."""

from __future__ import annotations

import json
import random
from datetime import UTC, datetime

import pyarrow as pa
import pytest

from memworker.errors import FilterError
from memworker.store import Table
from tests.store.helpers import SPACE, batch

VALUES = [
    "x", "xy", ",", "a,", ",b", "]", "[", '"', '","', "\\", 'q"u\'o\\te', "{", "}", '{"k":"x"}',
    "é日本 😀", "", " ", "line\nbreak", "3", "3.0", "true", "null", "nan", "infinity", "12abc",
    "\x02", "%_", 3, 3.0, -3.5, 0, 1e300, 9007199254740993, True, False,
]  # fmt: skip
ROWS = [
    {"tags": ["work", "home"], "n": [1, 9], "when": ["2026-01-31T10:00:00Z", "2026-02-29"]},
    {"tags": "work", "n": 5, "when": "2026-02-01T00:00:00+05:00"},
    {"tags": [], "n": ["7", None, "x"], "when": ["2028-02-29T23:00:00-02:00", "soon"]},
    {"tags": [{"k": "work", "s": ["work"]}, ["deep", "er"], {"a": {"b": "work"}}], "n": {"a": 1}},
    {"author": {"name": "Ada", "works": {"year": 1843}}, "a.b": "flat", "a": {"b": "deep"}},
    {"author": "Ada", "a": {"b": "deep"}},
    {"tags": [True, None, 4], "author": [{"name": "Ada"}]},
    None,
]


def table_of(folder, rows):
    table = Table.create(folder, "t", SPACE)
    metadata = pa.array([None if row is None else json.dumps(row) for row in rows])
    texts = [(f"{i:03}", f"text {i}") for i in range(len(rows))]
    table.append(batch(texts, metadata_json=metadata))
    return table


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    return table_of(tmp_path_factory.mktemp("few"), ROWS)


@pytest.fixture(scope="module")
def lists():
    chance = random.Random(14)
    return [
        {"v": [chance.choice(VALUES) for _ in range(chance.randrange(5))]} for _ in range(200)
    ] + [{"v": [value]} for value in VALUES]


@pytest.fixture(scope="module")
def many(tmp_path_factory, lists):
    return table_of(tmp_path_factory.mktemp("many"), lists)


def found(table, where):
    return [int(name) for name in sorted(table.rows(where, columns=["id"])["id"].to_pylist())]


@pytest.mark.parametrize(
    ("where", "rows"),
    [
        ({"tags": "work"}, [0, 1]),
        ({"tags": {"contains": "work"}}, [0, 1]),
        ({"tags": {"contains": "or"}}, [0, 1]),
        ({"tags": {"in": ["home", "none"]}}, [0]),
        ({"tags": {"in": [4, "none"]}}, [6]),
        ({"tags": {"nin": ["work"]}}, [2, 3, 4, 5, 6, 7]),
        ({"tags": {"ne": "work"}}, [2, 3, 4, 5, 6, 7]),
        ({"NOT": {"tags": "home"}}, [1, 2, 3, 4, 5, 6, 7]),
        ({"tags": "deep"}, [3]),
        ({"tags": "k"}, []),
        ({"tags": True}, [6]),
        ({"tags": {"contains": 4}}, [6]),
        ({"tags": {"gt": "v"}}, [0, 1]),
        ({"tags": {"lt": "i"}}, [0, 3]),
        ({"n": {"gt": 6}}, [0, 2]),
        ({"n": {"gt": "6"}}, [0, 2]),
        ({"n": {"lt": 2}}, [0]),
        ({"n": {"gt": 2, "lt": 8}}, [0, 1, 2]),
        ({"n": 7}, [2]),
        ({"when": {"gt": datetime(2026, 2, 1, tzinfo=UTC)}}, [2]),
        ({"when": {"gte": "2026-01-31T19:00:00Z", "lt": "2026-01-31T19:00:01Z"}}, [0, 1]),
        ({"when": datetime(2026, 1, 31, 10, tzinfo=UTC)}, [0]),
        ({"when": datetime(2028, 3, 1, 1, tzinfo=UTC)}, [2]),
        ({"author.name": "Ada"}, [4]),
        ({"author.works.year": {"lt": 1900}}, [4]),
        ({"metadata.author.name": "Ada"}, [4]),
        ({"a.b": "flat"}, [4]),
        ({"a.b": "deep"}, [5]),
        ({"a.b": None}, [0, 1, 2, 3, 6, 7]),
    ],
)
def test_a_list_meets_what_one_of_its_values_meets(few, where, rows):
    assert found(few, where) == rows


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_any_value_is_found_in_the_lists_that_hold_it_alone(many, lists, value):
    held = [i for i, row in enumerate(lists) if any(same(each, value) for each in row["v"])]
    assert held
    assert found(many, {"v": value}) == held
    assert found(many, {"v": {"in": [value]}}) == held
    assert found(many, {"v": {"ne": value}}) == [i for i in range(len(lists)) if i not in held]
    if isinstance(value, str) and "\x02" not in value:
        inside = [i for i, row in enumerate(lists) if any(has(each, value) for each in row["v"])]
        assert found(many, {"v": {"contains": value}}) == sorted({*inside, *held})


@pytest.mark.parametrize("bound", [3, -3.5, 0.5, 1e300])
def test_numbers_in_lists_are_compared_as_numbers(many, lists, bound):
    over = [i for i, row in enumerate(lists) if any(n > bound for n in numbers(row["v"]))]
    under = [i for i, row in enumerate(lists) if any(n <= bound for n in numbers(row["v"]))]
    assert found(many, {"v": {"gt": bound}}) == over
    assert found(many, {"v": {"lte": bound}}) == under


def test_a_filter_that_cannot_match_says_what_to_write(few):
    with pytest.raises(FilterError, match=r"write 'author\.name'"):
        few.rows({"author": {"name": "Ada"}})
    with pytest.raises(FilterError, match="'in'"):
        few.rows({"tags": ["work", "home"]})
    assert "'author.name'" in few.note_on({"name": "Ada"})
    assert "'author.name'" in few.note_on({"author": "Bob"})
    assert few.note_on({"author.name": "Bob"}) == few.note_on({"tags": "none"}) == ""


def same(held, value):
    """Whether a value in a list equals another, by the one rule that all filters have."""
    if isinstance(value, bool) or isinstance(held, bool):
        return str(held).lower() == str(value).lower()
    if isinstance(value, str):
        return held == value or (type(held) in (int, float) and json.dumps(held) == value)
    return value in numbers([held])


def has(held, text):
    # Of a rare control character the escape is left as JSON has it.
    return isinstance(held, str) and text in held.replace("\x02", "\\u0002")


def numbers(values):
    for value in values:
        if isinstance(value, int | float) and not isinstance(value, bool):
            yield value
        elif value in ("3", "3.0"):
            yield float(value)
