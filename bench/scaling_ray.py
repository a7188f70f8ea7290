"""The same job by this process and on Ray, on the same cores, in turns.

Texts of a JSON-lines file go into a new LanceDB table each time: few of them, then all. Rows a
second are the difference of the two in rows over that in seconds, so that what starts and ends
(workers, actors, Ray itself) is apart, and is told as seconds; rows a second of the whole large
run stand beside. CPU microseconds a row are of all processes of the job, Ray's too, in the same
difference: on a machine with other work they say more. Shares are those of the local run of the
same round; medians over the rounds are shown. Layouts: `node` is one pool of all cores, `cpu` a
pool of one worker for each.
"""

from __future__ import annotations

import argparse
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from bench import common
from bench.ceiling import write_jsonl
from bench.texts import many_texts
from memworker import ingest
from memworker.ingestion import COMMITS, OnRay
from memworker.pool import machine

EVERY_S = 0.2
# The small run has so large a part of the rows.
SMALL = 5


def main(arguments: Sequence[str] | None = None) -> None:
    options = _options(arguments)
    common.optional("ray.data")
    rows = []
    with TemporaryDirectory(dir=options.scratch) as folder:
        texts = many_texts(options.limit, options.texts)
        few = write_jsonl(texts[: options.limit // SMALL], Path(folder) / "few.jsonl")
        path = few, write_jsonl(texts, Path(folder) / "texts.jsonl")
        for model in options.models:
            for precision in options.precisions:
                rows += _rows(path, model, precision, options)
    result = {
        "texts": options.limit,
        "cores": machine.usable_cores(),
        "repeats": options.repeats,
        "commit": options.commit,
        "rows": rows,
    }
    variant = "-".join(Path(each).name for each in (*options.models, *options.precisions))
    common.publish("scaling_ray", result, options, show, variant=variant)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = common.parser("scaling_ray", __doc__)
    parser.add_argument("texts", nargs="?", type=Path, help="jsonl(.gz); default: shipped sample")
    parser.add_argument("--limit", type=common.positive, default=8192)
    parser.add_argument("--models", type=common.names, default=["all-MiniLM-L6-v2"])
    parser.add_argument("--precisions", type=common.names, default=["fp32", "int8"])
    parser.add_argument("--layouts", type=common.names, default=["node"], help="node, cpu")
    parser.add_argument("--commit", choices=COMMITS, default="auto")
    parser.add_argument("--repeats", type=common.positive, default=1)
    parser.add_argument("--scratch", type=Path, help="where the databases are made and removed")
    return parser.parse_args(arguments)


def _rows(
    paths: tuple[Path, Path], model: str, precision: str, options: argparse.Namespace
) -> list[common.Result]:
    runners: dict[str, Any] = {"local": "local"}
    for layout in options.layouts:
        on = OnRay(commit=options.commit, encoders=layout)
        runners[f"Ray, an encoder a {layout}"] = on
    turns: dict[str, list[dict[str, float]]] = {}
    for _ in range(options.repeats):
        here: dict[str, float] = {}
        for name, runner in runners.items():
            few, many = (measure(path, model, precision, runner) for path in paths)
            told = _difference(few, many)
            here = here or told
            shares = {
                "share": told["rows_per_second"] / here["rows_per_second"],
                "cpu_share": here["cpu_us_per_row"] / told["cpu_us_per_row"],
                "share_of_all": told["rows_per_second_of_all"] / here["rows_per_second_of_all"],
            }
            turns.setdefault(name, []).append({**told, **shares})
    return [
        {"name": f"{model} {precision}", "runner": name, **common.medians(found)}
        for name, found in turns.items()
    ]


def measure(path: Path, model: str, precision: str, runner: Any) -> tuple[int, float, float]:
    """Take the texts into a table of its own; give rows, seconds, and CPU seconds."""
    with TemporaryDirectory(dir=path.parent) as db, CpuOfAll() as cpu:
        began = time.perf_counter()
        report = ingest(path, db=db, table="t", model=model, precision=precision, runner=runner)
        return report.written, time.perf_counter() - began, cpu.seconds()


def _difference(few: tuple[int, float, float], many: tuple[int, float, float]) -> dict[str, float]:
    rows, seconds, cpu_s = (more - less for more, less in zip(many, few, strict=True))
    return {
        "rows_per_second": rows / seconds,
        "cpu_us_per_row": 1e6 * cpu_s / rows,
        "start_and_end_s": many[1] - many[0] * seconds / rows,
        "rows_per_second_of_all": many[0] / many[1],
    }


class CpuOfAll(threading.Thread):
    """Adds up CPU seconds of this process and all below it, also of those that ended meanwhile."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._done = threading.Event()
        self._seen: dict[tuple[int, float], float] = {}
        self._before = 0.0

    def __enter__(self) -> CpuOfAll:
        self._look()
        self._before = sum(self._seen.values())
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self.join()

    def seconds(self) -> float:
        """Give what was seen since the beginning."""
        self._look()
        return sum(self._seen.values()) - self._before

    def run(self) -> None:
        while not self._done.wait(EVERY_S):
            self._look()

    def _look(self) -> None:
        own = psutil.Process()
        for process in [own, *own.children(recursive=True)]:
            try:
                with process.oneshot():
                    times = process.cpu_times()
                    self._seen[process.pid, process.create_time()] = times.user + times.system
            except psutil.Error:
                continue


def show(result: common.Result) -> None:
    """Print a row a runner."""
    common.print_table(
        f"{result['texts']:,} texts into LanceDB, {result['cores']} cores,"
        f" medians of {result['repeats']}",
        ["", "runner", "rows/s", "share", "CPU µs a row", "share", "start, end s", "all rows/s"],
        [
            [
                row["name"],
                row["runner"],
                f"{row['rows_per_second']:,.0f}",
                f"{row['share']:.2f}",
                f"{row['cpu_us_per_row']:,.0f}",
                f"{row['cpu_share']:.2f}",
                f"{row['start_and_end_s']:.1f}",
                f"{row['rows_per_second_of_all']:,.0f} ({row['share_of_all']:.2f})",
            ]
            for row in result["rows"]
        ],
    )


if __name__ == "__main__":
    sys.exit(common.run(main))
