"""Conditions on metadata fields that hold lists: met where any of the values meets them.

A list is looked at as the JSON text that it is, taken apart by one pass over its tokens, since
a character that parts values may stand inside a text too. Objects in it are left out, lists in
it count as the one around them. A range is met where one value is above its lower end and one,
perhaps another, below its upper: what MongoDB does too.
"""

from __future__ import annotations

from collections.abc import Sequence

from memworker.store import literals

_INSIDE = r'(?:[^"\\]|\\.)*'
_TEXT = f'"{_INSIDE}"'
_BARE = r'[^",\[\]]+'
_GLUE = r"[\[\],]+"
_NUMBER = r"-?[0-9]+(?:[.][0-9]+)?(?:[eE][+-]?[0-9]+)?"
# Only what is a time for sure: one that the cast refused would fail the whole query.
_DAY = (
    r"(?:[0-9]{4}-(?:(?:0[1-9]|1[0-2])-(?:0[1-9]|1[0-9]|2[0-8])|(?:0[13-9]|1[0-2])-(?:29|30)"
    r"|(?:0[13578]|1[02])-31)"
    r"|(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:[02468][048]|[13579][26])00)-02-29)"
)
_CLOCK = r"(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:[.][0-9]{1,6})?"
_TIME = rf"{_DAY}(?:[T ]{_CLOCK}(?:Z|[+-](?:0[0-9]|1[0-4]):[0-5][0-9])?)?"
# JSON text holds no raw control character.
_PART = "\x02"
_DEEPEST = 2


def any_of(field: str, forms: Sequence[str]) -> str:
    """Return the condition that a value of the list has one of these JSON texts (SQL literals)."""
    values = _parts(field, f"({_TEXT}|{_BARE})")
    return _of_list(field, f"array_has_any({values}, make_array({', '.join(forms)}))")


def any_number(field: str, sign: str, number: str) -> str:
    """Return the condition that a number, or a text that reads as one, stands so to `number`."""
    numbers = _cast(_parts(field, f'"({_NUMBER})"|({_NUMBER})', groups=2), "Float64")
    return _of_list(field, _any(numbers, sign, number))


def any_time(field: str, sign: str, time: str) -> str:
    """Return the condition that a text that is a time stands so to `time`."""
    times = _cast(_parts(field, f'"({_TIME})"'), "Timestamp(Microsecond, None)")
    return _of_list(field, _any(times, sign, f"arrow_cast({time}, 'Timestamp(Microsecond, None)')"))


def any_text(field: str, sign: str, text: str, *, but_times: bool) -> str:
    """Return the condition that a text stands so to another; `but_times`: one that is no time."""
    times = f'"{_TIME}"|' if but_times else ""
    # The quote stays before each text, so that an empty one is not taken for none.
    marked = unescaped(_marked(field, f'{times}("{_INSIDE})"', groups=1))
    texts = f"array_remove_all(string_to_array({marked}, '{_PART}'), '')"
    return _of_list(field, _any(texts, sign, literals.text(f'"{text}')))


def any_containing(field: str, text: str) -> str:
    """Return the condition that a text has another in it."""
    if not text or _PART in text:
        # Any text has an empty one in it, and JSON escapes a control character.
        return "false" if text else any_text(field, ">=", "", but_times=False)
    texts = unescaped(_marked(field, f'"({_INSIDE})"', groups=1))
    return _of_list(field, f"contains({texts}, {literals.text(text)})")


def unescaped(sql: str) -> str:
    """Undo JSON's escapes, but for those of rare control characters."""
    # JSON text holds no raw control character, so U+0001 can stand for a backslash meanwhile.
    escapes = [("\\\\", "\x01"), ('\\"', '"'), ("\\n", "\n"), ("\\r", "\r"), ("\\t", "\t")]
    for escaped, plain in [*escapes, ("\x01", "\\")]:
        sql = f"replace({sql}, {literals.text(escaped)}, {literals.text(plain)})"
    return sql


def _of_list(field: str, test: str) -> str:
    # First, and cheap: where few rows hold lists, the rest is done for those alone.
    return f"((starts_with({field}, '[') AND {test}) IS TRUE)"


def _any(values: str, sign: str, bound: str) -> str:
    if sign == "=":
        return f"array_has({values}, {bound})"
    return f"array_{'max' if '>' in sign else 'min'}({values}) {sign} {bound}"


def _parts(field: str, kept: str, groups: int = 1) -> str:
    pieces = f"string_to_array({_marked(field, kept, groups)}, '{_PART}')"
    return f"array_remove_all({pieces}, '')"


def _marked(field: str, kept: str, groups: int) -> str:
    """Put a mark before each token, and leave of it what `kept` takes into its groups."""
    found = "".join(f"\\{number + 1}" for number in range(groups))
    return _replaced(_values(field), f"{kept}|{_TEXT}|{_BARE}|{_GLUE}", f"{_PART}{found}")


def _values(field: str) -> str:
    for _ in range(_DEEPEST):
        field = _replaced(field, rf'({_TEXT})|\{{(?:{_TEXT}|[^{{}}"])*\}}', "\\1")
    return field


def _replaced(sql: str, pattern: str, by: str) -> str:
    return f"regexp_replace({sql}, {literals.text(pattern)}, {literals.text(by)}, 'g')"


def _cast(values: str, kind: str) -> str:
    return f"arrow_cast({values}, 'List({kind})')"
