"""64 callers of one text each, in every way there is, over one call with all the texts.

Threads and coroutines share a pool in this process; HTTP clients ask a server beside it. All
of it in one run, in rounds that take the ways in turn and every second time backwards. Each
way's speed is held against the bulk call of the same round, and so is what it costs: the
processor time of this process, which is caller and pool in one (for the server: the server's,
without its workers'), of the workers, and of the HTTP clients, who have the same cores; and how
much of what the workers compute is padding.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from threading import Thread

import numpy as np
import psutil

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from bench import common, http_load
from bench.server import MODEL, ServerProcess, serving
from bench.texts import read_texts
from memworker import AsyncEmbeddingPool, EmbeddingPool
from memworker.errors import MemworkerError
from memworker.pool import machine

WAYS = ("bulk", "threads", "coroutines", "server")
TARGETS = {"threads": 0.93, "coroutines": 0.93, "server": 0.88}
_WARM_UP_TEXTS = 200


@dataclass(slots=True)
class Turn:
    """What one way took for all texts: seconds of the clock, of each text, and of processors."""

    seconds: float = 0.0
    waits: list[float] = field(default_factory=list)
    parent_s: float = 0.0
    workers_s: float = 0.0
    clients_s: float = 0.0
    padding: float | None = None


Way = Callable[[list[str]], Turn]


def main(arguments: Sequence[str] | None = None) -> None:
    options = _options(arguments)
    texts = read_texts(options.texts, options.limit)
    with ExitStack() as stack:
        ways = _opened(stack, texts, options)
        for way in ways.values():
            way(texts[:_WARM_UP_TEXTS])
        rounds = [_round(ways, texts, backwards=bool(n % 2)) for n in range(options.repeats)]
    result = {
        "texts": len(texts),
        "callers": options.callers,
        "workers": options.workers,
        "precision": options.precision,
        "repeats": options.repeats,
        "targets": TARGETS,
        "rows": [_row(name, rounds, len(texts)) for name in ways],
    }
    common.publish("callers", result, options, show)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = common.parser("callers", __doc__)
    parser.add_argument("texts", nargs="?", type=Path, help="jsonl(.gz); default: shipped sample")
    parser.add_argument("--ways", type=common.names, default=list(WAYS), help="bulk is among them")
    parser.add_argument("--precision", default="int8", choices=("fp32", "int8"))
    parser.add_argument("--limit", type=common.positive, default=2000, help="texts")
    parser.add_argument("--callers", type=common.positive, default=64)
    parser.add_argument("--workers", type=common.positive, default=machine.usable_cores())
    parser.add_argument("--repeats", type=common.positive, default=5)
    options = parser.parse_args(arguments)
    unknown = set(options.ways) - set(WAYS)
    if unknown:
        parser.error(f"--ways knows {', '.join(WAYS)}, not {', '.join(sorted(unknown))}")
    return options


def _opened(stack: ExitStack, texts: list[str], options: argparse.Namespace) -> dict[str, Way]:
    pool = stack.enter_context(
        EmbeddingPool(MODEL, precision=options.precision, workers=options.workers)
    )
    callers = options.callers
    ways: dict[str, Way] = {
        "bulk": lambda some: _in_pool(pool, lambda turn: _bulk(pool, some)),
        "threads": lambda some: _in_pool(pool, lambda turn: _threads(pool, some, callers, turn)),
        "coroutines": lambda some: _in_pool(
            pool, lambda turn: asyncio.run(_coroutines(pool, some, callers, turn))
        ),
    }
    if "server" in options.ways:
        asked = ["--model", MODEL, "--precision", options.precision, "--truncate"]
        server = stack.enter_context(serving([*asked, "--workers", str(options.workers)]))
        requests = {text: http_load.request(server.url, MODEL, [text]) for text in texts}
        ways["server"] = lambda some: _http(server, [requests[text] for text in some], callers)
    return {name: way for name, way in ways.items() if name == "bulk" or name in options.ways}


def _round(ways: dict[str, Way], texts: list[str], *, backwards: bool) -> dict[str, Turn]:
    names = list(ways)
    return {name: ways[name](texts) for name in (reversed(names) if backwards else names)}


# ── the ways ──


def _in_pool(pool: EmbeddingPool, ask: Callable[[Turn], None]) -> Turn:
    """Run a way of this process and see what it and the pool's workers spend."""
    turn, workers = Turn(), [psutil.Process(pid) for pid in pool.worker_pids()]
    before, parent_s, workers_s = pool.work, time.process_time(), _spent(workers)
    started = time.perf_counter()
    ask(turn)
    turn.seconds = time.perf_counter() - started
    turn.parent_s = time.process_time() - parent_s
    turn.workers_s = _spent(workers) - workers_s
    turn.padding = pool.work.since(before).padding_ratio
    return turn


