"""What a value given as data becomes: exactly what it was, in JSON's types, or a reason."""

from __future__ import annotations

import collections
import datetime as dt
import decimal
import enum
import fractions
import http
import json
import re
import uuid
import zoneinfo
from types import MappingProxyType

import numpy as np
import pyarrow as pa
import pytest

from memworker import arrow_values, values

BERLIN = zoneinfo.ZoneInfo("Europe/Berlin")


class Red(str, enum.Enum):  # noqa: UP042
    RED = "red"


class Words(enum.StrEnum):
    RED = "red"


class Plain(enum.Enum):
    ONE = 1


class Sly(str):
    """Text that says of itself that it is another."""

    __slots__ = ()

    def __str__(self):
        return "' OR true --"

    def replace(self, *_):
        return str(self)

    encode = __format__ = __repr__ = replace


class Odd(int):
    def __str__(self):
        return "1 OR true"

    __format__ = __repr__ = __str__


class PandasLike(dt.datetime):
    """As pandas' Timestamp: a datetime with nanoseconds."""

    nanosecond = 789

    def isoformat(self, *_):
        return "2020-01-02T03:04:05.123456789+00:00"


Point = collections.namedtuple("Point", "x y")
NAType = type("NAType", (), {"__module__": "pandas._libs.missing"})

KEPT = [
    (http.HTTPStatus.OK, 200),
    (Red.RED, "red"),
    (Words.RED, "red"),
    (Plain.ONE, 1),
    (Sly("x"), "x"),
    (Odd(7), 7),
    (True, True),
    (np.bool_(True), True),
    (np.int64(-3), -3),
    (np.uint64(2**64 - 1), 2**64 - 1),
    (np.float32(0.1), 0.10000000149011612),
    (np.float64(0.1), 0.1),
    (np.longdouble(0.5), 0.5),
    (np.str_("x"), "x"),
    (np.array([1, 2]), [1, 2]),
    (np.array(5), 5),
    (np.array([["2020-01-01"]], "M8[ns]"), [["2020-01-01T00:00:00"]]),
    (2**64 - 1, 2**64 - 1),
    (-(2**63), -(2**63)),
    (5e-324, 5e-324),
    (decimal.Decimal("1.10"), "1.10"),
    (uuid.UUID(int=5), "00000000-0000-0000-0000-000000000005"),
    (b"\xff\x00", "/wA="),
    (bytearray(b"x"), "eA=="),
    (memoryview(b"x"), "eA=="),
    (collections.OrderedDict(a=1), {"a": 1}),
    (collections.defaultdict(int, a=1), {"a": 1}),
    (MappingProxyType({"a": Point(1, 2)}), {"a": [1, 2]}),
    ({Red.RED: 1}, {"red": 1}),
    (collections.deque([1]), [1]),
    (NAType(), None),
    (pa.scalar(5), 5),
    (pa.scalar(None, pa.int8()), None),
    (pa.array([1, None]), [1, None]),
    (dt.datetime(2020, 1, 1), "2020-01-01T00:00:00"),
    (dt.datetime(2020, 1, 1, tzinfo=dt.UTC), "2020-01-01T00:00:00Z"),
    (dt.datetime(2020, 1, 1, 0, 0, 0, 5, BERLIN), "2020-01-01T00:00:00.000005+01:00"),
    (dt.datetime(1880, 1, 1, tzinfo=BERLIN), "1879-12-31T23:06:32Z"),
    (PandasLike(2020, 1, 2), "2020-01-02T03:04:05.123456789Z"),
    (dt.date(2020, 1, 1), "2020-01-01"),
    (dt.time(1, 2, 3, 4), "01:02:03.000004"),
    (dt.timedelta(days=1, seconds=7384, microseconds=500_000), "P1DT7384.5S"),
    (-dt.timedelta(seconds=1), "-PT1S"),
    (np.datetime64("2020-01-01T00:00:00.123456789"), "2020-01-01T00:00:00.123456789"),
    (np.datetime64("12020-01-01"), "+12020-01-01"),
    (np.datetime64("2020-05"), "2020-05"),
    (np.datetime64("NaT"), None),
    (np.timedelta64(5, "h"), "PT18000S"),
]


def named(value) -> str:
    """Give repr() without addresses: each lane of the suite must name a test alike."""
    return re.sub(r" at 0x\w+", "", repr(value))


@pytest.mark.parametrize(("value", "kept"), KEPT, ids=named)
def test_what_is_kept_is_kept_exactly(value, kept):
    found = values.plain({"v": value})["v"]
    assert (found, type(found)) == (kept, type(kept))
    assert json.loads(values.json_text({"v": value})) == {"v": kept}


BIG = [10**30, 2**64, -(2**63) - 1, Odd(2**64), 10**5000]
REFUSED = [
    *((big, "needs more than 64 bits") for big in BIG),
    (float("nan"), "is nan"),
    (float("-inf"), "is -inf"),
    (np.float32("inf"), "is inf"),
    (decimal.Decimal("NaN"), "no number in JSON"),
    (np.longdouble("0.1"), "no float of 64 bits"),
    (fractions.Fraction(1, 3), "Fraction"),
    (1j, "complex"),
    ({1, 2}, "no order"),
    ({1: 2}, "the key 1"),
    ("\ud800", "lone surrogate"),
    (object(), "object"),
    (np.datetime64(1, "ps"), "below a nanosecond"),
    (pa.scalar(float("nan")), "is nan"),
]


