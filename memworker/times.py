"""Times as text: RFC 3339 with every digit they have, whichever library they come from."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from functools import cache
from typing import Any
from zoneinfo import ZoneInfo

_NS = {"s": 10**9, "ms": 10**6, "us": 10**3, "ns": 1}
_DAY_NS = 86_400 * 10**9
_EPOCH = date(1970, 1, 1)
_OFFSET_OF_SECONDS = re.compile(r"[+-]\d\d:\d\d:\d\d(\.\d+)?\Z")
_FIXED = re.compile(r"([+-])(\d\d):?(\d\d)\Z")
# 400 years of the Gregorian calendar, after which it repeats.
_ERA_YEARS, _ERA_DAYS = 400, 146_097


def text(value: datetime | date | time | timedelta) -> str:
    """Write a time, a date, a time of day or a duration (as ISO 8601 has it: P1DT2.5S).

    A time without a zone stays one, for it names no moment. An offset with seconds, which
    RFC 3339 does not know, is written in UTC.
    """
    if isinstance(value, timedelta):
        whole = (value.days * 86_400 + value.seconds) * 10**6 + value.microseconds
        # pandas' Timedelta has digits beyond those of a timedelta.
        return duration(whole * 1000 + getattr(value, "nanoseconds", 0))
    if isinstance(value, datetime) and hasattr(value, "nanosecond"):
        return _zoned(str(value.isoformat()))
    if isinstance(value, datetime):
        told = datetime.isoformat(value)
        if value.tzinfo is not None and _OFFSET_OF_SECONDS.search(told):
            told = _in_utc(value)
        return _zoned(told)
    if isinstance(value, time):
        return _zoned(time.isoformat(value))
    return date.isoformat(value)


def moment(value: int, unit: str, zone: str | None = None) -> str:
    """Write a count of s, ms, us or ns since 1970, which is in UTC where there is a zone.

    The zone's offset is written where the zone is known here, else that of UTC. A year beyond
    9999, or before 1, has a sign, as ISO 8601 has it.
    """
    seconds, rest = divmod(value * _NS[unit], 10**9)
    found = None if zone is None else _zone(zone)
    try:
        at = datetime(1970, 1, 1, tzinfo=None if zone is None else UTC) + timedelta(0, seconds)
        at = at.astimezone(found) if found is not None else at
        told = datetime.isoformat(at)
        if _OFFSET_OF_SECONDS.search(told):
            told = _in_utc(at)
    except OverflowError:
        days, left = divmod(seconds, 86_400)
        told = f"{day(days)}T{of_day(left * 10**9)}" + ("" if zone is None else "Z")
    return _zoned(f"{told[: told.index('T') + 9]}{_fraction(rest)}{told[told.index('T') + 9 :]}")


def day(days: int) -> str:
    """Write a count of days since 1970; a year beyond 9999, or before 1, has a sign."""
    try:
        return date.isoformat(_EPOCH + timedelta(days))
    except OverflowError:
        eras, left = divmod(days + _EPOCH.toordinal() - 1, _ERA_DAYS)
        at = date.fromordinal(left + 1)
        year = at.year + eras * _ERA_YEARS
        return f"{'-' if year < 0 else '+'}{abs(year):04d}-{at.month:02d}-{at.day:02d}"


def of_day(nanoseconds: int) -> str:
    """Write a time of day."""
    seconds, rest = divmod(nanoseconds, 10**9)
    minutes, second = divmod(seconds, 60)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{second:02d}{_fraction(rest)}"


def duration(nanoseconds: int) -> str:
    """Write a length of time, as ISO 8601 has it."""
    days, rest = divmod(abs(nanoseconds), _DAY_NS)
    return ("-" if nanoseconds < 0 else "") + interval(0, days, rest)


def interval(months: int, days: int, nanoseconds: int) -> str:
    """Write a length of time in parts, for a month and a day are of no fixed length."""
    seconds, below = divmod(abs(nanoseconds), 10**9)
    sign = "-" if nanoseconds < 0 else ""
    of_a_day = f"T{sign}{seconds}{_fraction(below).rstrip('0')}S" if nanoseconds else ""
    told = f"{months}M" if months else ""
    told += f"{days}D" if days or not (months or nanoseconds) else ""
    return f"P{told}{of_a_day}"


def of_numpy(value: Any) -> str | None:
    """Write a numpy datetime64 or timedelta64; None for NaT. Raises ValueError without a unit."""
    import numpy as np

    if np.isnat(value):
        return None
    unit, step = np.datetime_data(value.dtype)
    count = int(value.astype(np.int64)) * step
    if value.dtype.kind == "m":
        if unit in ("Y", "M"):
            return interval(count * (12 if unit == "Y" else 1), 0, 0)
        return duration(_nanoseconds(count, unit))
    if unit in ("Y", "M"):
        return str(np.datetime_as_string(value))
    if unit in ("W", "D"):
        return day(count * (7 if unit == "W" else 1))
    return moment(_nanoseconds(count, unit), "ns")


def _nanoseconds(count: int, unit: str) -> int:
    finer = {"ps": 10**3, "fs": 10**6, "as": 10**9}
    if unit in finer:
        whole, rest = divmod(count, finer[unit])
        if rest:
            raise ValueError(f"a time in {unit} has digits below a nanosecond; round it")
        return whole
    coarse = {"W": 7 * _DAY_NS, "D": _DAY_NS, "h": 3600 * 10**9, "m": 60 * 10**9} | _NS
    if unit not in coarse:
        raise ValueError("a time without a unit is none; give it one")
    return count * coarse[unit]


def _fraction(nanoseconds: int) -> str:
    """Write what is below a second, as Python does, and with the nanoseconds where there are."""
    if not nanoseconds:
        return ""
    return f".{nanoseconds // 1000:06d}" if nanoseconds % 1000 == 0 else f".{nanoseconds:09d}"


def _in_utc(value: datetime) -> str:
    # Not datetime.astimezone: a subclass may answer with something of its own.
    offset = value.utcoffset() or timedelta(0)
    bare = datetime(*value.timetuple()[:6], value.microsecond)
    return datetime.isoformat((bare - offset).replace(tzinfo=UTC))


def _zoned(told: str) -> str:
    return told.removesuffix("+00:00") + "Z" if told.endswith("+00:00") else told


@cache
def _zone(name: str) -> tzinfo | None:
    if fixed := _FIXED.match(name):
        sign, hours, minutes = fixed.groups()
        offset = timedelta(hours=int(hours), minutes=int(minutes))
        return timezone(-offset if sign == "-" else offset)
    try:
        return ZoneInfo(name)
    except (ValueError, OSError, KeyError):
        return None
