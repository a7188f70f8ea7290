"""What `memworker memory add` reads, item by item, and what it says became of each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import typer

from memworker.cli import options, reports
from memworker.cli.memory_options import print_json, say
from memworker.cli.output import printable
from memworker.errors import UsageError
from memworker.json_lines import MAX_LINE_BYTES, object_of, text_of, value_of, without_doubles

# What of a stream is embedded and committed together.
_BATCH = 512


@dataclass(frozen=True, slots=True)
class Item:
    """One thing to remember, or why it cannot be; `where` says which it was."""

    where: str
    content: Any = None
    metadata: dict[str, Any] | None = None
    flaw: str | None = None


def read_items(
    texts: Iterable[str], metadata: dict[str, Any] | None, *, jsonl: bool
) -> Iterator[Item]:
    """Yield the texts of a command line, and the lines of stdin where it says ``-``.

    `metadata` is that of every item; the own of a JSON line comes before it.
    """
    from memworker.ingestion import read_lines

    for number, text in enumerate(texts, 1):
        if text != "-":
            yield Item(f"text {number}", text, metadata)
            continue
        for line_number, line, fault in read_lines("-", MAX_LINE_BYTES):
            where = f"line {line_number}"
            if fault:
                yield Item(where, flaw=fault)
            elif line.strip() and (item := _item(where, line, metadata, jsonl)):
                yield item


def _item(where: str, line: bytes, metadata: dict[str, Any] | None, jsonl: bool) -> Item | None:
    try:
        content = value_of(line) if jsonl else text_of(line)
    except UsageError as flaw:
        return Item(where, flaw=str(flaw))
    if not isinstance(content, dict):
        return Item(where, content, metadata)
    # Instructions to a model are no memory, and `Memory` gives no result for them.
    return None if content.get("role") == "system" else _of_object(where, content, metadata)


def _of_object(where: str, content: dict[str, Any], metadata: dict[str, Any] | None) -> Item:
    own = content.get("metadata")
    if own is not None:
        if not isinstance(own, dict):
            return Item(where, flaw=f"metadata is not an object: {own!r:.80}")
        metadata = (metadata or {}) | own
    if "role" in content:
        return Item(where, content, metadata)
    if "text" not in content:
        return Item(where, flaw="it has no field 'text'; write {\"text\": …}")
    return Item(where, content["text"], metadata)


def batched(items: Iterator[Item]) -> Iterator[list[Item]]:
    """Yield the items in lists of what is embedded and committed together."""
    while batch := list(islice(items, _BATCH)):
        yield batch


def metadata_of(items: list[str]) -> dict[str, Any] | None:
    """Read repeated --metadata: KEY=VALUE or JSON objects. Raises UsageError.

    A value is read as --where does, so that what was written is found by the same words.
    """
    from memworker.store import scalar

    fields: list[tuple[str, Any]] = []
    for item in items:
        if item.lstrip().startswith("{"):
            try:
                fields += object_of(item).items()
            except UsageError as error:
                raise UsageError(f"--metadata {item!r}: {error}") from None
        else:
            fields += ((k, scalar(v)) for k, v in options.pairs([item], "--metadata").items())
    try:
        return without_doubles(fields) or None
    except ValueError as error:
        raise UsageError(f"--metadata: {error}") from None


class Told:
    """What became of the items so far: printed as they come, or kept for one JSON object."""

    def __init__(self, as_json: bool) -> None:
        self._as_json = as_json
        self._results: list[dict[str, Any]] = []
        self._counts: Counter[str] = Counter()

    def tell(self, batch: list[Item], done: Iterator[dict[str, Any]]) -> None:
        """Tell of a batch; `done` are the results of its items that have no flaw, in order."""
        try:
            self._tell(batch, done)
        except BrokenPipeError:
            last = batch[-1].where
            reports.output_closed(f"early; all up to {last} is stored, the same command goes on")

    def _tell(self, batch: list[Item], done: Iterator[dict[str, Any]]) -> None:
        for item in batch:
            result = next(done) if item.flaw is None else {"error": item.flaw}
            self._counts[result.get("event", "error")] += 1
            if "error" in result:
                say(f"{item.where}: {result['error']}")
                result = {"error": result["error"], "at": item.where}
            elif not self._as_json:
                text = printable(result["memory"])
                print(f"{result['event']:<6}  {result['id']}  {text}", flush=True)
            if self._as_json:
                self._results.append(result)

    def end(self, table: str) -> None:
        """Print the JSON object; leave with 3 if something was refused."""
        names = {"added": "ADD", "updated": "UPDATE", "unchanged": "NONE", "refused": "error"}
        counts = {name: self._counts[event] for name, event in names.items()}
        if self._as_json:
            print_json({"table": table, **counts, "results": self._results})
        if counts["refused"]:
            raise typer.Exit(3)
