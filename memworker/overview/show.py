"""`show_table()`: what a table holds, counted in one pass, and drawn in one file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from memworker import values
from memworker.errors import UsageError
from memworker.overview.counts import MOST_ROWS, SCOPES, Days, Lengths, Shares, Tally, hides
from memworker.overview.page import is_page, page
from memworker.overview.sample import MOST_SAMPLED, draw
from memworker.paths import DatabaseGiven, PathGiven
from memworker.store import Output, Table, disk_errors

DEFAULT_SAMPLE = 1000
_COLUMNS = ("id", "text", "metadata", "created_at", "expires_at", "superseded_at", *SCOPES)


@dataclass(frozen=True, slots=True)
class Overview:
    """What a table holds; `hidden` rows are expired or superseded, and counted nowhere else.

    `texts` is how many texts the rows are chunks of; None where rows are whole texts. `counted`
    is less than `rows` in a table of more than ten million. `dropped` are columns that another
    program took out of the table. `plot` is the page that was written.
    """

    table: str
    model: str
    precision: str
    dim: int
    distance: str
    rows: int
    hidden: int
    counted: int
    texts: int | None
    scopes: dict[str, Shares]
    days: Days
    lengths: Lengths | None
    dropped: tuple[str, ...]
    note: str
    sampled: int | None = None
    plot: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON can hold it."""
        return asdict(self)


def show_table(
    db: DatabaseGiven,
    table: str,
    *,
    plot: PathGiven | None = None,
    where: Mapping[str, Any] | None = None,
    sample: int = DEFAULT_SAMPLE,
    texts: bool = True,
    overwrite: bool = False,
    storage_options: Mapping[str, str] | None = None,
) -> Overview:
    """Count a table's rows by scope and day and by the length of their texts; `plot` draws them.

    The page is one file that loads nothing: the counts, and a map of `sample` rows drawn at
    random, with their nearest among them. It holds their texts, ids and metadata, unless `texts`
    is False, and names of users in any case. `where` chooses rows. Lengths are in characters.
    Memory does not grow with the table. Raises UsageError, TableNotFound, StoreError,
    StoreUnwritable.
    """
    wanted = values.whole(sample)
    if wanted is None or not 0 <= wanted <= MOST_SAMPLED:
        raise UsageError(f"sample (--sample) must be a whole number from 0 to {MOST_SAMPLED:,}")
    opened = Table.open(db, table, storage_options=storage_options)
    output = None
    if plot is not None:
        output = Output.checked(plot, "--plot", is_page, overwrite=overwrite)
    counts = Tally.of(opened, where, wanted if output else 0)
    found = _overview(opened, counts, where)
    if output is None:
        return found
    drawn = draw(opened, counts.drawn.ids(), texts=texts)
    done = _with_plot(found, drawn.rows, str(output.path))
    made_at = datetime.now(UTC)
    with disk_errors(output.path, "It is as it was. Make room, or name another file"):
        with output.written() as file:
            file.write(page(done, drawn, made_at, texts=texts, filtered=bool(where)))
    return done


def _overview(opened: Table, counts: Tally, where: Mapping[str, Any] | None) -> Overview:
    space, all_rows = opened.space, opened.count(where)
    rows = counts.rows
    if rows == MOST_ROWS:
        rows = opened.count(where, visible_only=hides(opened.columns))
    return Overview(
        opened.name,
        space.model,
        space.precision,
        space.dim,
        space.distance,
        rows=rows,
        # Both are counted at moments of their own, and rows may have come between.
        hidden=max(0, all_rows - rows),
        counted=counts.rows,
        texts=counts.texts,
        scopes=counts.shares(),
        days=counts.days(),
        lengths=counts.lengths(),
        dropped=tuple(name for name in _COLUMNS if name not in opened.columns),
        note="" if rows else opened.note_on(where),
    )


def _with_plot(found: Overview, sampled: int, plot: str) -> Overview:
    facts = {name: getattr(found, name) for name in Overview.__dataclass_fields__}
    return Overview(**(facts | {"sampled": sampled, "plot": plot}))
