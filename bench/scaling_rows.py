"""Ten million generated rows into one table by one process, and what the table is like then.

An echo encoder, so that nothing but reading, the pool and the store is measured; its vectors are
scattered, so that an index has partitions as with a real model's. Told are rows a second and the
parent's CPU time a row in the first and the last tenth of the rows (on a shared machine the
latter says more), private memory of the parent and of all, commits and fragments, bytes on disk
beside bytes of data (ids, texts and vectors), seconds to build the index and to optimize, and how
long searches take afterwards. The database lies under --scratch and needs three times the
data's bytes while it is optimized.
"""

from __future__ import annotations

import argparse
import resource
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import psutil

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from bench import common
from bench.texts import many_texts
from memworker import Table, ingest
from memworker.heap import private_bytes
from memworker.ingestion import RunningJob
from memworker.pool import EchoEncoder, SlotResults, SlotTexts, machine

EVERY_S = 0.25
TENTHS = 10
SEARCHES = 50
_DIFFERENT_TEXTS = 50_000
_CENTRES = 4096


def main(arguments: Sequence[str] | None = None) -> None:
    options = _options(arguments)
    with TemporaryDirectory(dir=options.scratch) as folder:
        result = measure(options, Path(folder) / "db")
    common.publish("scaling_rows", result, options, show)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = common.parser("scaling_rows", __doc__)
    parser.add_argument("--rows", type=common.positive, default=10_000_000)
    parser.add_argument("--dim", type=common.positive, default=384)
    parser.add_argument("--workers", type=common.positive, default=machine.usable_cores())
    parser.add_argument("--memory", help="as of ingest")
    parser.add_argument("--scratch", type=Path, help="where the database is made and removed")
    return parser.parse_args(arguments)


@dataclass(frozen=True, slots=True)
class ScatteredLoader:
    """Loads an encoder like `EchoEncoder`, whose vectors lie around some thousand centres."""

    dim: int

    def __call__(self) -> ScatteredEncoder:
        return ScatteredEncoder(self.dim)


class ScatteredEncoder:
    """Gives a text the sum of two vectors that its bytes choose, at memory speed."""

    def __init__(self, dim: int) -> None:
        self.dim = dim
        self._echo = EchoEncoder(dim)
        self._centres, self._offsets = _banks(dim)

    def encode(self, texts: SlotTexts, rows: SlotResults) -> Iterator[None]:
        """Write vectors; sums and lengths, which an echo tells, choose the two."""
        for _ in self._echo.encode(texts, rows):
            lengths, sums = rows.vectors[:, 1].astype(np.int64), rows.vectors[:, 2].astype(np.int64)
            first, second = (sums * 31 + lengths) % _CENTRES, (sums * 7919 + lengths) % 65_521
            rows.vectors[:] = self._centres[first]
            rows.vectors += self._offsets[second % _CENTRES]
            yield


def _banks(dim: int) -> tuple[Any, Any]:
    random = np.random.default_rng(0)
    centres = random.standard_normal((_CENTRES, dim), np.float32)
    return centres, random.standard_normal((_CENTRES, dim), np.float32) / 2


def generated(count: int) -> Iterator[dict[str, str]]:
    """Yield so many rows, none like another."""
    texts = many_texts(min(count, _DIFFERENT_TEXTS))
    for row in range(count):
        yield {"id": f"row-{row}", "text": f"{texts[row % len(texts)]} {row}"}


def measure(options: argparse.Namespace, db: Path) -> common.Result:
    """Ingest, optimize and search."""
    watch = _Watch(options.rows)
    watch.start()
    began = time.perf_counter()
    report = ingest(
        generated(options.rows),
        db=db,
        table="t",
        model=ScatteredLoader(options.dim),
        workers=options.workers,
        memory=options.memory,
        observer=watch.observe,
    )
    index_s = time.perf_counter() - began - report.startup_seconds - report.seconds
    watch.stop()
    table = Table.open(db, "t")
    fragments, on_disk = _fragments(db), _bytes(db)
    began = time.perf_counter()
    table.optimize()
    optimize_s = time.perf_counter() - began
    return {
        "rows": report.written,
        "dim": options.dim,
        "workers": report.workers,
        "seconds": report.seconds,
        "rows_per_second": report.written / report.seconds,
        **watch.result(),
        "index_s": index_s,
        "fragments": fragments,
        "version": report.table_version,
        "data_bytes": _data_bytes(options),
        "disk_bytes": on_disk,
        "optimize_s": optimize_s,
        "fragments_optimized": _fragments(db),
        "disk_bytes_optimized": _bytes(db),
        **searches(table, options.dim),
        "peak_of_this_process": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "notes": list(report.notes),
    }


def searches(table: Table, dim: int) -> dict[str, float]:
    """Ask for vectors beside stored ones, and for words; milliseconds."""
    random = np.random.default_rng(1)
    centres, offsets = _banks(dim)
    told = {}
    vectors = [
        centres[a] + offsets[b] + 0.1 * random.standard_normal(dim, np.float32)
        for a, b in random.integers(0, _CENTRES, (SEARCHES + 1, 2))
    ]
    words = [f"{text} {row}" for row, text in enumerate(many_texts(SEARCHES + 1))]
    for kind, ask, each in (
        ("vector", lambda vector: table.search(vector), vectors),
        ("words", lambda text: table.search_text(text), words),
    ):
        ask(each[0])
        took = []
        for question in each[1:]:
            began = time.perf_counter()
            ask(question)
            took.append(1000 * (time.perf_counter() - began))
        told[f"{kind}_p50_ms"], told[f"{kind}_p95_ms"] = np.percentile(took, [50, 95]).tolist()
    return told


