"""Rows as columns, checked, with the faults of single rows beside them."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from memworker.errors import InputError, MissingField
from memworker.ingestion.documents.extraction import Extraction
from memworker.ingestion.fields import Fields
from memworker.ingestion.readers.told import Findings
from memworker.ingestion.records import EXCERPT_CHARS, ReadBatch, Reject, path_of, row_batch

# So many rows of the first files may lack a field before it is taken for a wrong name.
_ROWS_WITHOUT_FIELDS = 100_000
# What str.isspace() calls white space; pyarrow's own trim knows fewer and is slower.
_WHITE_SPACE = "".join(c for c in map(chr, range(0x3001)) if c.isspace())


@dataclass(slots=True)
class ReadOptions:
    """What every reader of a run goes by.

    `fields_seen` turns true with the first decoded row that has them. With several sources
    to read, `alone` is false: what is wrong with one of them then costs that one. `extraction`
    takes apart what is not read here; whoever reads to the end closes it.
    """

    fields: Fields
    batch_rows: int
    max_text_bytes: int
    max_line_bytes: int
    allow_empty: bool
    fields_seen: bool = False
    alone: bool = True
    missing: MissingField | None = None
    missing_rows: int = 0
    extraction: Extraction = field(default_factory=Extraction)
    told: Findings = field(default_factory=Findings)
    # The names of those sources to whose texts --encoding says nothing.
    without_encoding: frozenset[str] = frozenset()
    # Which of these names another source has; where there is one, its rows may do without.
    elsewhere: Callable[[Collection[str]], Collection[str]] = field(default=lambda names: ())
    # Gets rows as they stand in the input: an `ObjectRows`, or a record batch.
    looked_at: Callable[[Any], None] | None = None
    # Of the names that `metadata` gives, those that some row had, and all that there were.
    metadata_seen: set[str] = field(default_factory=set)
    fields_there: dict[str, None] = field(default_factory=dict)

    def require_fields(
        self, path: str, present: Collection[str], rows: int = 1, hint: str = ""
    ) -> str:
        """Say that these rows lack a field that must be there, as long as none had it; or "".

        Raises MissingField where nothing else is to be read, or after too many such rows.
        """
        if self.fields_seen:
            return ""
        lacking = [name for name in self.fields.required if name not in present]
        if not lacking or self._has_others(lacking, present):
            self.fields_seen = True
            return ""
        name = lacking[0]
        told = _missing(path, name, self.fields, present, hint)
        self.missing = self.missing or MissingField(told, sorted(present))
        self.missing_rows += rows
        if self.alone or self.missing_rows > _ROWS_WITHOUT_FIELDS:
            raise self.missing
        return f"{no_text(name)}; its fields are: {_listed(sorted(present))}"

    def _has_others(self, lacking: Sequence[str], present: Collection[str]) -> bool:
        """Tell whether a text of several fields can be made without these, which others have."""
        texts = self.fields.texts
        if self.fields.composed is None or self.alone or not set(lacking) < set(texts):
            return False
        return bool(set(texts) & set(present)) and set(lacking) <= set(self.elsewhere(lacking))

    def require_any(self) -> None:
        """Raise MissingField if rows were read and none had the fields; note what had no use."""
        if self.missing is not None and not self.fields_seen:
            raise self.missing
        chosen = () if isinstance(self.fields.metadata, bool) else self.fields.metadata
        for name in chosen:
            if name not in self.metadata_seen and self.fields_there:
                self.told.never_seen[name] = (
                    f"no row has the field {name!r} of --metadata; there are:"
                    f" {_listed(sorted(self.fields_there))}"
                )


@dataclass(frozen=True, slots=True)
class CheckedRows:
    """All rows of a batch, faulty ones included: their values are never looked at.

    `rows` has the columns of `row_batch`, and `path` where they are of several sources;
    `faults` tells why a row is refused; `raw(i)` gives the beginning of row i as it stood
    in the input.
    """

    rows: pa.RecordBatch
    raw: Callable[[int], str]
    faults: dict[int, str] = field(default_factory=dict)

    def head(self, count: int) -> CheckedRows:
        """Keep the first `count` rows."""
        if count >= self.rows.num_rows:
            return self
        faults = {i: reason for i, reason in self.faults.items() if i < count}
        return CheckedRows(self.rows.slice(0, count), self.raw, faults)

    def batch(self, path: str, first_ordinal: int) -> ReadBatch:
        """Part the accepted rows from the refused ones."""
        count = self.rows.num_rows
        ordinals = np.arange(first_ordinal, first_ordinal + count, dtype=np.int64)
        numbered = self.rows.append_column("ordinal", pa.array(ordinals))
        if not self.faults:
            return ReadBatch(path, numbered)
        accepted = np.ones(count, dtype=bool)
        accepted[list(self.faults)] = False
        rejects = tuple(self._reject(path, i, first_ordinal + i) for i in sorted(self.faults))
        return ReadBatch(path, numbered.filter(pa.array(accepted)), rejects)

    def _reject(self, path: str, i: int, ordinal: int) -> Reject:
        line, row_id = self.rows["line"][i].as_py(), self.rows["id"][i].as_py()
        excerpt = self.raw(i)[:EXCERPT_CHARS]
        path = path_of(self.rows, i, path)
        return Reject(path, line, ordinal, self.faults[i], row_id, excerpt)


def broken_rows(reason: str, *, first: int = 1, count: int = 1) -> CheckedRows:
    """Give rows of which nothing could be read, numbered from `first`."""
    lines = np.arange(first, first + count, dtype=np.int64)
    rows = row_batch(lines, pa.nulls(count, pa.string()))
    return CheckedRows(rows, lambda i: "", dict.fromkeys(range(count), reason))


def column_faults(
    texts: pa.Array, ids: pa.Array | None, options: ReadOptions, known: dict[int, str]
) -> dict[int, str]:
    """Find empty and oversized texts and empty ids; the first fault of a row, `known` ones before.

    Args:
        texts: valid UTF-8; null only where a fault is known.
        ids: as texts, but null also where a row has none.
    """
    faults = dict(known)
    sizes = pc.binary_length(texts)
    for i in _where(pc.greater(sizes, options.max_text_bytes)):
        faults.setdefault(i, _too_large(sizes[i].as_py(), options.max_text_bytes))
    if not options.allow_empty:
        trimmed = pc.utf8_ltrim(texts, characters=_WHITE_SPACE)
        for i in _where(pc.equal(pc.binary_length(trimmed), 0)):
            faults.setdefault(i, "empty text: it has no characters but white space")
    if ids is not None:
        for i in _where(pc.equal(pc.binary_length(ids), 0)):
            faults.setdefault(i, f"field {options.fields.ids[0]!r}: the id is an empty string")
    return faults


def _where(mask: pa.Array) -> list[int]:
    return pc.indices_nonzero(mask).to_pylist()  # type: ignore[no-any-return]


def _too_large(size: int, cap: int) -> str:
    return f"text of {size:,} bytes, over the cap of {cap:,} (--max-text-bytes, max_text_bytes=)"


def distinct(path: str, names: Sequence[str], fields: Fields) -> list[str]:
    """Name columns so that none hides another: of two that are called `n` one is `n_2`.

    Raises InputError where a field is wanted of which there are two.
    """
    found: dict[str, None] = {}
    for name in names:
        if name in found and name in fields.used:
            raise InputError(
                f"{path}: it has two columns {name!r}, and which one is meant is not known;"
                " rename one, or take another column (--text-field, --id-field and their like)"
            )
        number, given = 2, name
        while name in found or (name != given and name in names):
            name, number = f"{given}_{number}", number + 1
        found[name] = None
    return list(found)


def no_text(name: str) -> str:
    return f"no field {name!r}"


def templated(name: str) -> str:
    """Name the option that makes text of numbers and times."""
    return f"; --text-template '{{{name}}}' (text_template=) makes text of it"


def _listed(names: list[str]) -> str:
    return ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")


def _missing(path: str, name: str, fields: Fields, present: Collection[str], why: str = "") -> str:
    shown = sorted(present)
    near = difflib.get_close_matches(name, shown, n=1, cutoff=0.5)
    option = fields.option_of(name)
    hint = f"Did you mean {near[0]!r}? " if near else ""
    told = f"{path}: no field {name!r}; its fields are: {_listed(shown)}. "
    return f"{told}{hint}{why or f'Name it with {option}.'}"
