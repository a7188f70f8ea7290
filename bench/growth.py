"""Whether memory grows with the rows: one long ingest, its processes watched all the while.

Private memory (smaps_rollup, Private_Dirty) of the parent at its most while about 100,000 rows
were written (50,000 to 150,000: from moment to moment it swings by a third, with what is in
flight), and at its most from then on, also while the index is built; pages of files that it alone
has mapped (Private_Clean), such as those of known ids, which the system takes back where memory
is short; the workers and the process that builds the index at their most; and all together, beside
what the pool estimates without the index. With --memory the job gets that option, and runs in a
cgroup of that size where one can be made, so that it is killed if it takes more.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from bench import cgroup, common
from bench.texts import many_texts
from memworker import ingest, interpreters
from memworker.errors import UsageError
from memworker.heap import mapped_bytes, private_bytes
from memworker.ingestion import RunningJob
from memworker.pool import parse_bytes

MB = 1e6
BASE_ROWS = 100_000
# The base is taken while this share of it is written, up to that one.
BASE_SPAN = (0.5, 1.5)
EVERY_S = 0.25
_DIFFERENT_TEXTS = 50_000
_TOLD = {
    "parent_base": f"parent at some {BASE_ROWS:,}",
    "parent_most": "at most",
    "ratio": "ratio",
    "mapped_base": f"files mapped at some {BASE_ROWS:,}",
    "mapped_most": "at most",
    "workers_most": "workers",
    "index_most": "index",
    "job_most": "parent and workers",
    "estimate": "estimate",
    "all_most": "all",
}


def main(arguments: Sequence[str] | None = None) -> None:
    options = _options(arguments)
    if options.child:
        print(json.dumps(_watched(options)))
        return
    rows = [_row(model, options) for model in options.models]
    result = {"rows": rows, "asked": options.rows, "memory": options.memory}
    common.publish("growth", result, options, show)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = common.parser("growth", __doc__)
    parser.add_argument("--rows", type=common.positive, default=3_000_000)
    parser.add_argument("--models", type=common.names, default=["echo", "wordllama-256"])
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--workers", type=common.positive, default=1)
    parser.add_argument("--memory", help="also the size of the cgroup: 600MB")
    parser.add_argument("--scratch", type=Path, help="where the databases are made and removed")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def show(result: common.Result) -> None:
    def line(row: common.Result) -> list[str]:
        if "failed" in row:
            return [row["model"], row["failed"]]
        told = [common.figure(row[key], ",.2f" if key == "ratio" else ",.0f") for key in _TOLD]
        return [row["model"], f"{row['written']:,}", *told, row["group"], "; ".join(row["notes"])]

    columns = ["model", "rows", *_TOLD.values(), "cgroup", "notes"]
    common.print_table("private memory of an ingest, MB", columns, list(map(line, result["rows"])))


def _row(model: str, options: argparse.Namespace) -> common.Result:
    limit = parse_bytes(options.memory) if options.memory else None
    with TemporaryDirectory(dir=options.scratch) as folder, cgroup.limited(limit) as group:
        inside = limit is not None and group is not None
        # As any command of ours: on our path, for the bench's folder is on it too.
        command = interpreters.module_command("bench.growth", "--child", folder)
        command += ["--rows", str(options.rows), "--models", model]
        command += ["--precision", options.precision, "--workers", str(options.workers)]
        command += ["--memory", options.memory] if options.memory else []
        done = subprocess.run(
            command,
            stdout=subprocess.PIPE,
            text=True,
            # As the command line has it (cli/main.py).
            env=interpreters.environment(ARROW_DEFAULT_MEMORY_POOL="system"),
            preexec_fn=group.join if inside and group is not None else None,
        )
        told = f"{options.memory}, peak {_peak(group)}" if inside else "none"
        if limit is not None and group is None:
            told = "none: no cgroup can be made here"
    if done.returncode:
        return {"model": model, "failed": f"ended with {done.returncode}", "group": told}
    return {"model": model, "group": told, **json.loads(done.stdout.splitlines()[-1])}


def _peak(group: cgroup.Group | None) -> str:
    most = group.peak_bytes if group else None
    return f"{most / MB:,.0f} MB with pages of files" if most else "not told"


# ── the ingest, in a process of its own ──


def _watched(options: argparse.Namespace) -> common.Result:
    (model,) = options.models
    watch = _Watch()
    watch.start()
    began = time.perf_counter()
    report = ingest(
        _rows(options.rows),
        db=options.child / "db",
        table="t",
        model=model,
        precision=options.precision,
        workers=options.workers if options.memory is None else None,
        memory=options.memory,
        observer=watch.observe,
    )
    watch.stop()
    return {
        "written": report.written,
        "seconds": round(time.perf_counter() - began, 1),
        "workers": report.workers,
        "notes": list(report.notes),
        **watch.result(),
    }


def _rows(count: int) -> Iterator[dict[str, str]]:
    texts = many_texts(min(count, _DIFFERENT_TEXTS))
    for row in range(count):
        yield {"id": f"row-{row}", "text": f"{texts[row % len(texts)]} {row}"}


class _Watch(threading.Thread):
    """Samples this process and its children. `observe` is what `ingest` calls as it begins."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._done = threading.Event()
        self._live: RunningJob | None = None
        self._estimate: float | None = None
        names = ("parent", "workers", "index", "job", "all", "mapped", "base", "mapped_base")
        self._most = dict.fromkeys(names, 0.0)

    def observe(self, live: RunningJob) -> None:
        self._live = live

    def stop(self) -> None:
        self._done.set()
        self.join()

    def result(self) -> common.Result:
        """Give what was seen, in MB; the parent at its most counts from the base on."""
        seen = {name: round(value, 1) for name, value in self._most.items()}
        base, mapped_base = seen.pop("base") or None, seen.pop("mapped_base")
        return {
            **{f"{name}_most": value for name, value in seen.items()},
            "parent_base": base,
            "mapped_base": mapped_base,
            "ratio": common.ratio(seen["parent"], base),
            "estimate": self._estimate,
        }

    def run(self) -> None:
        while not self._done.wait(EVERY_S):
            parent, mapped = (private_bytes() or 0) / MB, (mapped_bytes() or 0) / MB
            children = psutil.Process().children(recursive=True)
            index = sum(_private(child) for child in children if _builds_index(child))
            workers = sum(map(_private, children)) - index
            self._see("all", parent + workers + index)
            live = self._live
            if live is None or live.pool is None:
                continue
            self._estimate = round(live.pool.plan.memory_bytes / MB, 1)
            share = live.counts.written / BASE_ROWS
            if BASE_SPAN[0] <= share <= BASE_SPAN[1]:
                self._see("base", parent)
                self._see("mapped_base", mapped)
            if share > BASE_SPAN[1]:
                self._see("parent", parent)
                self._see("mapped", mapped)
            self._see("workers", workers)
            self._see("index", index)
            if not index:
                self._see("job", parent + workers)

    def _see(self, name: str, value: float) -> None:
        self._most[name] = max(self._most[name], value)


def _builds_index(process: psutil.Process) -> bool:
    with suppress(psutil.Error):
        return "memworker.store import apart" in " ".join(process.cmdline())
    return False


def _private(process: psutil.Process) -> float:
    with suppress(psutil.Error):
        return (private_bytes(process.pid) or 0) / MB
    return 0.0


if __name__ == "__main__":
    try:
        main()
    except UsageError as error:
        sys.exit(f"error: {error}")
