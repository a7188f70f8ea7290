"""Writes whose outcome the store is not told truly: they fail, or succeed and then raise.

A seed gives a run: some writes into one table through a handle that lies, beside another
program that writes the same ids without the lock. Afterwards every id is there once, with
the text of the last write that was acknowledged, or of one that may have come through.

    python -m tests.store.unknown [--seeds 10000] [--first 0]
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from memworker.errors import StoreError
from memworker.store import Table
from memworker.store.lance import connect, open_table
from tests.store.helpers import SPACE, batch

IDS = [f"id-{i}" for i in range(12)]
ERRORS = [
    lambda: RuntimeError("lance error: Commit conflict for version 3"),
    lambda: RuntimeError("lance error: Retryable commit conflict for version 3. Please retry."),
    lambda: RuntimeError("lance error: LanceError(IO): Input/output error (os error 5)"),
    lambda: OSError(28, "No space left on device"),
    lambda: ValueError("what nobody thought of"),
    lambda: TimeoutError("no answer"),
]
NOT_COMMITTED = "nothing of this batch was committed"


class Liar:
    """A LanceDB handle some of whose writes raise: before the commit, or after it."""

    def __init__(self, handle, chance: random.Random, rate: float) -> None:
        self._handle, self._chance, self._rate = handle, chance, rate
        self.lies = 0

    def __getattr__(self, name):
        found = getattr(self._handle, name)
        if name in ("add", "delete", "update"):
            return lambda *given, **named: self._tell(lambda: found(*given, **named))
        if name == "merge_insert":
            return lambda on: _Merge(self, found(on))
        return found

    def _tell(self, write):
        kind = self._chance.random()
        if kind < self._rate:
            self.lies += 1
            if kind < self._rate * 0.7:
                write()
            raise self._chance.choice(ERRORS)()
        return write()


class _Merge:
    def __init__(self, liar: Liar, builder) -> None:
        self._liar, self._builder = liar, builder

    def __getattr__(self, name):
        found = getattr(self._builder, name)
        if name == "execute":
            return lambda rows: self._liar._tell(lambda: found(rows))
        return lambda *given, **named: _Merge(self._liar, found(*given, **named))


def run(seed: int, folder: Path) -> int:
    """Run one seed; return how many lies were told. Raises AssertionError."""
    chance = random.Random(seed)
    db = folder / f"db-{seed}"
    Table.create(db, "t", SPACE)
    connection = connect(db, writable=True)
    liar = Liar(open_table(connection, db, "t"), chance, rate=0.35)
    outsider = open_table(connect(db, writable=True), db, "t")
    table = Table(db, "t", connection, liar)
    # Of each id the texts that it may have now; None means that it may be absent.
    may: dict[str, set[str | None]] = {row_id: {None} for row_id in IDS}
    for step in range(chance.randint(3, 6)):
        if chance.random() < 0.1:
            _outside(outsider, chance, may, step)
        _STEPS[chance.choice(sorted(_STEPS))](table, chance, may, f"{seed}.{step}")
    _hold(outsider, may, seed)
    # Whatever came before, the next honest run writes what is missing, and that once.
    liar._rate = 0.0
    table.append(batch([(row_id, f"last {row_id}") for row_id in IDS]))
    last = {i: {t if t is not None else f"last {i}" for t in texts} for i, texts in may.items()}
    _hold(outsider, last, seed)
    shutil.rmtree(db)
    return liar.lies


def _append(table, chance, may, mark) -> None:
    policy = chance.choice(["skip", "update"])
    told = {i: f"{i} {mark}" for i in chance.sample(IDS, chance.randint(1, 5))}

    def settled(row_id: str, text: str | None) -> str:
        return told[row_id] if text is None or policy == "update" else text

    done = _attempt(lambda: table.append(batch(list(told.items())), on_conflict=policy))
    _settle(may, told, settled, done)
    if done is True:
        return


def _change(table, chance, may, mark) -> None:
    told = {i: f"{i} {mark}" for i in chance.sample(IDS, chance.randint(1, 4))}

    def write() -> None:
        with table.changing() as change:
            there = set(change.find("id", list(told), columns=["id"])["id"].to_pylist())
            fresh = [(i, t) for i, t in told.items() if i not in there]
            known = [(i, t) for i, t in told.items() if i in there]
            if fresh:
                change.insert(batch(fresh))
            if known:
                change.replace(batch(known))

    _settle(may, told, lambda row_id, _: told[row_id], _attempt(write))


def _erase(table, chance, may, mark) -> None:
    gone = chance.sample(IDS, chance.randint(1, 3))

    def write() -> int:
        with table.editing() as edit:
            return edit.erase({"id": {"in": gone}})

    _settle(may, gone, lambda *_: None, _attempt(write))


_STEPS = {"append": _append, "change": _change, "erase": _erase}


def _attempt(write) -> bool | None:
    """Tell whether a write was acknowledged; None where it says that it may have come through."""
    try:
        write()
    except StoreError as error:
        return False if NOT_COMMITTED in str(error) else None
    return True


def _settle(may, ids, settled, done: bool | None) -> None:
    for row_id in ids:
        after = {settled(row_id, text) for text in may[row_id]}
        if done is None:
            may[row_id] |= after
        elif done:
            may[row_id] = after


def _outside(handle, chance, may, step) -> None:
    """Let another program write an id that is not there, without any lock."""
    absent = [i for i, texts in may.items() if texts == {None}]
    if absent:
        row_id = chance.choice(absent)
        handle.add(batch([(row_id, f"outside {step}")]))
        may[row_id] = {f"outside {step}"}


def _hold(handle, may, seed: int) -> None:
    rows = handle.search().select(["id", "text"]).to_arrow()
    ids, texts = rows["id"].to_pylist(), rows["text"].to_pylist()
    doubled = [row_id for row_id, n in Counter(ids).items() if n > 1]
    assert not doubled, f"seed {seed}: doubled {doubled}"
    there = dict(zip(ids, texts, strict=True))
    wrong = {i: there.get(i) for i in may if there.get(i) not in may[i]}
    assert not wrong, f"seed {seed}: {wrong}, where { ({i: may[i] for i in wrong}) } may be"


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0)
    given = parser.parse_args()
    began, lies = time.monotonic(), 0
    with tempfile.TemporaryDirectory(prefix="memworker-unknown-") as folder:
        for seed in range(given.first, given.first + given.seeds):
            lies += run(seed, Path(folder))
            if (seed + 1) % 500 == 0:
                _say(f"{seed + 1 - given.first:,} seeds, {lies:,} lies")
    _say(
        f"{given.seeds:,} seeds, {lies:,} writes raised (two of three after their commit):"
        f" 0 doubled, 0 lost, in {time.monotonic() - began:.0f} s"
    )


if __name__ == "__main__":
    main()
