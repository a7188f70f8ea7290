"""The runs that journals tell of, newest last."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from memworker.errors import TableNotFound
from memworker.paths import DatabaseGiven
from memworker.store import (
    Committed,
    Ended,
    Started,
    database_path,
    holder,
    is_there,
    journal,
    state_home,
    table_name,
)


@dataclass(frozen=True, slots=True)
class Run:
    """One ingest. `outcome` is finished, interrupted, failed, running or killed.

    `read` is None until the end is known; `written` and `version` are those of
    the last commit that was noted. `identity` tells tables of one name apart.
    """

    table: str
    identity: str | None
    run: str
    started: str
    ended: str | None
    outcome: str
    why: str
    pid: int
    inputs: tuple[str, ...]
    read: int | None
    written: int
    version: int | None

    @property
    def unfinished(self) -> bool:
        """Whether the same command would go on where this run ended."""
        return self.outcome != "finished"


def list_runs(
    db: DatabaseGiven,
    table: str | None = None,
    *,
    storage_options: Mapping[str, str] | None = None,
) -> list[Run]:
    """List the runs of one table or of all. Raises TableNotFound without the database.

    Of a database in object storage those that this machine has run.
    """
    path = database_path(db, storage_options)
    folder = state_home(path)
    if not is_there(path):
        raise TableNotFound(f"there is no database directory {path}; name the one given to --db")
    names = [table_name(table)] if table is not None else sorted(p.name for p in folder.glob("*/"))
    found = [dated for name in names for dated in _in_order(_of_table(folder / name))]
    return [run for _, run in sorted(found, key=lambda dated: dated[0])]


def _in_order(found: list[Run]) -> Iterator[tuple[str, Run]]:
    """Give each run of a table with a time that keeps it behind those before it.

    A journal's order is true, and the clock may have gone back.
    """
    latest = ""
    for run in found:
        latest = max(latest, run.started)
        yield latest, run


def _of_table(folder: Path) -> list[Run]:
    records = journal.read(folder)
    at_work = holder(folder, "job")
    started = [record for record in records if isinstance(record, Started)]
    commits = {r.run: r for r in records if isinstance(r, Committed)}
    ends = {r.run: r for r in records if isinstance(r, Ended)}
    # An earlier run may have had the same pid, as in a container.
    alive = started[-1] if started and started[-1].pid == at_work else None
    return [
        _run(folder.name, start, commits.get(start.run), ends.get(start.run), start is alive)
        for start in started
    ]


def _run(
    table: str, start: Started, commit: Committed | None, end: Ended | None, alive: bool
) -> Run:
    return Run(
        table=table,
        identity=commit.table if commit else start.table,
        run=start.run,
        started=start.at,
        ended=end.at if end else None,
        outcome=end.outcome if end else "running" if alive else "killed",
        why=end.why if end else "",
        pid=start.pid,
        inputs=start.names,
        read=end.read if end else None,
        written=end.written if end else commit.written if commit else 0,
        version=end.version if end else commit.version if commit else start.version,
    )
