"""Many callers, one pool: what a lone caller waits, what 64 reach, and a question during bulk work.

Everything is measured in one run, in turns, and held against what it is held
against in the same turn:

- a lone caller's median over the same graph in a plain session of one thread, tokenising;
- 64 callers of one text each (threads, then coroutines) over the same texts in one call,
  and over one mutex around one session on all cores;
- the 95th percentile of a question while a bulk ingest keeps all workers busy, in
  micro-batches' times; and what share of its speed the bulk keeps under endless questions.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from threading import Lock, Thread
from typing import Any

import numpy as np

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from bench import common
from bench.peers import plain_session, run_padded
from bench.reference import export_reference
from bench.texts import read_texts
from memworker import AsyncEmbeddingPool, EmbeddingPool, Stop, ingest
from memworker.errors import MemworkerError
from memworker.models import ready_model
from memworker.pool import Tokenizer, machine, open_session

MODEL = "all-MiniLM-L6-v2"
TARGETS = {
    "lone_added_ms": 0.6,
    "callers_over_bulk": 0.90,
    "callers_over_mutex": 1.8,
    "query_p95_in_micro_batches": 2.0,
}
QUESTION_EVERY_S = 0.02
LONE_TEXTS = 200

EmbedOne = Callable[[str], Any]


def main(arguments: Sequence[str] | None = None) -> None:
    options = _options(arguments)
    texts = read_texts(options.texts, options.limit)
    rows = [_measure(texts, precision, options) for precision in options.precision]
    result = {
        "texts": len(texts),
        "callers": options.callers,
        "workers": options.workers,
        "repeats": options.repeats,
        "targets": TARGETS,
        "rows": rows,
    }
    common.publish("latency", result, options, show)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = common.parser("latency", __doc__)
    parser.add_argument("texts", nargs="?", type=Path, help="jsonl(.gz); default: shipped sample")
    parser.add_argument("--precision", type=common.names, default=["fp32", "int8"])
    parser.add_argument("--limit", type=common.positive, default=2000, help="texts")
    parser.add_argument("--callers", type=common.positive, default=64)
    parser.add_argument("--workers", type=common.positive, default=machine.usable_cores())
    parser.add_argument("--repeats", type=common.positive, default=5)
    parser.add_argument(
        "--seconds", type=float, default=4.0, help="how long each ingest's speed is watched"
    )
    return parser.parse_args(arguments)


def _measure(texts: list[str], precision: str, options: argparse.Namespace) -> common.Result:
    with EmbeddingPool(MODEL, precision=precision, workers=options.workers) as pool:
        row: common.Result = {"precision": precision}
        row |= _lone(pool, texts[:LONE_TEXTS], precision, options.repeats)
        row |= _callers(pool, texts, options)
        row |= _questions(pool, texts, options)
        return row


# ── a lone caller ──


def _lone(pool: EmbeddingPool, texts: list[str], precision: str, repeats: int) -> common.Result:
    """Give medians in milliseconds: the direct session, the pool, and what the pool adds."""
    direct = _direct(precision)
    ways: dict[str, EmbedOne] = {
        "direct": direct,
        "pool": lambda text: pool.embed([text]),
        "pool_query": lambda text: pool.embed([text], kind="query"),
    }
    for embed in ways.values():
        _milliseconds(embed, texts[:20])
    turns = [
        {name: _milliseconds(embed, texts) for name, embed in ways.items()} for _ in range(repeats)
    ]
    # The same text both ways: what one takes more than the other does not hang on its length.
    added = [median(np.subtract(turn["pool"], turn["direct"])) for turn in turns]
    asked = [median(np.subtract(turn["pool_query"], turn["direct"])) for turn in turns]
    return {
        "lone_direct_ms": median(median(turn["direct"]) for turn in turns),
        "lone_pool_ms": median(median(turn["pool"]) for turn in turns),
        "lone_added_ms": median(added),
        "lone_query_added_ms": median(asked),
    }


def _direct(precision: str) -> EmbedOne:
    """Open the pool's own graph in a plain session of one thread."""
    model = ready_model(MODEL, precision=precision)
    session = open_session(model)
    tokenize = Tokenizer(model.tokenizer, model.max_tokens)
    return lambda text: run_padded(session, tokenize([text])[0])


def _milliseconds(embed: EmbedOne, texts: list[str]) -> list[float]:
    taken = []
    for text in texts:
        started = time.perf_counter()
        embed(text)
        taken.append(1000 * (time.perf_counter() - started))
    return taken


