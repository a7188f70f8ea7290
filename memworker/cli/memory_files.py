"""``memworker memory export`` and ``import``: memories to a file of JSON lines, and back."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO

import typer

from memworker.cli import options
from memworker.cli.memory_options import (
    DEFAULT_TABLE,
    AgentId,
    Db,
    Model,
    Precision,
    RunId,
    TableName,
    UserId,
    making,
    print_json,
    say,
)
from memworker.json_lines import MAX_LINE_BYTES
from memworker.store import Output, disk_errors

if TYPE_CHECKING:
    from memworker.memory import Flaw

# Of the bad lines, which stderr names all, so many are in the JSON object too.
_FLAWS_IN_JSON = 1000


def export(
    db: Db,
    output: Annotated[
        str, typer.Option("--output", "-o", help="The file to write, or - for standard output.")
    ] = "-",
    user_id: UserId = None,
    agent_id: AgentId = None,
    run_id: RunId = None,
    table: TableName = DEFAULT_TABLE,
    storage_option: options.StorageOption = None,
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
) -> None:
    """Write memories as JSON lines, with their ids, times and history; all, or those of a scope.

    With --json the count is printed, to stderr where the memories go to stdout.
    """
    from memworker.memory import Scope, exported, is_export
    from memworker.store import Table

    # An id that is blank, as an unset shell variable gives, must not mean everybody.
    everybody = user_id is None and agent_id is None and run_id is None
    scope = Scope() if everybody else Scope.of(user_id, agent_id, run_id)
    to = (
        None
        if output == "-"
        else Output.checked(output, "--output", is_export, overwrite=overwrite)
    )
    opened = Table.open(options.database(db, storage_option), table)
    written = 0
    with _replaced(to) as file:
        for line in exported(opened, scope.named()):
            file.write(line.encode() + b"\n")
            written += 1
        file.flush()
    result = {"table": table, "output": output, "rows": written}
    if as_json:
        print_json(result, file=sys.stderr if output == "-" else sys.stdout)
    elif output != "-":
        print(f"{output}: {written:,} rows")


def import_(
    db: Db,
    file: Annotated[str, typer.Argument(help="What export wrote, or - for standard input.")],
    table: TableName = DEFAULT_TABLE,
    storage_option: options.StorageOption = None,
    model: Model = None,
    precision: Precision = None,
    min_cosine: options.MinCosine = None,
    workers: options.Workers = None,
    max_tokens: options.MaxTokens = None,
    dim: options.Dim = None,
    durable: options.Durable = False,
    as_json: options.Json = False,
) -> None:
    """Read memories that export, or Mem0, wrote; ids that are there already are left as they are.

    Running the same command again goes on where it was interrupted.
    """
    from memworker.ingestion import read_lines
    from memworker.memory import Flaw, import_lines
    from memworker.pool import EmbeddingPool
    from memworker.store import Table, VectorSpace

    flaws: list[dict[str, Any]] = []

    def refused(flaw: Flaw) -> None:
        say(f"line {flaw.line}: {flaw.reason}")
        if len(flaws) < _FLAWS_IN_JSON:
            flaws.append(asdict(flaw))

    read = read_lines(file, MAX_LINE_BYTES, of_json=True)
    lines = (Flaw(number, fault) if fault else line for number, line, fault in read)
    tier = options.precision_of(precision, min_cosine)
    place = options.database(db, storage_option)
    made = making(place, table, model, tier, max_tokens, dim, workers)
    with closing(EmbeddingPool(**made)) as pool:
        # A table of another model is refused here, before any worker starts.
        space = VectorSpace.of(pool.identity)
        opened = Table.open_or_create(place, table, space, durable=durable)
        done = import_lines(opened, pool, lines, refused)
    if as_json:
        print_json({"table": table, **asdict(done), "errors": flaws})
    else:
        there = (
            f" ({done.differing:,} of them with another text, metadata or scope)"
            if done.differing
            else ""
        )
        print(
            f"{done.read:,} read, {done.written:,} written, {done.skipped:,} there already{there},"
            f" {done.refused:,} refused"
        )
    if done.refused:
        raise typer.Exit(3)


@contextmanager
def _replaced(output: Output | None) -> Iterator[BinaryIO]:
    """Open the file to write, which takes its place when it is whole; or stdout."""
    if output is None:
        yield sys.stdout.buffer
        return
    # What reading the table raises is a StoreError already: what is left is of this file.
    with disk_errors(output.path, "It is as it was. Make room, or name another file"):
        with output.written() as file:
            yield file
