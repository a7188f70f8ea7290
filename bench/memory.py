"""The memory layer beside Mem0: adds, batches and searches at some numbers of stored memories.

Every contestant has a process of its own, the same texts, weights, token limit
and number of threads. Each operation goes round all contestants before the next
one begins; figures are medians over the rounds, ratios are taken within a round.
A search's own part is its time less that of embedding the same query right before;
the first one of a mode, when nothing is in memory yet, is told apart.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import cycle, islice
from pathlib import Path
from random import Random
from statistics import median
from tempfile import TemporaryDirectory, gettempdir
from typing import Any

import numpy as np
import psutil

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from bench import common
from bench.processes import Absent, Contestant
from bench.reference import export_reference
from bench.stores import MODES, StoreLoad
from bench.texts import data_dir, read_texts
from memworker.errors import UsageError
from memworker.models import ready_model
from memworker.pool import machine

MODEL = "all-MiniLM-L6-v2"
STATIC_MODEL = "wordllama-256"
OURS = ("fp32", "int8", "static")
MIXED = "mix_open.jsonl.gz"
TEXTS = 4000
BASE_TEXTS = 1024
QUESTION_WORDS = 12
MEM0_BATCH = 100
FILL_TIMEOUT_S = 1800.0
REFERENCE = "mem0"
LARGE = 200_000


def main(arguments: Sequence[str] | None = None) -> None:
    options = _options(arguments)
    unknown = sorted(set(options.precision) - set(OURS))
    if unknown:
        raise UsageError(f"no such precision: {', '.join(unknown)}. There are: {', '.join(OURS)}.")
    path = data_dir(options.data) / MIXED if options.data else None
    plan = Plan(operations(options), read_texts(path, TEXTS))
    rows: list[common.Result] = []
    for stored in options.stored:
        with TemporaryDirectory() as folder, ExitStack() as stack:
            entries = _open_all(stored, plan, options, Path(folder), stack)
            for number in range(options.rounds):
                _round(entries, plan, number)
            rows += [row for entry in entries for row in _rows(entry, entries, plan)]
    result = {
        "models": {"fp32, int8, mem0": MODEL, "static": STATIC_MODEL},
        "file_system": file_system(Path(gettempdir())),
        "source": path.name if path else "shipped sample",
        "max_tokens": options.max_tokens,
        "threads": options.workers,
        "rounds": options.rounds,
        "per_user": options.per_user,
        "rows": rows,
        "targets": list(_targets(rows)),
    }
    common.publish("memory", result, options, show)


@dataclass(frozen=True, slots=True)
class Operation:
    """What one turn does: `texts` memories or queries, by so many callers, so many a call."""

    name: str
    kind: str
    texts: int
    callers: int = 1
    rows: int = 1
    mode: str = ""

    @property
    def asks(self) -> bool:
        return self.kind in ("search", "recall")

    def is_of(self, contestant: str) -> bool:
        """Tell whether a contestant takes part: Mem0 has one search, and a loop for a batch."""
        if contestant != REFERENCE:
            return True
        return self.kind != "recall" and self.mode in ("", "vector") and self.rows <= MEM0_BATCH


@dataclass(frozen=True, slots=True)
class Plan:
    """What every contestant does in a round, with the same texts."""

    operations: list[Operation]
    texts: list[str]

    def requests(self, number: int, users: list[str]) -> Iterator[tuple[Operation, common.Result]]:
        """Yield a round's requests; every operation adds to a user of its own.

        Searches go to `users`, or where nothing was stored to the user of the first adds.
        """
        own = [f"round-{number}-{place}" for place in range(len(self.operations))]
        for user, operation in zip(own, self.operations, strict=True):
            if operation.kind == "recall" and number:
                continue
            texts = alike(self.texts, operation.texts)
            request = {
                "kind": operation.kind,
                "callers": operation.callers,
                "rows": operation.rows,
                "mode": operation.mode,
                "user": user,
                "texts": list(map(question, texts)) if operation.asks else texts,
                "users": list(islice(cycle(users or own[:1]), operation.texts)),
            }
            yield operation, request


@dataclass(slots=True)
class Entry:
    """A contestant at one number of stored memories, and its turns by operation."""

    name: str
    what: str
    stored: int
    users: list[str]
    contestant: Contestant | None = None
    skipped: str = ""
    first_ms: dict[str, float] = field(default_factory=dict)
    turns: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def open(self, name: str, workload: Path, stack: ExitStack) -> None:
        try:
            self.contestant = stack.enter_context(Contestant(name, workload, module="bench.stores"))
            self.first_ms = self.contestant.first_answer(FILL_TIMEOUT_S)["first_ms"]
        except Absent as absence:
            self.contestant, self.skipped = None, str(absence)

    def turn(self, operation: Operation, request: common.Result) -> None:
        if self.contestant is None:
            return
        try:
            found = self.contestant.turn(request)
        except Absent as absence:
            self.contestant, self.skipped = None, str(absence)
            return
        found["per_second"] = operation.texts / found["seconds"] if "seconds" in found else 0.0
        self.turns.setdefault(operation.name, []).append(found)


def alike(texts: list[str], count: int) -> list[str]:
    """Take `count` of the texts, in mixed order, whose lengths are spread as all the texts' are.

    Else a rate of a hundred texts could not be held against one of a thousand others.
    """
    by_length = sorted(texts, key=len)
    taken = [by_length[(2 * at + 1) * len(texts) // (2 * count)] for at in range(count)]
    Random(count).shuffle(taken)
    return taken


def question(text: str) -> str:
    """Cut a text to the length of what people ask."""
    return " ".join(text.split()[:QUESTION_WORDS])


def operations(options: argparse.Namespace) -> list[Operation]:
    """List a round's operations; adds first, so that a search of no stored memories finds some."""
    adds = [
        Operation(f"add, {n} caller{'s' * (n > 1)}", "add", options.adds * (1 + (n > 32)), n)
        for n in options.callers
    ]
    batches = [
        Operation(f"add_batch of {n:,}", "add_batch", n * (2 if n <= 100 else 1), rows=n)
        for n in options.batches
    ]
    searches = [
        Operation(f"search, {mode}", "search", options.queries, mode=mode) for mode in MODES
    ]
    return [*adds, *batches, *searches, Operation("recall@10", "recall", options.queries)]


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = common.parser("memory", __doc__)
    parser.add_argument("--data", type=Path, help=f"folder of reference data, for its {MIXED}")
    parser.add_argument("--precision", type=common.names, default=list(OURS))
    parser.add_argument(
        "--mem0",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="measure Mem0 in the same run, when it is installed",
    )
    parser.add_argument("--stored", type=_counts, default=[0, 10_000, LARGE])
    parser.add_argument("--per-user", type=common.positive, default=1000, help="stored memories")
    parser.add_argument("--callers", type=_counts, default=[1, 10, 64])
    parser.add_argument("--batches", type=_counts, default=[100, 1000])
    parser.add_argument("--adds", type=common.positive, default=128, help="single adds a turn")
    parser.add_argument("--queries", type=common.positive, default=64, help="searches a turn")
    parser.add_argument("--rounds", type=common.positive, default=3)
    parser.add_argument("--max-tokens", type=common.positive, default=256)
    parser.add_argument("--workers", type=common.positive, default=machine.usable_cores())
    return parser.parse_args(arguments)


