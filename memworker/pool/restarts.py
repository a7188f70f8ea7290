"""Workers that end before they have done anything: when to try again, and when to say so.

::

    a worker ends ──it had answered, or was at work──► its successor starts at once
         │
         └──► a failed life: the next starts at once, twice; then later and later,
              up to `_LONGEST_S`, until one answers a shard or lasts

What fails them (memory, files, processes allowed) may pass, so no number of them ends
a pool that has once been ready. Callers are told when every place has failed and none
has been filled for as long as they are to be patient. Nothing here looks at a clock.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from memworker.errors import PoolUnavailable, WorkerStartFailed

LASTS_S = 10.0
# One or two are an accident, as when a user kills processes.
_NO_ACCIDENT = 3
_AT_ONCE = 2
_FIRST_S = 0.05
_LONGEST_S = 30.0
_START_PATIENCE_S = 10.0
_SHORTEST_RETRY_S = 1.0
_SET_ASIDE_IN_A_ROW = 8


@dataclass(slots=True)
class _Position:
    """One worker's place: its failed lives in a row, since when, and how the last ended."""

    failed: int = 0
    since: float = 0.0
    last: str = ""
    due: float | None = None

    @property
    def back_off_s(self) -> float:
        beyond = self.failed - _AT_ONCE - 1
        return 0.0 if beyond < 0 else min(_FIRST_S * 2.0 ** min(beyond, 30), _LONGEST_S)


class Restarts:
    """The workers' places: who fails in them, and when the next may start."""

    def __init__(self, places: int, patience_s: float) -> None:
        self._places = [_Position() for _ in range(places)]
        self._patience_s = patience_s
        self._was_ready = False
        self._set_aside = 0
        self._last_set_aside = ""

    # ── what happens ──

    @property
    def was_ready(self) -> bool:
        """Whether all workers have been ready once: from then on nothing is fatal."""
        return self._was_ready

    @property
    def quiet(self) -> bool:
        """Whether no worker fails and none is to be started."""
        return not self._set_aside and all(
            not place.failed and place.due is None for place in self._places
        )

    def all_ready(self) -> None:
        """Note that all workers are ready."""
        self._was_ready = True

    def answered(self, number: int) -> None:
        """Note that a worker has answered a shard: it works."""
        self._places[number].failed = 0
        self._set_aside = 0

    def failed(self, number: int, now: float, how: str) -> None:
        """Count a worker that ended before it had done anything.

        Raises WorkerStartFailed where that goes on at the first start.
        """
        place = self._places[number]
        if not place.failed:
            place.since = now
        place.failed += 1
        place.last = how
        patience_s = min(_START_PATIENCE_S, self._patience_s)
        hopeless = place.failed >= _NO_ACCIDENT and now - place.since >= patience_s
        if hopeless and not self._was_ready:
            raise WorkerStartFailed(
                f"{self._account(now)}. Check the memory limit, or run with fewer workers."
            )

    def set_aside(self, how: str) -> None:
        """Count a text that ended its workers, and so is not tried again."""
        self._set_aside += 1
        self._last_set_aside = how

    @property
    def in_doubt(self) -> bool:
        """Whether texts were set aside and nothing has been answered since."""
        return self._set_aside > 0

    # ── when to start ──

    def schedule(self, number: int, now: float) -> None:
        """Have a worker started in a place, as soon as its failures allow."""
        place = self._places[number]
        place.due = now + place.back_off_s

    def take_due(self, now: float) -> Sequence[int]:
        """Give the places where a worker is to be started now."""
        numbers = [
            number
            for number, place in enumerate(self._places)
            if place.due is not None and place.due <= now
        ]
        for number in numbers:
            self._places[number].due = None
        return numbers

    def times(self, now: float, working: int) -> list[float]:
        """Give the times at which there will be something to do here."""
        times = [place.due for place in self._places if place.due is not None]
        hopeless = None if working else self._hopeless_from()
        return times if hopeless is None or hopeless <= now else [*times, hopeless]

    # ── what to tell ──

    def outage(self, now: float, *, working: int, at_work: bool) -> PoolUnavailable | None:
        """Say why waiting for workers is in vain; None while it is not."""
        if self._set_aside >= _SET_ASIDE_IN_A_ROW and not at_work:
            return self._nothing_but_crashes()
        since = self._hopeless_from()
        if working or since is None or since > now:
            return None
        due = [place.due for place in self._places if place.due is not None]
        retry_s = max(_SHORTEST_RETRY_S, min(due, default=now) - now)
        return PoolUnavailable(
            f"{self._account(now)}. The pool goes on trying; come again in {retry_s:.0f} s."
            " Look at the machine's memory and its log, or run with fewer workers.",
            retry_s,
        )

    def _hopeless_from(self) -> float | None:
        """Give the time from which waiting for any worker is in vain; None while one is good."""
        if not all(place.failed for place in self._places):
            return None
        if sum(place.failed for place in self._places) < _NO_ACCIDENT:
            return None
        return max(place.since for place in self._places) + self._patience_s

    def _account(self, now: float) -> str:
        failing = [place for place in self._places if place.failed]
        lives = sum(place.failed for place in failing)
        seconds = now - min(place.since for place in failing)
        newest = max(failing, key=lambda place: place.since)
        return (
            f"{lives} workers in a row ended before they had done anything, within"
            f" {seconds:.0f} s; the last, {newest.last}"
        )

    def _nothing_but_crashes(self) -> PoolUnavailable:
        many, self._set_aside = self._set_aside, 0
        return PoolUnavailable(
            f"{many} texts one after the other were set aside, for each ended its workers, and"
            f" nothing else was answered; the last, {self._last_set_aside}. It is rather the"
            " workers that fail than so many texts: look at the model and the machine's log.",
            _SHORTEST_RETRY_S,
        )
