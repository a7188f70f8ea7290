"""An hour of the server and of a Memory: nothing may grow, and every answer must be right.

The server gets 64 clients, the Memory adds, updates, deletes and searches of several
threads at a bounded number of rows, both at a bounded rate. Every so often it
is noted what private memory, descriptors and threads each process has, how much
lies on the disk, and how long calls took; of that, the last third is held
against the second. Every answer is held against what it must be.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from bench import common
from bench.processes import Contestant
from bench.server import serving
from bench.soak_memory import MemoryLoad
from bench.soak_server import Clients, Known
from bench.soak_watch import Family, drifts, folder, needs_proc
from bench.texts import read_texts
from memworker.errors import MemworkerError

WHAT = ("server", "memory", "both")
SAMPLES = 120
SAMPLE_S = (0.5, 60.0)
# None of these may be met even once.
WRONG = (
    *("wrong answers", "wrong vectors", "lost adds"),
    *("server errors", "memory errors"),
)


def main(arguments: Sequence[str] | None = None) -> None:
    options = _options(arguments)
    needs_proc()
    # Who ends a run early wants its figures, and nothing left running.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    result = soak(options)
    show(result)
    if said := verdict(result):
        raise MemworkerError(said)


@dataclass(slots=True)
class Record:
    """All that was seen: a sample a window, and what they add up to."""

    options: argparse.Namespace
    at_s: list[float] = field(default_factory=list)
    samples: list[dict[str, float]] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    complaints: list[str] = field(default_factory=list)
    families: list[Family] = field(default_factory=list)
    interrupted: bool = False

    def add(self, at_s: float, seen: dict[str, float], windows: dict[str, common.Result]) -> None:
        """Note a sample; what has been seen so far is kept even if the run does not end."""
        sample = dict(seen)
        for name, window in windows.items():
            for kind, latency in window["latency"].items():
                sample |= {f"{name}: {kind} {key}": value for key, value in latency.items()}
            self.note(window)
        self.at_s.append(round(at_s, 1))
        self.samples.append(sample)
        self.save()

    def note(self, window: common.Result) -> None:
        """Add up what a window counted."""
        self.counts.update(window["counts"])
        self.complaints = (self.complaints + window["complaints"])[:50]

    def result(self) -> common.Result:
        """Give all of it, with the drift of each figure."""
        options = self.options
        return {
            "bench": "soak",
            "machine": common.machine_facts(),
            "what": options.what,
            "minutes": round(self.at_s[-1] / 60, 2) if self.at_s else 0.0,
            "interrupted": self.interrupted,
            "settings": {
                name: value
                for name, value in vars(options).items()
                if name not in ("json", "minutes", "what")
            },
            "counts": dict(sorted(self.counts.items())),
            "complaints": self.complaints,
            "workers_replaced": sum(family.replaced for family in self.families),
            "load_average": _thirds([sample["load average"] for sample in self.samples]),
            "drifts": drifts(self.samples, self.at_s),
            "at_s": self.at_s,
            "samples": self.samples,
        }

    def save(self) -> None:
        """Write the file that was asked for, whole or not at all."""
        if path := self.options.json:
            content = json.dumps(self.result(), indent=1)
            common.write_output(path, "--json", content, begins=common.RESULT_BEGINS)


def soak(options: argparse.Namespace) -> common.Result:
    """Run for so many minutes; an interrupt ends it early, with what there is."""
    if options.json:
        common.checked_output(options.json, "--json", common.RESULT_BEGINS)
    record = Record(options)
    with TemporaryDirectory(prefix="memworker-soak-") as named, ExitStack() as stack:
        # Where what a program leaves in the place for temporary files would be seen.
        (scratch := Path(named) / "tmp").mkdir()
        (db := Path(named) / "db").mkdir()
        clients = _server(options, scratch, record, stack) if options.what != "memory" else None
        memory = _memory(options, db, scratch, record, stack) if options.what != "server" else None
        try:
            _watch(record, clients, memory, [("database", db), ("temporary", scratch)])
        except KeyboardInterrupt:
            record.interrupted = True
        if memory:
            record.note(last := memory.turn("end"))
            record.counts["rows at the end"] = last["rows"]
    record.save()
    return record.result()


def _server(
    options: argparse.Namespace, scratch: Path, record: Record, stack: ExitStack
) -> Clients:
    known = Known.by(options.model, options.precision, read_texts(None, options.texts))
    told = ["--model", options.model, "--precision", options.precision, "--truncate"]
    told += [] if options.workers is None else ["--workers", str(options.workers)]
    environment = os.environ | {"TMPDIR": str(scratch)}
    server = stack.enter_context(serving(told, environment))
    record.families.append(Family("server", server.process.pid))
    return stack.enter_context(Clients(server.url, known, options.clients, options.requests))


def _memory(
    options: argparse.Namespace, db: Path, scratch: Path, record: Record, stack: ExitStack
) -> Contestant:
    load = MemoryLoad(
        db=str(db),
        scratch=str(scratch),
        model=options.memory_model,
        rows=options.rows,
        per_second=options.operations,
        workers=options.workers,
    )
    saved = load.save(db.with_name("load.json"))
    memory = stack.enter_context(Contestant("memory", saved, module="bench.soak_memory"))
    pid = memory.first_answer(timeout_s=600.0)["pid"]
    record.families.append(Family("memory", pid))
    return memory


def _watch(
    record: Record,
    clients: Clients | None,
    memory: Contestant | None,
    folders: list[tuple[str, Path]],
) -> None:
    seconds = 60 * record.options.minutes
    every_s = min(max(seconds / SAMPLES, SAMPLE_S[0]), SAMPLE_S[1])
    began = time.monotonic()
    for number in range(1, max(1, round(seconds / every_s)) + 1):
        time.sleep(max(0.0, began + number * every_s - time.monotonic()))
        windows: dict[str, common.Result] = {}
        if clients:
            windows["server"] = clients.window.take()
        if memory:
            windows["memory"] = memory.turn("window")
        seen: dict[str, float] = {"load average": round(os.getloadavg()[0], 2)}
        for family in record.families:
            seen |= family.look()
        for name, path in folders:
            seen |= folder(name, path)
        record.add(time.monotonic() - began, seen, windows)


def verdict(result: common.Result) -> str:
    """Say in a line what was wrong or grew; nothing when all is well."""
    wrong = [f"{result['counts'][what]:,} {what}" for what in WRONG if result["counts"].get(what)]
    grown = [row["figure"] for row in result["drifts"] if row["steady"] is False]
    said = "; ".join(filter(None, (", ".join(wrong), grown and f"grown: {', '.join(grown)}")))
    return f"the soak found: {said}" if said else ""


def show(result: common.Result) -> None:
    """Print a row a figure, then what was counted."""
    title = f"soak of {result['what']}, {result['minutes']:g} minutes"
    common.print_table(
        title + (", interrupted" if result["interrupted"] else ""),
        ("", "second third", "last third", "ratio", "an hour", ""),
        [_cells(row) for row in result["drifts"]],
    )
    for what, many in result["counts"].items():
        print(f"{what}: {many:,}")
    print(f"workers replaced: {result['workers_replaced']}")
    # Latencies tell as much of the machine's other work as of ours.
    print(f"load average, a third at a time: {', '.join(map(str, result['load_average']))}")
    for complaint in result["complaints"]:
        print(f"  {complaint}")


def _thirds(values: list[float]) -> list[float | None]:
    third = len(values) / 3
    parts = [values[round(n * third) : round((n + 1) * third)] for n in range(3)]
    return [round(median(part), 2) if part else None for part in parts]


def _cells(row: common.Result) -> list[str]:
    said: dict[Any, str] = {True: "steady", False: "GROWS", None: "too few samples"}
    numbers = [_number(row[key]) for key in ("second", "last", "ratio")]
    by_hour = "" if row["an_hour"] is None else f"{row['an_hour'] + 0.0:+,.1f}"
    return [row["figure"], *numbers, by_hour, said[row["steady"]]]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:,g}"


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/soak", description=__doc__)
    positive = common.positive
    parser.add_argument("--minutes", type=_amount, default=60.0)
    parser.add_argument("--what", choices=WHAT, default="both")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep all samples, as they come")
    parser.add_argument("--clients", type=positive, default=64, help="of the server")
    parser.add_argument("--requests", type=_amount, default=100.0, help="a second, of all clients")
    parser.add_argument("--model", default="all-MiniLM-L6-v2", help="of the server; also: echo")
    parser.add_argument("--precision", default="int8", choices=("fp32", "int8"))
    parser.add_argument("--texts", type=positive, default=1000, help="that the clients ask for")
    parser.add_argument("--operations", type=_amount, default=40.0, help="a second, of the Memory")
    parser.add_argument("--rows", type=positive, default=10_000, help="live memories at a time")
    parser.add_argument("--memory-model", default="wordllama-256")
    parser.add_argument("--workers", type=positive, help="of each; default: the usable cores")
    return parser.parse_args(arguments)


def _amount(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be more than 0, not {text}")
    return value


if __name__ == "__main__":
    sys.exit(common.run(main))