@pytest.mark.parametrize(("value", "reason"), REFUSED, ids=[str(i) for i in range(len(REFUSED))])
def test_what_cannot_be_kept_is_refused_by_its_field(value, reason):
    with pytest.raises(values.Unsayable, match=reason) as caught:
        values.plain({"a": [0, {"b": value}]})
    assert "a[1].b" in str(caught.value)
    assert not values.is_plain({"a": [value]}) or isinstance(value, str)


def test_what_holds_itself_is_refused():
    own: dict[str, object] = {}
    own["own"] = [own]
    with pytest.raises(values.Unsayable, match="nested deeper"):
        values.plain(own)
    assert not values.is_plain(own)


ARROW = [
    (pa.array([1577836800123456789, None], pa.timestamp("ns")), "2020-01-01T00:00:00.123456789"),
    (pa.array([0], pa.timestamp("ms", "Europe/Berlin")), "1970-01-01T01:00:00+01:00"),
    (pa.array([1], pa.timestamp("ns", "+05:30")), "1970-01-01T05:30:00.000000001+05:30"),
    (pa.array([0], pa.timestamp("s", "Mars/Base")), "1970-01-01T00:00:00Z"),
    (pa.array([10**15], pa.timestamp("s")), "+31690708-07-05T01:46:40"),
    (pa.array([-(10**15)], pa.timestamp("ms", "UTC")), "-29719-04-05T22:13:20Z"),
    (pa.array([10**7], pa.date32()), "+29349-01-26"),
    (pa.array([18262], pa.date32()), "2020-01-01"),
    (pa.array([dt.date(2020, 1, 1)], pa.date64()), "2020-01-01"),
    (pa.array([1], pa.time64("ns")), "00:00:00.000000001"),
    (pa.array([3600], pa.time32("s")), "01:00:00"),
    (pa.array([-1], pa.duration("ns")), "-PT0.000000001S"),
    (pa.array([(1, -15, 30)], pa.month_day_nano_interval()), "P1M-15DT0.00000003S"),
    (pa.array([decimal.Decimal("1.10")]), "1.10"),
    (pa.array(["a"]).dictionary_encode(), "a"),
    (pa.array(["a"], pa.string_view()), "a"),
    (pa.RunEndEncodedArray.from_arrays([1], [5]), 5),
    (pa.array([1.5], pa.float16()), 1.5),
    (
        pa.array(
            [{"t": 1, "x": [0, None]}],
            pa.struct({"t": pa.timestamp("ns"), "x": pa.list_(pa.date32())}),
        ),
        {"t": "1970-01-01T00:00:00.000000001", "x": ["1970-01-01", None]},
    ),
    (pa.array([[("a", 1)]], pa.map_(pa.string(), pa.time32("s"))), [["a", "00:00:01"]]),
    (pa.array([[0, 1]], pa.list_(pa.date32(), 2)), ["1970-01-01", "1970-01-02"]),
    (
        pa.ExtensionArray.from_storage(pa.uuid(), pa.array([bytes(15) + b"\7"], pa.binary(16))),
        "00000000-0000-0000-0000-000000000007",
    ),
]


@pytest.mark.parametrize(("column", "kept"), ARROW, ids=[str(column.type) for column, _ in ARROW])
def test_arrows_values_have_all_their_digits(column, kept):
    assert arrow_values.values_of(column)[0] == kept
    assert arrow_values.values_of(pa.concat_arrays([column, column]).slice(len(column)))[0] == kept
    assert values.plain(column[0]) == kept


def test_what_numpy_masks_is_missing():
    masked = np.ma.array([1, 2], mask=[0, 1])
    assert values.plain({"one": np.ma.masked, "all": masked}) == {"one": None, "all": [1, None]}


def test_a_slice_of_runs_of_views_is_that_slice():
    runs = pa.RunEndEncodedArray.from_arrays([1, 3], pa.array(["a", "b"], pa.string_view()))
    assert arrow_values.values_of(runs.slice(1, 1)) == ["b"]
    assert values.plain(runs[0]) == "a"


def test_the_same_time_is_the_same_text_whoever_brings_it():
    at = dt.datetime(2020, 1, 1, 2, 3, 4, 500_000)
    texts = {
        values.plain(at),
        values.plain(np.datetime64(at)),
        values.plain(np.datetime64(at, "ns")),
        *(values.plain(pa.scalar(at, pa.timestamp(unit))) for unit in ("ms", "us", "ns")),
    }
    assert texts == {"2020-01-01T02:03:04.500000"}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("x", "x"),
        (Red.RED, "red"),
        (Sly("x"), "x"),
        (7, "7"),
        (Odd(7), "7"),
        (http.HTTPStatus.OK, "200"),
        (np.int16(7), "7"),
        (10**30, str(10**30)),
        (7.0, "7"),
        (np.float64(7), "7"),
        (decimal.Decimal("7.0"), "7"),
        (uuid.UUID(int=5), "00000000-0000-0000-0000-000000000005"),
    ],
    ids=repr,
)
def test_ids(value, text):
    assert values.id_text(value) == text


@pytest.mark.parametrize(
    "value",
    [True, np.bool_(True), 1.5, 2.0**60, float("nan"), None, b"x", [], {}, 10**5000],
    ids=map(str, range(10)),
)
def test_what_is_no_id(value):
    with pytest.raises(values.Unsayable, match="must be a string or a whole number"):
        values.id_text(value)