# ── many callers ──


def _callers(pool: EmbeddingPool, texts: list[str], options: argparse.Namespace) -> common.Result:
    """Give texts a second: in bulk, by many callers, and behind a mutex."""
    ways: dict[str, Callable[[], object]] = {
        "bulk": lambda: pool.embed(texts),
        "threads": lambda: _by_threads(pool.embed, texts, options.callers),
        "coroutines": lambda: asyncio.run(_by_coroutines(pool, texts, options.callers)),
    }
    with _mutex(options.workers) as locked:
        ways["mutex"] = lambda: _by_threads(locked, texts, options.callers)
        pool.embed(texts[:200])
        turns = [
            {name: len(texts) / _seconds(way) for name, way in ways.items()}
            for _ in range(options.repeats)
        ]
    rates = common.medians(turns)
    slower = [min(turn["threads"], turn["coroutines"]) for turn in turns]
    return {
        **{f"{name}_texts_per_second": rate for name, rate in rates.items()},
        "threads_over_bulk": median(turn["threads"] / turn["bulk"] for turn in turns),
        "coroutines_over_bulk": median(turn["coroutines"] / turn["bulk"] for turn in turns),
        "callers_over_bulk": median(
            rate / turn["bulk"] for rate, turn in zip(slower, turns, strict=True)
        ),
        "callers_over_mutex": median(
            rate / turn["mutex"] for rate, turn in zip(slower, turns, strict=True)
        ),
    }