def _spent(processes: Sequence[psutil.Process]) -> float:
    times = [process.cpu_times() for process in processes]
    return sum(each.user + each.system for each in times)


def _bulk(pool: EmbeddingPool, texts: list[str]) -> None:
    pool.embed(texts)


def _threads(pool: EmbeddingPool, texts: list[str], callers: int, turn: Turn) -> None:
    waiting = iter(texts)

    def caller() -> None:
        # The interpreter's lock makes one step of an iterator whole.
        for text in waiting:
            started = time.perf_counter()
            pool.embed([text])
            turn.waits.append(time.perf_counter() - started)

    threads = [Thread(target=caller) for _ in range(callers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


async def _coroutines(pool: EmbeddingPool, texts: list[str], callers: int, turn: Turn) -> None:
    shared, waiting = AsyncEmbeddingPool(pool=pool), iter(texts)

    async def caller() -> None:
        for text in waiting:
            started = time.perf_counter()
            await shared.embed([text])
            turn.waits.append(time.perf_counter() - started)

    await asyncio.gather(*(caller() for _ in range(callers)))


def _http(server: ServerProcess, requests: list[bytes], callers: int) -> Turn:
    clients_s, parent_s, workers_s = (
        time.process_time(),
        server.cpu_s(),
        server.workers_cpu_s(),
    )
    outcome = http_load.each_once(server.url, requests, callers)
    if set(outcome.statuses) != {200}:
        raise MemworkerError(f"not every request was answered: {outcome.statuses}")
    return Turn(
        outcome.seconds,
        outcome.latencies,
        server.cpu_s() - parent_s,
        server.workers_cpu_s() - workers_s,
        time.process_time() - clients_s,
    )


# ── what came of it ──


def _row(name: str, rounds: list[dict[str, Turn]], texts: int) -> common.Result:
    turns = [turns[name] for turns in rounds]
    over = [turns["bulk"].seconds / turns[name].seconds for turns in rounds]
    waits = list(_each_wait(turns))
    p50, p99 = np.percentile(waits, [50, 99]).tolist() if waits else (None, None)

    def us(seconds: Callable[[Turn], float]) -> float:
        return 1e6 * median(seconds(turn) for turn in turns) / texts

    paddings = [turn.padding for turn in turns if turn.padding is not None]
    return {
        "way": name,
        "texts_per_second": median(texts / turn.seconds for turn in turns),
        "over_bulk": median(over),
        "over_bulk_least": min(over),
        "over_bulk_most": max(over),
        "p50_ms": p50 and 1000 * p50,
        "p99_ms": p99 and 1000 * p99,
        "parent_us_a_text": us(lambda turn: turn.parent_s),
        "clients_us_a_text": us(lambda turn: turn.clients_s),
        "workers_us_a_text": us(lambda turn: turn.workers_s),
        "padding": median(paddings) if paddings else None,
    }


def _each_wait(turns: Sequence[Turn]) -> Iterator[float]:
    for turn in turns:
        yield from turn.waits


def show(result: common.Result) -> None:
    """Print a row a way."""
    common.print_table(
        f"{result['texts']:,} texts, {result['callers']} callers, {result['precision']},"
        f" {result['workers']} workers, medians of {result['repeats']} rounds",
        [
            *("", "texts/s", "÷ bulk", "least–most", "target", "p50 / p99 [ms]"),
            *("parent [µs a text]", "clients", "workers", "padding"),
        ],
        [_cells(row, result["targets"]) for row in result["rows"]],
    )


def _cells(row: common.Result, targets: dict[str, float]) -> list[str]:
    name, waits = row["way"], (row["p50_ms"], row["p99_ms"])
    return [
        name,
        f"{row['texts_per_second']:,.0f}",
        f"{row['over_bulk']:.3f}",
        f"{row['over_bulk_least']:.2f}–{row['over_bulk_most']:.2f}",
        f"≥ {targets[name]:g}" if name in targets else "",
        " / ".join(f"{wait:.0f}" for wait in waits) if None not in waits else "",
        *(f"{row[f'{who}_us_a_text']:.0f}" for who in ("parent", "clients", "workers")),
        "" if row["padding"] is None else f"{row['padding']:.1%}",
    ]


if __name__ == "__main__":
    sys.exit(common.run(main))
