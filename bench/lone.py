"""What a lone caller waits for: one `Memory.add`, one `Memory.search`, and both after many adds.

Beside them, in processes of their own that take turns: LanceDB by itself, which adds one row
with its vector at hand and searches with a filter by a vector at hand, and Mem0 with its local
store. A search is held against LanceDB's and the embedding of the same question. Then as many
memories are added one by one as `--many` says, and as many at once: what a search takes in
either table, and what they take on the disk once upkeep has been at both.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from itertools import cycle, islice
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from bench import common
from bench.memory import FILL_TIMEOUT_S, MODEL, alike, file_system, question
from bench.processes import Absent, Contestant
from bench.reference import export_reference
from bench.stores import StoreLoad
from bench.texts import read_texts
from memworker.models import ready_model
from memworker.pool import machine

OURS, BARE, MEM0, MANY = "memworker", "lancedb", "mem0", "many"
ADD_MS, SEARCH_TIMES, LATER_TIMES, DISK_TIMES = 6.0, 1.25, 1.3, 2.0
A_TURN = 16

Latencies = dict[tuple[str, str], list[float]]


def main(arguments: Sequence[str] | None = None) -> None:
    options = _options(arguments)
    texts = read_texts(options.texts, 4000)
    with TemporaryDirectory() as folder, ExitStack() as stack:
        place = Path(folder)
        entries, skipped = _opened(options, texts, place, stack)
        taken = _in_turns(entries, texts, options)
        many = entries[MANY].turn({"count": options.many}) if options.many else None
        found = {
            "model": MODEL,
            "precision": options.precision,
            "file_system": file_system(place),
            "stored": options.stored,
            "calls": options.calls,
            "rows": list(_rows(taken)),
            "skipped": skipped,
            "many": many,
        }
    found["targets"] = list(_targets(found))
    common.publish("lone", found, options, show)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = common.parser("lone", __doc__)
    parser.add_argument("texts", nargs="?", type=Path, help="texts; without, the shipped sample")
    parser.add_argument("--precision", default="int8")
    parser.add_argument("--stored", type=common.positive, default=5000, help="rows of one user")
    parser.add_argument("--calls", type=common.positive, default=256, help="adds, and searches")
    parser.add_argument("--many", type=int, default=10_000, help="lone adds, 0 for none")
    parser.add_argument("--mem0", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--workers", type=common.positive, default=machine.usable_cores())
    return parser.parse_args(arguments)


def _opened(
    options: argparse.Namespace, texts: list[str], folder: Path, stack: ExitStack
) -> tuple[dict[str, Contestant], dict[str, str]]:
    """Open and fill all, each with the same rows; tell of those that cannot be had."""
    names = [OURS, BARE, *([MEM0] if options.mem0 else []), *([MANY] if options.many else [])]
    model_dir = folder / "model"
    if options.mem0:
        export_reference(ready_model(MODEL, max_tokens=256), model_dir)
    entries, skipped = {}, {}
    for name in names:
        (own := folder / name).mkdir()
        load = StoreLoad(
            model=MODEL,
            precision=options.precision,
            max_tokens=256,
            model_dir=str(model_dir),
            folder=str(own),
            threads=options.workers,
            stored=options.stored,
            per_user=options.stored,
            texts=texts[: min(1024, options.stored)],
        )
        saved = load.save(folder / f"{name}.json")
        try:
            module = "bench.stores" if name in (OURS, MEM0) else "bench.lone_stores"
            entry = stack.enter_context(Contestant(name, saved, module=module))
            entry.first_answer(FILL_TIMEOUT_S)
            entries[name] = entry
        except Absent as absence:
            if name != MEM0:
                raise
            skipped[name] = str(absence)
    return entries, skipped


def _in_turns(
    entries: dict[str, Contestant], texts: list[str], options: argparse.Namespace
) -> Latencies:
    """Let everybody add a few and ask a few, in turn; each time another begins."""
    taken: Latencies = {}
    names = [name for name in entries if name != MANY]
    chosen = alike(texts, options.calls)
    for start in range(0, options.calls, A_TURN):
        part = chosen[start : start + A_TURN]
        first = start // A_TURN
        for name in islice(cycle(names), first, first + len(names)):
            entry = entries[name]
            for kind in ("add", "search"):
                found = entry.turn(_request(kind, part, start))
                taken.setdefault((name, kind), []).extend(found["latencies_ms"])
                taken.setdefault((name, "embed"), []).extend(found.get("embed_ms", []))
    return taken


def _request(kind: str, texts: list[str], start: int) -> common.Result:
    asks = kind == "search"
    return {
        "kind": kind,
        "callers": 1,
        "mode": "vector",
        "user": f"adds-{start}",
        # Those that are stored are the same texts, and would be no new memories.
        "texts": [question(text) if asks else text for text in texts],
        "users": ["user-0"] * len(texts),
    }


def _rows(taken: Latencies) -> Iterator[common.Result]:
    """Give a row a contestant and operation, each held against LanceDB's and Mem0's own."""
    embed = median(taken[OURS, "embed"])
    for (name, kind), latencies in taken.items():
        if not latencies:
            continue
        p50, p99 = (float(np.percentile(latencies, p)) for p in (50, 99))
        bare = taken.get((BARE, kind))
        base = None if not bare else median(bare) + (embed if kind == "search" else 0.0)
        theirs = taken.get((MEM0, kind))
        yield {
            "name": name,
            "operation": kind,
            "calls": len(latencies),
            "p50_ms": p50,
            "p99_ms": p99,
            "over_bare": common.ratio(p50, base) if kind != "embed" else None,
            "over_mem0": common.ratio(p50, median(theirs) if theirs else None),
        }


def _targets(found: common.Result) -> Iterator[common.Result]:
    rows = {(row["name"], row["operation"]): row for row in found["rows"]}
    add, search, many = rows[OURS, "add"], rows[OURS, "search"], found["many"]
    yield _target("add, p50 in ms", ADD_MS, add["p50_ms"])
    yield _target("add ÷ Mem0's", 1.0, add["over_mem0"])
    yield _target("search ÷ (LanceDB's + embedding)", SEARCH_TIMES, search["over_bare"])
    if many:
        later = common.ratio(many["one_by_one"]["search_p50_ms"], many["at_once"]["search_p50_ms"])
        yield _target("search after lone adds ÷ after one at once", LATER_TIMES, later)
        disk = common.ratio(many["one_by_one"]["bytes_tended"], many["at_once"]["bytes_tended"])
        yield _target("bytes on disk ÷ those of one at once", DISK_TIMES, disk)


def _target(figure: str, target: float, value: float | None) -> common.Result:
    met = None if value is None else value <= target
    return {"figure": figure, "target": target, "value": value, "met": met}


def show(found: common.Result) -> None:
    """Print what each took, and what was to be reached."""
    heads = ["", "operation", "calls", "p50 ms", "p99 ms", "÷ LanceDB", "÷ Mem0"]
    common.print_table(
        f"One caller, {found['stored']:,} rows of one user, {found['model']} {found['precision']},"
        f" on {found['file_system']}; ÷ LanceDB counts a question's embedding with its search",
        heads,
        [_cells(row) for row in found["rows"]],
    )
    for name, why in found["skipped"].items():
        print(f"not measured: {name}: {why}")
    if many := found["many"]:
        heads = ["", "search p50 ms", "p99 ms", "MB", "MB after upkeep", "fragments"]
        ways = {"one by one": many["one_by_one"], "at once": many["at_once"]}
        common.print_table(
            f"{many['count']:,} memories, an add {many['add_p50_ms']:.2f} ms (p50),"
            f" {many['add_p99_ms']:.2f} (p99)",
            heads,
            [_table_cells(way, figures) for way, figures in ways.items()],
        )
    for target in found["targets"]:
        state = {None: "not measured", True: "reached", False: "NOT reached"}[target["met"]]
        value = common.figure(target["value"])
        print(f"{state}: {target['figure']}: {value}, target {target['target']:g}")


def _cells(row: common.Result) -> list[str]:
    ratios = (row["over_bare"], row["over_mem0"])
    return [
        row["name"],
        row["operation"],
        f"{row['calls']:,}",
        f"{row['p50_ms']:.2f}",
        f"{row['p99_ms']:.2f}",
        *("" if ratio is None else f"{ratio:.2f}" for ratio in ratios),
    ]


def _table_cells(way: str, figures: dict[str, Any]) -> list[str]:
    return [
        way,
        f"{figures['search_p50_ms']:.2f}",
        f"{figures['search_p99_ms']:.2f}",
        f"{figures['bytes'] / 1e6:.1f}",
        f"{figures['bytes_tended'] / 1e6:.1f}",
        f"{figures['fragments']:,}",
    ]
