"""The runs that journals tell of, newest last."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from memworker.errors import TableNotFound
from memworker.store import journal
from memworker.store.journal import Committed, Ended, Started
from memworker.store.lance import table_name
from memworker.store.lock import holder


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


def runs(db: str | Path, table: str | None = None) -> list[Run]:
    """List the runs of one table or of all. Raises TableNotFound without the database."""
    folder = Path(db) / ".memworker"
    if not Path(db).is_dir():
        raise TableNotFound(f"there is no database directory {db}; name the one given to --db")
    names = [table_name(table)] if table is not None else sorted(p.name for p in folder.glob("*/"))
    found = [run for name in names for run in _of_table(folder / name)]
    return sorted(found, key=lambda run: run.started)


def _of_table(folder: Path) -> list[Run]:
    records = journal.read(folder)
    at_work = holder(folder, "job")
    started = [record for record in records if isinstance(record, Started)]
    commits = {r.run: r for r in records if isinstance(r, Committed)}
    ends = {r.run: r for r in records if isinstance(r, Ended)}
    return [
        _run(folder.name, start, commits.get(start.run), ends.get(start.run), at_work)
        for start in started
    ]


def _run(
    table: str, start: Started, commit: Committed | None, end: Ended | None, at_work: int | None
) -> Run:
    alive = at_work is not None and start.pid == at_work
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
