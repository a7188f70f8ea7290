"""Optimising a table: each step by itself, each told; one that fails stops no other.

::

    compact ─► an index a column, where one is worth it and missing ─► delete old versions

Only where compacting has met a damaged file do older versions stay: they may hold what is
damaged in this one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from enum import StrEnum
from functools import partial
from typing import Any

from memworker.errors import NotOptimized, StoreError, TableLocked
from memworker.store import clock
from memworker.store.cleanup import Cleaned, clean
from memworker.store.compaction import compact
from memworker.store.indices import build_index, indexed_columns
from memworker.store.lance import is_damage, lance_errors
from memworker.store.policy import worth_an_index
from memworker.store.schema import has_chunks
from memworker.store.writes import Writes

COMPACT, INDEX, VERSIONS = "compact", "index", "versions"


class StepOutcome(StrEnum):
    """What became of a step."""

    DONE = "done"
    NOTHING = "nothing to do"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class StepReport:
    """One step: what it is, for which column if for one, and what became of it."""

    step: str
    column: str | None
    outcome: StepOutcome
    what: str
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON knows it."""
        return {
            "step": self.step,
            "column": self.column,
            "outcome": self.outcome.value,
            "what": self.what,
            "seconds": round(self.seconds, 3),
        }

    def __str__(self) -> str:
        names = {COMPACT: "fragments", INDEX: f"index on {self.column}", VERSIONS: "old versions"}
        failed = "FAILED: " if self.outcome is StepOutcome.FAILED else ""
        return f"{names[self.step]}: {failed}{self.what}"


@dataclass(frozen=True, slots=True)
class Optimized:
    """What optimising did, step by step, and what it deleted of older versions."""

    steps: tuple[StepReport, ...]
    cleaned: Cleaned

    @property
    def failed(self) -> tuple[StepReport, ...]:
        """The steps that failed."""
        return tuple(did for did in self.steps if did.outcome is StepOutcome.FAILED)

    @property
    def indexed(self) -> tuple[str, ...]:
        """The columns that got an index."""
        done = (did for did in self.steps if did.step == INDEX and did.outcome is StepOutcome.DONE)
        return tuple(str(did.column) for did in done)

    @property
    def versions(self) -> int:
        """How many older versions were deleted."""
        return self.cleaned.versions

    @property
    def bytes(self) -> int:
        """How many bytes were deleted with them, and with the leftovers."""
        return self.cleaned.bytes

    @property
    def leftovers(self) -> int:
        """How many files that no version named were removed."""
        return self.cleaned.leftovers

    @property
    def kept(self) -> int:
        """How many older versions stay."""
        return self.cleaned.kept

    @property
    def note(self) -> str | None:
        """Why versions stay that are old enough to go, if any do."""
        return self.cleaned.note

    def must_be_done(self, table: str) -> Optimized:
        """Raise NotOptimized if a step failed."""
        if self.failed:
            told = "; ".join(map(str, self.failed))
            others = len(self.steps) - len(self.failed)
            raise NotOptimized(
                f"optimising table {table!r}: {told}. {others} other steps are done or had"
                " nothing to do",
                self,
            )
        return self


@dataclass(slots=True)
class Optimizing:
    """One optimisation; the lock ``tend`` is held."""

    writes: Writes
    keep: timedelta
    steps: list[StepReport] = field(default_factory=list)
    cleaned: Cleaned = Cleaned()
    safe: bool = True

    def run(self) -> Optimized:
        """Do each step, also after one that failed.

        Raises TableLocked, and StoreError where our clock is days ahead (see clock.py).
        """
        table = self.writes.table
        clock.must_agree(table.clock, f"optimising table {table.name!r}")
        dropped = self._step(COMPACT, None, self._compact) or []
        for column in self._wanted(dropped):
            self._step(INDEX, column, partial(self._index, column))
        self._step(VERSIONS, None, self._clean)
        return Optimized(tuple(self.steps), self.cleaned)

    def _step(
        self, step: str, column: str | None, run: Callable[[], tuple[StepOutcome, str, Any]]
    ) -> Any:
        began = time.monotonic()
        result = None
        try:
            with lance_errors(f"optimising table {self.writes.handle.name!r}"):
                outcome, what, result = run()
        except TableLocked:
            raise  # who holds the lock stands in the way of every step
        except StoreError as error:
            outcome, what = StepOutcome.FAILED, str(error)
            self.safe = self.safe and not is_damage(error)
        self.steps.append(StepReport(step, column, outcome, what, time.monotonic() - began))
        return result

    def _compact(self) -> tuple[StepOutcome, str, list[str]]:
        handle = self.writes.handle
        version, before = int(handle.version), self._fragments()
        dropped = compact(self.writes)
        after = self._fragments()
        if int(handle.version) == version:
            return StepOutcome.NOTHING, f"{after} are as large as they should be", dropped
        gone = f"; the index on {', '.join(dropped)} could not be read" if dropped else ""
        return StepOutcome.DONE, f"{before} became {after}, indices cover all rows{gone}", dropped

    def _wanted(self, dropped: list[str]) -> Iterator[str]:
        """Yield the columns that are worth an index, or had one."""
        with lance_errors(f"reading table {self.writes.handle.name!r}"):
            handle = self.writes.handle
            worth = worth_an_index(int(handle.count_rows()), chunks=has_chunks(handle.schema))
            yield from dict.fromkeys([*worth, *dropped])

    def _index(self, column: str) -> tuple[StepOutcome, str, None]:
        if column in indexed_columns(self.writes.handle):
            return StepOutcome.NOTHING, "is there", None
        if not build_index(self.writes, column):
            return StepOutcome.FAILED, "is not of memworker's making; build it again", None
        return StepOutcome.DONE, "built", None

    def _clean(self) -> tuple[StepOutcome, str, None]:
        if not self.safe:
            return (
                StepOutcome.FAILED,
                "none is deleted, for a file of this version is damaged and an older one may be"
                " whole; `memworker table verify` says which, `table repair` puts it right",
                None,
            )
        self.cleaned = clean(self.writes, self.keep)
        done = self.cleaned
        told = [f"{done.versions} deleted" if done.versions else "none to delete"]
        told[0] += f", {done.kept} kept"
        if done.leftovers:
            told.append(
                f"{done.leftovers} files ({done.leftover_bytes:,} bytes) of writes that did not"
                " come were removed"
            )
        outcome = StepOutcome.DONE if done.versions or done.leftovers else StepOutcome.NOTHING
        return outcome, "; ".join([*told, *filter(None, [done.note])]), None

    def _fragments(self) -> int:
        return int(self.writes.handle.stats()["fragment_stats"]["num_fragments"])