def _by_threads(embed: Callable[[list[str]], object], texts: list[str], callers: int) -> None:
    waiting = iter(texts)

    def caller() -> None:
        # The interpreter's lock makes one step of an iterator whole.
        for text in waiting:
            embed([text])

    threads = [Thread(target=caller) for _ in range(callers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


async def _by_coroutines(pool: EmbeddingPool, texts: list[str], callers: int) -> None:
    shared, waiting = AsyncEmbeddingPool(pool=pool), iter(texts)

    async def caller() -> None:
        for text in waiting:
            await shared.embed([text])

    await asyncio.gather(*(caller() for _ in range(callers)))


@contextmanager
def _mutex(threads: int) -> Iterator[Callable[[list[str]], object]]:
    """Open one session on all threads behind one lock: what AgentMem does."""
    with TemporaryDirectory() as folder:
        model = ready_model(MODEL)
        export_reference(model, Path(folder))
        encode, lock = plain_session(folder, model.max_tokens, threads=threads), Lock()

        def locked(texts: list[str]) -> None:
            with lock:
                encode(texts[0])

        yield locked


def _seconds(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


# ── questions during bulk work ──


def _questions(pool: EmbeddingPool, texts: list[str], options: argparse.Namespace) -> common.Result:
    """Give the latency of a question while an ingest keeps all workers busy."""
    questions = [text[:80] for text in texts if text.strip()][:500]
    with _bulk_ingest(pool, texts) as bulk:
        time.sleep(options.seconds)
        quiet_rate = bulk.rate(0)
        bulk.begin()
        before = pool.work
        waits = _ask(pool, questions, options.repeats * 60)
        after = pool.work
        paced_rate = bulk.rate(len(waits))
        bulk.begin()
        asked = _hammer(pool, questions, callers=8, seconds=options.seconds)
        hammered_rate = bulk.rate(asked)
    encode_s, padded = after.encode_s - before.encode_s, after.padded_tokens - before.padded_tokens
    a_token_s = common.ratio(encode_s, padded)
    micro_batch_ms = a_token_s and 1000 * a_token_s * pool.plan.costs.batch_tokens
    p50, p95, p99 = np.percentile(waits, [50, 95, 99]).tolist()
    return {
        "micro_batch_ms": micro_batch_ms,
        "query_p50_ms": p50,
        "query_p95_ms": p95,
        "query_p99_ms": p99,
        "query_p95_in_micro_batches": common.ratio(p95, micro_batch_ms),
        "bulk_share_with_paced_questions": common.ratio(paced_rate, quiet_rate),
        "bulk_share_with_endless_questions": common.ratio(hammered_rate, quiet_rate),
    }


@dataclass(slots=True)
class Bulk:
    """A bulk ingest under way, and what the pool has embedded since it was at full speed."""

    pool: EmbeddingPool
    texts: int = 0
    started: float = 0.0

    def begin(self) -> None:
        self.texts, self.started = self.pool.work.texts, time.perf_counter()

    def rate(self, questions: int) -> float:
        """Give the bulk's texts a second since `begin`; `questions` were embedded too."""
        done = self.pool.work.texts - self.texts - questions
        return done / (time.perf_counter() - self.started)


@contextmanager
def _bulk_ingest(pool: EmbeddingPool, texts: list[str]) -> Iterator[Bulk]:
    """Ingest the texts over and over into a LanceDB table, until left."""
    # It ends after what is in flight: what was read besides can be a minute's work.
    stop, bulk = Stop(), Bulk(pool)

    def endless() -> Iterator[dict[str, str]]:
        for number, text in enumerate(cycle(texts)):
            # Another id and another text each time, or it would not be embedded again.
            yield {"id": str(number), "text": f"{text} {number}"}

    with TemporaryDirectory() as folder:
        options: dict[str, Any] = {"db": folder, "table": "bulk", "pool": pool, "stop": stop}
        job = Thread(target=lambda: ingest(endless(), **options))
        job.start()
        try:
            while pool.busy_workers < pool.workers:
                if not job.is_alive():
                    raise MemworkerError("the ingest ended before it kept all workers busy")
                time.sleep(0.01)
            time.sleep(1.0)
            bulk.begin()
            yield bulk
        finally:
            stop.set()
            job.join()


def _ask(pool: EmbeddingPool, questions: list[str], count: int) -> list[float]:
    waits = []
    for _, question in zip(range(count), cycle(questions), strict=False):
        started = time.perf_counter()
        pool.embed([question], kind="query")
        waits.append(1000 * (time.perf_counter() - started))
        time.sleep(QUESTION_EVERY_S)
    return waits


def _hammer(pool: EmbeddingPool, questions: list[str], *, callers: int, seconds: float) -> int:
    """Ask without a pause; gives how many were answered."""
    until = time.perf_counter() + seconds

    def ask(_: int) -> int:
        for asked, question in enumerate(cycle(questions)):
            if time.perf_counter() > until:
                return asked
            pool.embed([question], kind="query")
        raise AssertionError("a cycle has no end")

    with ThreadPoolExecutor(callers) as threads:
        return sum(threads.map(ask, range(callers)))


def show(result: common.Result) -> None:
    """Print a row a figure, a column a precision."""
    rows = result["rows"]
    keys = [key for key in rows[0] if key != "precision"]
    common.print_table(
        f"{result['texts']:,} texts, {result['callers']} callers, {result['workers']} workers,"
        f" medians of {result['repeats']}",
        ["", *(row["precision"] for row in rows), "target"],
        [
            [_WHAT.get(key, key), *(common.figure(row[key]) for row in rows), _target(key)]
            for key in keys
        ],
    )
    if any(row[key] is None for row in rows for key in keys):
        print("Not measured: nothing of an ingest ended in its time. Give more: --seconds.")


_WHAT = {
    "lone_direct_ms": "lone caller, direct session [ms]",
    "lone_pool_ms": "lone caller, pool [ms]",
    "lone_added_ms": "what the pool adds [ms]",
    "lone_query_added_ms": "what it adds to a question [ms]",
    "bulk_texts_per_second": "one call [texts/s]",
    "threads_texts_per_second": "threads, a text a call [texts/s]",
    "coroutines_texts_per_second": "coroutines, a text a call [texts/s]",
    "mutex_texts_per_second": "one mutex, one session on all cores [texts/s]",
    "threads_over_bulk": "threads ÷ one call",
    "coroutines_over_bulk": "coroutines ÷ one call",
    "callers_over_bulk": "the slower of them ÷ one call",
    "callers_over_mutex": "the slower of them ÷ mutex",
    "micro_batch_ms": "a micro-batch during an ingest [ms]",
    "query_p50_ms": "question during an ingest, p50 [ms]",
    "query_p95_ms": "p95 [ms]",
    "query_p99_ms": "p99 [ms]",
    "query_p95_in_micro_batches": "p95 in micro-batches",
    "bulk_share_with_paced_questions": "ingest's speed kept, a question each 20 ms",
    "bulk_share_with_endless_questions": "ingest's speed kept, 8 ask without a pause",
}


def _target(key: str) -> str:
    if key not in TARGETS:
        return ""
    return f"{'≥' if key.startswith('callers') else '≤'} {TARGETS[key]:g}"


if __name__ == "__main__":
    sys.exit(common.run(main))