def _counts(text: str) -> list[int]:
    found = [int(part.replace("_", "")) for part in common.names(text)]
    if min(found) < 0:
        raise argparse.ArgumentTypeError(f"must be at least 0, not {min(found)}")
    return found


def _open_all(
    stored: int, plan: Plan, options: argparse.Namespace, folder: Path, stack: ExitStack
) -> list[Entry]:
    """Open and fill one contestant after the other; all stay open, one is busy at a time."""
    model_dir = folder / "model"
    if options.mem0:
        export_reference(ready_model(MODEL, max_tokens=options.max_tokens), model_dir)
    entries = []
    for name in [*options.precision, *([REFERENCE] if options.mem0 else [])]:
        (own := folder / name).mkdir()
        load = StoreLoad(
            model=STATIC_MODEL if name == "static" else MODEL,
            precision="int8" if name == "int8" else "fp32",
            max_tokens=None if name == "static" else options.max_tokens,
            model_dir=str(model_dir),
            folder=str(own),
            threads=options.workers,
            stored=stored,
            per_user=options.per_user,
            texts=plan.texts[: min(BASE_TEXTS, stored)],
        )
        entry = Entry(name, _what(name), stored, load.users)
        program = name if name == REFERENCE else "memworker"
        entry.open(program, load.save(folder / f"{name}.json"), stack)
        entries.append(entry)
    return entries


def file_system(path: Path) -> str:
    """Name the kind of file system that the stores lie on: a disk's syncs are part of an add."""
    found = [
        (len(disk.mountpoint), disk.fstype)
        for disk in psutil.disk_partitions(all=True)
        if path.resolve().is_relative_to(disk.mountpoint)
    ]
    return max(found, default=(0, "unknown"))[1]


def _what(name: str) -> str:
    if name == REFERENCE:
        return "Mem0, infer=False"
    return f"memworker {name}"


def _round(entries: list[Entry], plan: Plan, number: int) -> None:
    """Let everybody do each operation in turn; every other round backwards."""
    order = entries[::-1] if number % 2 else entries
    for operation, request in plan.requests(number, entries[0].users):
        for entry in order:
            if operation.is_of(entry.name):
                entry.turn(operation, request)


