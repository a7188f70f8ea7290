"""Filters against a real table: each value is data, whatever it looks like."""

from __future__ import annotations

import enum
import http
import json
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pytest

from memworker.errors import FilterError
from memworker.store import Table, parse_where
from memworker.store.filters import OPERATORS, to_sql
from tests.store.helpers import SPACE, batch

NASTY = [
    "x' OR '1'='1",
    "'; DROP TABLE t; --",
    'double "quoted"',
    "back\\slash \\' \\\\ \\n",
    "100% under_score",
    "NUL\0inside",
    "line\nbreak\ttab\r",
    "naïve 日本語 😀 \u202e bidi",
    "--comment /* */ ?1 $1 {x}",
    "",
    " ",
]

# With one value in the list; a number contains itself alone.
SAME = ({"eq", "in", "contains"}, {"ne", "nin"})

METADATA = [
    {"n": 3, "tag": "a"},
    {"n": "3", "tag": "b"},
    {"n": 3.5, "tag": "a", "flag": True},
    {"n": True, "flag": False},
    {"n": None},
    {},
    None,
    {"n": [3], "tag": {"a": 1}},
    {"n": 9007199254740993, "a.b": "dotted", "text": "shadowed", "q\"u'o\\te": 1},
]


@pytest.fixture(scope="module")
def nasty(tmp_path_factory):
    table = Table.create(tmp_path_factory.mktemp("db"), "nasty", SPACE)
    metadata = pa.array([json.dumps({"v": text}) for text in NASTY])
    rows = [(f"id{i}", text) for i, text in enumerate(NASTY)]
    table.append(batch(rows, scopes={"user_id": pa.array(NASTY)}, metadata_json=metadata))
    return table


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    table = Table.create(tmp_path_factory.mktemp("db"), "mixed", SPACE)
    metadata = pa.array([None if m is None else json.dumps(m) for m in METADATA])
    times = pa.array([datetime(2026, 1, 1 + i, tzinfo=UTC) for i in range(len(METADATA))])
    expires = pa.array([None] * 8 + [datetime(2026, 6, 1)], pa.timestamp("us", "UTC"))
    rows = [(str(i), f"text {i}") for i in range(len(METADATA))]
    table.append(batch(rows, metadata_json=metadata, created_at=times, expires_at=expires))
    return table


def found(table, where):
    return sorted(table.rows(where, columns=["id"])["id"].to_pylist())


@pytest.mark.parametrize("i", range(len(NASTY)))
@pytest.mark.parametrize("field", ["text", "user_id", "v"])
def test_any_text_finds_itself_alone(nasty, field, i):
    value = NASTY[i]
    assert found(nasty, {field: value}) == [f"id{i}"]
    assert found(nasty, {field: {"in": [value]}}) == [f"id{i}"]
    assert len(found(nasty, {field: {"ne": value}})) == len(NASTY) - 1
    assert len(found(nasty, {field: {"nin": [value]}})) == len(NASTY) - 1
    contains = {f"id{j}" for j, text in enumerate(NASTY) if value in text}
    if field != "v" or "\0" not in value:
        assert set(found(nasty, {field: {"contains": value}})) == contains


def test_wildcards_are_plain_characters(nasty):
    assert found(nasty, {"text": {"contains": "%"}}) == ["id4"]
    assert found(nasty, {"v": {"contains": "_"}}) == ["id4"]
    assert found(nasty, {"v": {"contains": "n"}}) == sorted(
        f"id{i}" for i, text in enumerate(NASTY) if "n" in text
    )


def test_order_of_metadata_texts(nasty):
    for bound in NASTY:
        above = sorted(f"id{i}" for i, text in enumerate(NASTY) if text > bound)
        assert [i for i in found(nasty, {"v": {"gt": bound}}) if i != "id5"] == [
            i for i in above if i != "id5"
        ]


