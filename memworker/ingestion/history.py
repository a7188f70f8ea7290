"""A run in its table's journal: its beginning, its commits, its end, and what came before."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from memworker.errors import StoreError
from memworker.ingestion.inputs import difference, fingerprints, job_key
from memworker.ingestion.readers import Source
from memworker.ingestion.report import Counts
from memworker.paths import shown_name
from memworker.store import (
    Committed,
    Ended,
    InputFile,
    Journal,
    JournalRecord,
    Started,
    Table,
    journal,
)

_HOW_IT_ENDED = {"killed": "was killed", "interrupted": "was interrupted", "failed": "failed"}


@dataclass(frozen=True, slots=True)
class Command:
    """What a run was asked to do, as far as it tells one job from another."""

    names: tuple[str, ...]
    sources: tuple[Source, ...]
    options: Mapping[str, str]
    model: str


@dataclass(slots=True)
class History:
    """Writes one run into the journal; `notes` is what a person should know about it."""

    journal: Journal
    run: str
    command: Command
    inputs: tuple[InputFile, ...]
    counts: Counts
    table: str | None
    notes: list[str] = field(default_factory=list)

    def committed(self, table: Table, position: int) -> None:
        """Note a commit; raises StoreError when it cannot be noted."""
        self.table = table.identity
        counts = self.counts
        self.journal.append(
            Committed(
                run=self.run,
                at=journal.now(),
                table=table.identity,
                version=counts.table_version or 0,
                position=position,
                written=counts.written,
                duplicates=counts.duplicates,
                conflicts=counts.conflicts,
                rejected=counts.rejected,
            )
        )

    def finished(self, outcome: str, why: str = "") -> None:
        """Note the end, and whether the input was edited meanwhile."""
        edited = difference(self.inputs, fingerprints(self.command.sources, self.inputs))
        if edited:
            self.notes.append(
                f"the input was edited while it was read: {edited}. Run the command again to"
                " take up what is new."
            )
        counts = self.counts
        end = Ended(
            run=self.run,
            at=journal.now(),
            table=self.table,
            outcome=outcome,
            read=counts.read,
            written=counts.written,
            version=counts.table_version,
            why=why,
        )
        self.journal.append(end)


@contextmanager
def history(
    folder: Path, table: Table | None, command: Command, counts: Counts, *, durable: bool
) -> Iterator[History]:
    """Open the journal and write the run's beginning, and its end if it fails."""
    identity = table.identity if table else None
    with Journal(folder, identity, durable=durable) as kept:
        job = job_key(command.names, command.options, command.model)
        runs = [r for r in kept.before if isinstance(r, Started) and r.job == job]
        # What has the size and time that it had is not opened again: there may be many.
        inputs = fingerprints(command.sources, runs[-1].inputs if runs else ())
        notes = _what_came_before(kept.before, runs, inputs)
        run = uuid.uuid4().hex[:12]
        told = History(kept, run, command, inputs, counts, identity, notes)
        kept.append(
            Started(
                run=run,
                at=journal.now(),
                pid=os.getpid(),
                table=identity,
                job=job,
                inputs=inputs,
                names=tuple(map(shown_name, command.names)),
                model=command.model,
                options=dict(command.options),
                version=table.version if table else None,
            )
        )
        try:
            yield told
        except BaseException as error:
            # The error that ended the run is the one to be told, not that of its obituary.
            with suppress(StoreError):
                told.finished(_outcome(error), shown_name(f"{type(error).__name__}: {error}"[:500]))
            raise


def _outcome(error: BaseException) -> str:
    return "failed" if isinstance(error, Exception) else "interrupted"


def _what_came_before(
    before: tuple[JournalRecord, ...], runs: list[Started], inputs: tuple[InputFile, ...]
) -> list[str]:
    if not runs:
        return []
    last = runs[-1]
    notes = []
    if edited := difference(last.inputs, inputs):
        notes.append(
            f"the input was edited since the run of {last.at}: {edited}. New rows are added; a"
            " changed row under an old id is a conflict; rows gone from the input stay in the"
            " table."
        )
    end = next((r for r in before if isinstance(r, Ended) and r.run == last.run), None)
    if end is None or end.outcome != "finished":
        how = _HOW_IT_ENDED[end.outcome if end else "killed"]
        commits = [r for r in before if isinstance(r, Committed) and r.run == last.run]
        written = commits[-1].written if commits else 0
        notes.append(
            f"this resumes the run of {last.at} (pid {last.pid}), which {how};"
            f" it had noted {written:,} rows as written."
        )
    return notes