def _data_bytes(options: argparse.Namespace) -> int:
    rows = options.rows
    some = [len(row["id"]) + len(row["text"].encode()) for row in generated(min(rows, 50_000))]
    return int(rows * (4 * options.dim + sum(some) / len(some)))


def _fragments(db: Path) -> int:
    import lancedb

    handle = lancedb.connect(str(db)).open_table("t")
    return int(handle.stats()["fragment_stats"]["num_fragments"])


def _bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


class _Watch(threading.Thread):
    """Samples how many rows are written, the parent's CPU time, and memory."""

    def __init__(self, rows: int) -> None:
        super().__init__(daemon=True)
        self._rows = rows
        self._done = threading.Event()
        self._live: RunningJob | None = None
        self._marks: list[tuple[int, float, float]] = []
        self._parent = self._all = self._parent_base = 0

    def observe(self, live: RunningJob) -> None:
        """Be what `ingest` calls as it begins."""
        self._live = live

    def stop(self) -> None:
        self._done.set()
        self.join()

    def run(self) -> None:
        while not self._done.wait(EVERY_S):
            if self._live is None:
                continue
            written = int(self._live.counts.written)
            if written and (not self._marks or written > self._marks[-1][0]):
                self._marks.append((written, time.perf_counter(), time.process_time()))
            parent = private_bytes() or 0
            children = psutil.Process().children(recursive=True)
            self._all = max(self._all, parent + sum(map(_private, children)))
            self._parent = max(self._parent, parent)
            if written <= self._rows // TENTHS:
                self._parent_base = max(self._parent_base, parent)

    def result(self) -> common.Result:
        """Give the first and the last tenth, and memory at its most."""
        marks = self._marks
        tenth = self._rows / TENTHS
        first = [mark for mark in marks if mark[0] <= tenth] or marks[:2]
        last = [mark for mark in marks if mark[0] >= self._rows - tenth] or marks[-2:]
        return {
            **_rates("first", first),
            **_rates("last", last),
            "parent_first_bytes": self._parent_base,
            "parent_bytes": self._parent,
            "all_bytes": self._all,
        }


def _rates(name: str, marks: list[tuple[int, float, float]]) -> dict[str, float | None]:
    rows = marks[-1][0] - marks[0][0] if marks else 0
    if not rows:
        return {f"{name}_rows_per_second": None, f"{name}_cpu_us": None}
    seconds, cpu_s = marks[-1][1] - marks[0][1], marks[-1][2] - marks[0][2]
    return {f"{name}_rows_per_second": rows / seconds, f"{name}_cpu_us": 1e6 * cpu_s / rows}


def _private(process: psutil.Process) -> int:
    try:
        return private_bytes(process.pid) or 0
    except psutil.Error:
        return 0


def show(result: common.Result) -> None:
    """Print what was measured, a line each."""
    ratio = common.ratio(result["last_rows_per_second"], result["first_rows_per_second"])
    cpu = common.ratio(result["last_cpu_us"], result["first_cpu_us"])
    lines = [
        ("rows a second, all", f"{result['rows_per_second']:,.0f}"),
        ("in the first tenth", common.figure(result["first_rows_per_second"], ",.0f")),
        ("in the last tenth", common.figure(result["last_rows_per_second"], ",.0f")),
        ("last ÷ first", common.figure(ratio)),
        ("parent CPU µs a row, first tenth", common.figure(result["first_cpu_us"])),
        ("last tenth", common.figure(result["last_cpu_us"])),
        ("last ÷ first", common.figure(cpu)),
        ("private memory of the parent, first tenth", _mb(result["parent_first_bytes"])),
        ("at most", _mb(result["parent_bytes"])),
        ("with workers and index, at most", _mb(result["all_bytes"])),
        ("fragments; versions", f"{result['fragments']:,}; {result['version']:,}"),
        ("bytes of data", _mb(result["data_bytes"])),
        ("on disk, with the vector index", _mb(result["disk_bytes"])),
        ("seconds for the vector index", f"{result['index_s']:,.0f}"),
        ("seconds of optimize", f"{result['optimize_s']:,.0f}"),
        ("fragments after it", f"{result['fragments_optimized']:,}"),
        ("on disk after it, older versions included", _mb(result["disk_bytes_optimized"])),
    ]
    lines += [
        (f"search by {kind}, ms: median; p95", f"{p50:,.1f}; {p95:,.1f}")
        for kind in ("vector", "words")
        for p50, p95 in [(result[f"{kind}_p50_ms"], result[f"{kind}_p95_ms"])]
    ]
    common.print_table(f"{result['rows']:,} rows of {result['dim']} dimensions", ["", ""], lines)
    for note in result["notes"]:
        print(f"note: {note}")


def _mb(value: int) -> str:
    return f"{value / 1e6:,.0f} MB"


if __name__ == "__main__":
    sys.exit(common.run(main))