@pytest.mark.parametrize(
    ("where", "ids"),
    [
        ({"n": 3}, "017"),
        ({"n": 3.0}, "017"),
        ({"n": "3"}, "017"),
        ({"n": True}, "3"),
        ({"n": None}, "456"),
        ({"n": {"gt": 3}}, "28"),
        ({"n": {"gte": 3, "lt": 4}}, "0127"),
        ({"n": {"lte": -1e300}}, ""),
        ({"n": 9007199254740993}, "8"),
        ({"n": 9007199254740992 + 2}, ""),
        ({"n": {"ne": 3}}, "234568"),
        ({"n": {"in": [3, "3", True]}}, "0137"),
        ({"n": {"in": []}}, ""),
        ({"n": {"nin": []}}, "012345678"),
        ({"tag": {"in": ["a", "b"]}}, "012"),
        ({"flag": False}, "3"),
        ({"a.b": "dotted"}, "8"),
        ({"metadata.text": "shadowed"}, "8"),
        ({"q\"u'o\\te": 1}, "8"),
        ({}, "012345678"),
        ({"NOT": {"tag": "a"}}, "1345678"),
        ({"NOT": [{"tag": "a"}, {"tag": "b"}]}, "345678"),
        ({"OR": [{"tag": "b"}, {"n": 3, "tag": "a"}]}, "01"),
        ({"AND": [{"tag": "a"}, {"NOT": {"OR": [{"n": 3}]}}]}, "2"),
        ({"created_at": {"gt": "2026-01-08T00:00:00Z"}}, "8"),
        ({"created_at": datetime(2026, 1, 2)}, "1"),
        ({"created_at": {"in": ["2026-01-01", "2026-01-03T01:00:00+01:00"]}}, "02"),
        ({"expires_at": None}, "01234567"),
        ({"expires_at": {"ne": None}}, "8"),
        ({"user_id": None}, "012345678"),
    ],
)
def test_meaning(mixed, where, ids):
    assert "".join(found(mixed, where)) == ids
    assert mixed.count(where) == len(ids)


@pytest.mark.parametrize(
    "where",
    [
        {"user_id": {"like": "a%"}},
        {"user_id": {"$gt": 1}},
        {"user_id": 3},
        {"user_id": {}},
        {"n": {"gt": [1]}},
        {"n": {"gt": True}},
        {"n": float("nan")},
        {"n": {"lt": float("inf")}},
        {"n": {"contains": datetime(2026, 1, 1)}},
        {"n": {"in": "abc"}},
        {"n": b"bytes"},
        {"vector": [1.0]},
        {"": 1},
        {3: 1},
        {"created_at": "yesterday"},
        {"created_at": 3},
        {"created_at": {"contains": "2026"}},
        {"OR": []},
        {"OR": {"a": 1}},
        {"AND": 3},
        {"text": "lone \ud800 surrogate"},
        {"k\ud800": 1},
        {"v": {"in": ["\ud800"]}},
        "user_id = 'a'",
    ],
)
def test_what_cannot_be_said_is_refused(where):
    with pytest.raises(FilterError):
        to_sql(where)


def test_depth_and_width_are_bounded(mixed):
    deep = {"n": 3}
    for _ in range(30):
        deep = {"NOT": deep}
    assert found(mixed, deep) == ["0", "1", "7"]
    for _ in range(10):
        deep = {"NOT": deep}
    with pytest.raises(FilterError, match="nested"):
        to_sql(deep)
    with pytest.raises(FilterError, match="at most"):
        to_sql({"n": {"in": list(range(1000))}})
    assert found(mixed, {"tag": {"in": ["b", *map(str, range(2000))]}}) == ["1"]


AS_TEXT = [
    {"year": "2020", "ok": "True", "at": "2024-01-01", "p": "1.50", "big": "9007199254740993"},
    {"year": "2021", "ok": "false", "at": "2024-01-01T01:00:00+01:00", "p": "nan"},
    {"year": " 2022 ", "ok": "TRUE", "at": "2024-01-01T00:00:00.000001Z", "p": "inf"},
    {"year": 2023, "ok": True, "at": "yesterday", "p": "-1e3", "big": 9007199254740993},
    {"year": 2024.5, "ok": "yes", "at": 20240101, "p": "0x10"},
    {"year": "20240", "ok": "1", "at": None, "p": ""},
]


@pytest.fixture(scope="module")
def as_text(tmp_path_factory):
    table = Table.create(tmp_path_factory.mktemp("db"), "as_text", SPACE)
    rows = [(str(i), f"text {i}") for i in range(len(AS_TEXT))]
    table.append(batch(rows, metadata_json=pa.array(map(json.dumps, AS_TEXT))))
    return table


class Words(enum.StrEnum):
    YEAR = "year"
    VALUE = "2021"


class Odd(int):
    def __str__(self):
        return "1) OR (true"

    __repr__ = __str__

    def __format__(self, _):
        return str(self)


