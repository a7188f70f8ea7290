"""A folder watched: a pass at once, and one after each time that something in it changed.

::

    watch begins ─► pass ─► wait: changes, gathered until it is quiet ─► pass ─► …
                              │ the folder went, or another stands in its place ─► watch anew
                              └ an hour without a word (network file systems tell nothing) ─► pass

Each pass compares the whole folder, so no change needs to be told right, or at all, by the system.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from queue import Empty, SimpleQueue
from typing import Any

from memworker.errors import InputError, MemworkerError, StoreError, TableMismatch
from memworker.ingestion.stop import Stop
from memworker.ingestion.sync.looking import place
from memworker.ingestion.sync.outcome import SyncReport

QUIET_MS, GATHERED_MS, TICK_MS = 200, 2000, 500
RESCAN_S = 3600.0
RETRY_S = 10.0
_SUMMED = ("added", "updated", "moved", "removed")

Tell = Callable[[SyncReport | MemworkerError], None]
"""Told of each pass: what it did, or why there was none."""


@dataclass(slots=True)
class FolderWatch:
    """Runs `once` whenever the folder `root` has changed, until `stop` is set.

    An error of the first pass is raised; a later one is told, each once, and the pass tried again.
    """

    root: str
    db: str
    stop: Stop
    once: Callable[[], SyncReport]
    tell: Tell
    _total: SyncReport | None = None
    _again_at: float = 0.0
    _last_error: str = ""
    _asked: SimpleQueue[Any] = field(default_factory=SimpleQueue)

    def run(self) -> SyncReport:
        """Return the last pass's report, with what all have done."""
        with self.stop.wakes(self._asked):
            while self._total is None or not self.stop.is_set:
                where = place(self.root)
                if where is None:
                    self._pass()  # tells that it is not there
                    self._rest()
                    continue
                self._again_at = 0.0
                for changed in self._changes():
                    if changed or time.monotonic() >= self._again_at:
                        self._pass()
                    if self.stop.is_set or place(self.root) != where:
                        break
        assert self._total is not None
        return self._total

    def _pass(self) -> None:
        self._again_at = time.monotonic() + RESCAN_S
        try:
            report = self.once()
        except (InputError, StoreError) as error:
            if self._total is None or isinstance(error, TableMismatch):
                raise
            self._again_at = time.monotonic() + RETRY_S
            if str(error) != self._last_error:
                self.tell(error)
            self._last_error = str(error)
            return
        self._last_error = ""
        self.tell(report)
        before = self._total
        sums = {name: getattr(before, name, 0) + getattr(report, name) for name in _SUMMED}
        self._total = replace(report, **sums)

    def _rest(self) -> None:
        try:
            self._asked.get(timeout=TICK_MS / 1000)
        except Empty:
            pass

    def _changes(self) -> Iterator[bool]:
        """Yield whether something changed, at least twice a second; the first once it watches."""
        import watchfiles

        watching = watchfiles.watch(
            self.root,
            watch_filter=lambda _, path: self._concerns(path),
            step=QUIET_MS,
            debounce=GATHERED_MS,
            rust_timeout=TICK_MS,
            yield_on_timeout=True,
            stop_event=_Event(self.stop),
            ignore_permission_denied=True,
        )
        try:
            # What changes from here on is heard of later, also while a pass is under way.
            yield bool(next(watching, ()))
            yield from map(bool, watching)
        except FileNotFoundError:
            return  # the folder went
        except (OSError, RuntimeError) as error:  # of its Rust part
            raise InputError(
                f"the folder {self.root} cannot be watched: {error}. Is fs.inotify.max_user_watches"
                " too low for it? WATCHFILES_FORCE_POLLING=1 watches by looking"
            ) from error

    def _concerns(self, path: str) -> bool:
        """Tell whether a change may be one of documents: not of hidden names, nor by ourselves."""
        if path == self.db or path.startswith(f"{self.db}/"):
            return False
        inside = os.path.relpath(path, self.root)
        return inside == "." or not any(part.startswith(".") for part in inside.split("/"))


@dataclass(frozen=True, slots=True)
class _Event:
    """The request to stop, as watchfiles asks for it."""

    stop: Stop

    def is_set(self) -> bool:
        return self.stop.is_set