def _rows(entry: Entry, entries: list[Entry], plan: Plan) -> Iterator[common.Result]:
    """Give a row an operation."""
    about = {"stored": entry.stored, "name": entry.name, "what": entry.what}
    if entry.skipped:
        yield {**about, "skipped": entry.skipped}
        return
    reference = next((other for other in entries if other.name == REFERENCE), None)
    found = entry.turns.get("recall@10", [{}])[0].get("recall")
    for operation in plan.operations:
        turns = entry.turns.get(operation.name)
        if not turns or operation.kind == "recall":
            continue
        row = {
            **about,
            "operation": operation.name,
            "kind": operation.kind,
            **figures(turns),
            "over_mem0": _over(turns, reference, operation),
        }
        if operation.mode in entry.first_ms:
            row["first_ms"] = entry.first_ms[operation.mode]
        if operation.mode == "vector" and found:
            row["recall_at_10"] = float(np.mean(found))
        yield row


def figures(turns: Sequence[dict[str, Any]]) -> common.Result:
    """Give the rate's median over the turns, and percentiles of all calls; times in ms."""
    rates = [turn["per_second"] for turn in turns]
    latencies = np.concatenate([turn["latencies_ms"] for turn in turns])
    found = {
        "per_second": median(rates),
        "spread": common.spread(rates),
        "calls": len(latencies),
        **_percentiles("", latencies),
    }
    if "embed_ms" in turns[0]:
        embeds = np.concatenate([turn["embed_ms"] for turn in turns])
        found |= {**_percentiles("embed_", embeds), **_percentiles("rest_", latencies - embeds)}
    return found


def _percentiles(prefix: str, values: Any) -> dict[str, float]:
    return {f"{prefix}p{p}_ms": float(np.percentile(values, p)) for p in (50, 95, 99)}


def _over(turns: list[dict[str, Any]], reference: Entry | None, operation: Operation) -> Any:
    """Hold adds against Mem0's single add, a search against its search, round by round."""
    if reference is None:
        return None
    name = operation.name if operation.kind == "search" else "add, 1 caller"
    theirs = reference.turns.get("search, vector" if operation.kind == "search" else name, [])
    ratios = [a["per_second"] / b["per_second"] for a, b in zip(turns, theirs, strict=False)]
    return median(ratios) if ratios else None


def _targets(rows: list[common.Result]) -> Iterator[common.Result]:
    """Hold the figures against what the memory layer is to reach."""
    over = {"fp32": 2.0, "int8": 2.3, "static": 100.0}
    for row in rows:
        if row.get("name") not in over or "skipped" in row:
            continue
        where = {"what": row["what"], "stored": row["stored"], "operation": row["operation"]}
        if row["kind"] == "add_batch":
            yield _target(where, "times Mem0's add", over[row["name"]], row["over_mem0"])
        elif row["operation"] == "add, 64 callers":
            yield _target(where, "times Mem0's add", 1.8, row["over_mem0"])
        elif row["operation"] == "search, vector" and row["stored"] >= LARGE:
            yield _target(where, "p50 in ms after embedding", 20.0, row["rest_p50_ms"], most=True)
            yield _target(where, "recall@10", 0.95, row.get("recall_at_10"))


def _target(
    where: common.Result, figure: str, target: float, value: float | None, *, most: bool = False
) -> common.Result:
    met = None if value is None else value <= target if most else value >= target
    return {**where, "figure": figure, "target": target, "value": value, "met": met}


def show(result: common.Result) -> None:
    """Print a table for each number of stored memories, and what was to be reached."""
    heads = ["", "operation", "a second", "spread", "p50 ms", "p95", "p99", "embed", "rest p50"]
    heads += ["first", "recall@10", "÷ Mem0"]
    for stored in dict.fromkeys(row["stored"] for row in result["rows"]):
        rows = [row for row in result["rows"] if row["stored"] == stored]
        common.print_table(
            f"{stored:,} stored memories ({result['source']}), {result['threads']} threads,"
            f" medians of {result['rounds']}, on {result['file_system']}",
            heads,
            [cells(row) for row in rows if "skipped" not in row],
        )
        for row in rows:
            if "skipped" in row:
                print(f"not measured: {row['what']}: {row['skipped']}")
    for target in result["targets"]:
        if target["met"] is not None:
            print(said(target))


def cells(row: common.Result) -> list[str]:
    """Write a row's figures."""
    times = ("p50_ms", "p95_ms", "p99_ms", "embed_p50_ms", "rest_p50_ms", "first_ms")
    return [
        row["name"],
        row["operation"],
        f"{row['per_second']:,.1f}",
        f"{row['spread']:.0%}",
        *(f"{row[key]:.2f}" if key in row else "" for key in times),
        f"{row['recall_at_10']:.3f}" if "recall_at_10" in row else "",
        "" if row["over_mem0"] is None else f"{row['over_mem0']:.2f}",
    ]


def said(target: common.Result) -> str:
    """Write what was to be reached, and whether it was."""
    outcome = {None: "not measured", True: "reached", False: "NOT reached"}[target["met"]]
    value = "" if target["value"] is None else f" {target['value']:.2f},"
    return (
        f"{outcome}: {target['what']}, {target['operation']}, {target['stored']:,} stored:"
        f"{value} target {target['target']:g} {target['figure']}"
    )


if __name__ == "__main__":
    sys.exit(common.run(main))