NEW_YEAR = datetime(2024, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("where", "ids"),
    [
        ({"year": 2021}, "1"),
        ({"year": "2021"}, "1"),
        ({"year": 2023}, "3"),
        ({"year": "2023"}, "3"),
        ({"year": {"in": ["2023", "2020"]}}, "03"),
        ({"year": {"in": [2023, 2020]}}, "03"),
        ({"year": {"ne": 2021}}, "02345"),
        ({"year": {"gt": 2020, "lte": 2023}}, "123"),
        ({"year": {"gt": "2022"}}, "345"),
        ({"ok": True}, "023"),
        ({"ok": False}, "1"),
        ({"ok": "true"}, "3"),
        ({"p": 1.5}, "0"),
        ({"p": {"gt": -1e9}}, "03"),
        ({"p": Decimal("1.5")}, "0"),
        ({"big": 9007199254740993}, "03"),
        ({"big": "9007199254740993"}, "03"),
        ({"big": 9007199254740992}, ""),
        ({"big": Odd(9007199254740993)}, "03"),
        ({"at": "2024-01-01"}, "0"),
        ({"at": NEW_YEAR}, "01"),
        ({"at": date(2024, 1, 1)}, "01"),
        ({"at": {"gt": NEW_YEAR}}, "2"),
        ({"at": {"gte": "2024-01-01T00:00:00Z"}}, "0123"),
        ({"at": {"lt": np.datetime64("2024-01-02")}}, "012"),
        ({Words.YEAR: Words.VALUE}, "1"),
        ({"year": np.int64(2021)}, "1"),
        ({"year": {"gte": np.float32(2023)}}, "345"),
        ({"year": http.HTTPStatus.OK}, ""),
        ({"year": {"lt": 10**40}}, "012345"),
        ({"id": np.str_("3")}, "3"),
        ({"id": {"in": (np.str_("3"), Words.VALUE)}}, "3"),
        ({"created_at": {"gt": np.datetime64("2020-01-01")}}, "012345"),
        ({"created_at": {"gt": date(2020, 1, 1)}}, "012345"),
    ],
    ids=str,
)
def test_typed_values_meet_untyped_text(as_text, where, ids):
    assert "".join(found(as_text, where)) == ids


@pytest.mark.parametrize(
    "where",
    [
        {"n": 10**400},
        {"n": {"gt": 10**400}},
        {"n": np.float64("nan")},
        {"n": Decimal("Infinity")},
        {"n": 1j},
        {"n": {"eq": {1, 2}}},
        {"created_at": {"gt": datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=5)))}},
    ],
    ids=str,
)
def test_values_that_no_field_has_are_refused(where):
    with pytest.raises(FilterError):
        to_sql(where)


def test_parse_where(mixed):
    assert parse_where([]) == {}
    assert parse_where(["user_id=42", "n=3", "s=a=b", 'q="3"', "b=True", "z=null", "nan=NaN"]) == {
        "AND": [
            {"user_id": {"eq": "42"}},
            {"n": {"eq": 3}},
            {"s": {"eq": "a=b"}},
            {"q": {"eq": "3"}},
            {"b": {"eq": True}},
            {"z": {"eq": None}},
            {"nan": {"eq": "NaN"}},
        ]
    }
    assert found(mixed, parse_where(["n>=3", "n<4", "tag!=b"])) == ["0", "2", "7"]
    assert found(mixed, parse_where(["text~text 8", "metadata.text~shadow"])) == ["8"]
    assert found(mixed, parse_where(["created_at>2026-01-08T00:00:00Z"])) == ["8"]
    for bad in ["user_id", "=3", ""]:
        with pytest.raises(FilterError, match="FIELD=VALUE"):
            parse_where([bad])


@pytest.mark.parametrize("operator", OPERATORS)
def test_each_kind_of_field_has_sql_of_its_own_for_an_operator_or_refuses_it(operator):
    for field, value in (("user_id", "a"), ("created_at", datetime.now(UTC)), ("n", 3), ("n", "a")):
        conditions = {}
        for each in OPERATORS:
            listed = [value] if each in ("in", "nin") else value
            try:
                conditions[each] = to_sql({field: {each: listed}})
            except FilterError:
                pass
        others = {
            sql
            for each, sql in conditions.items()
            if each != operator and not any({each, operator} <= same for same in SAME)
        }
        assert conditions.get(operator) not in others
