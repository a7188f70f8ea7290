"""The server: how much of the pool's throughput arrives over HTTP, and what a request costs.

`inference` compares many clients of one text each with the bulk throughput of a
pool in this process, turn by turn in one run. `requests` asks an echo encoder,
which leaves nothing but the server's own work. `--soak` asks everything, good and
bad, for as long as is said, and watches the memory of parent and workers.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import psutil

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from bench import common, http_load
from bench.common import Result
from bench.texts import read_texts
from memworker import EmbeddingPool
from memworker.errors import UsageError

MODEL = "all-MiniLM-L6-v2"
ECHO_TEXT = "The user prefers tea to coffee in the morning."
RATIO_TARGET, REQUESTS_TARGET = 0.85, 3000


def main(arguments: Sequence[str] | None = None) -> None:
    options = _options(arguments)
    if options.soak:
        result, name = soak(options), "soak"
    else:
        result, name = {}, ""
        if "inference" in options.parts:
            result["inference"] = inference(options)
        if "requests" in options.parts:
            result["requests"] = requests(options)
    common.publish("server", result, options, show_soak if name else show, variant=name)


def inference(options: argparse.Namespace) -> Result:
    """Compare clients of one text each with the bulk throughput of a pool, in turns."""
    texts = read_texts(options.texts, options.limit)
    bulk, served, latencies = [], [], []
    with (
        EmbeddingPool(MODEL, precision=options.precision, workers=options.workers) as pool,
        serving(_model_arguments(options)) as server,
    ):
        asked = [http_load.request(server.url, MODEL, [text]) for text in texts]
        pool.embed(texts[:200])
        http_load.each_once(server.url, asked[:200], options.clients)
        for number in range(options.repeats):
            turns = [lambda: bulk.append(_bulk(pool, texts)), lambda: served.append(ask())]

            def ask() -> float:
                outcome = http_load.each_once(server.url, asked, options.clients)
                _all_answered(outcome)
                latencies.append(outcome.percentiles_ms())
                return outcome.requests_per_s

            for turn in turns if number % 2 == 0 else reversed(turns):
                turn()
    return {
        "precision": options.precision,
        "texts": len(texts),
        "clients": options.clients,
        "bulk_texts_per_s": round(median(bulk), 1),
        "served_texts_per_s": round(median(served), 1),
        "ratio": round(median(s / b for s, b in zip(served, bulk, strict=True)), 3),
        "ratio_target": RATIO_TARGET,
        "spread": round(common.spread(bulk), 3),
        **common.medians(latencies),
    }


def requests(options: argparse.Namespace) -> Result:
    """Ask an echo encoder as fast as it answers."""
    rows = []
    with serving(["--model", "echo", "--workers", "1"]) as server:
        asked = [http_load.request(server.url, "echo", [ECHO_TEXT])]
        http_load.for_seconds(server.url, asked, options.clients, 0.5)
        for _ in range(options.repeats):
            before = server.cpu_s(), server.workers_cpu_s()
            outcome = http_load.for_seconds(server.url, asked, options.clients, options.seconds)
            _all_answered(outcome)
            spent = server.cpu_s() - before[0], server.workers_cpu_s() - before[1]
            count = len(outcome.latencies)
            rows.append(
                {
                    "requests_per_s": round(outcome.requests_per_s, 1),
                    "parent_us_a_request": round(spent[0] / count * 1e6, 1),
                    "worker_us_a_request": round(spent[1] / count * 1e6, 1),
                    **outcome.percentiles_ms(),
                }
            )
        wrk = _wrk(server.url, options) if shutil.which("wrk") else None
    return {
        "clients": options.clients,
        "wrk_requests_per_s": wrk,
        "target": REQUESTS_TARGET,
        **common.medians(rows),
    }


def soak(options: argparse.Namespace) -> Result:
    """Ask good and bad things for long, and look at the memory meanwhile."""
    texts, chance = read_texts(options.texts, options.limit), random.Random(1)
    samples: list[dict[str, float]] = []
    statuses: dict[int, int] = {}
    with serving(_model_arguments(options)) as server:
        mixed = list(_mixed(server.url, texts, chance))
        _grow_accustomed(server, mixed, options)
        started = time.monotonic()
        while time.monotonic() - started < options.soak:
            step = min(max(options.soak / 40, 0.5), 30.0)
            outcome = http_load.for_seconds(server.url, mixed, options.clients, step)
            for status, count in outcome.statuses.items():
                statuses[status] = statuses.get(status, 0) + count
            samples.append({"at_s": round(time.monotonic() - started, 1), **server.memory_mb()})
            chance.shuffle(mixed)
    return {
        "seconds": options.soak,
        "requests": sum(statuses.values()),
        "statuses": {str(status): count for status, count in sorted(statuses.items())},
        "parent": _drift([sample["parent"] for sample in samples]),
        "workers": _drift([sample["workers"] for sample in samples]),
        "samples": samples,
    }


@dataclass(frozen=True, slots=True)
class ServerProcess:
    """A running server, seen from outside."""

    url: str
    process: psutil.Process

    def cpu_s(self) -> float:
        """Seconds of processor time that the parent has used."""
        times = self.process.cpu_times()
        return times.user + times.system

    def workers_cpu_s(self) -> float:
        """Seconds that its workers have used, together."""
        times = [child.cpu_times() for child in self.process.children()]
        return sum(each.user + each.system for each in times)

    def memory_mb(self) -> dict[str, float]:
        """Private memory of parent and of the workers together, in MB."""
        own = self.process.memory_full_info().uss
        workers = sum(child.memory_full_info().uss for child in self.process.children())
        return {"parent": round(own / 2**20, 1), "workers": round(workers / 2**20, 1)}


@contextmanager
def serving(arguments: Sequence[str]) -> Iterator[ServerProcess]:
    """Run `memworker serve` on a free port."""
    command = [str(Path(sys.executable).with_name("memworker")), "serve", "--port", "0"]
    process = subprocess.Popen([*command, *arguments], stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        line = process.stderr.readline()
        found = re.search(r" on (http://\S+)", line)
        if found is None:
            raise UsageError(f"the server did not start: {line}{process.stderr.read()}")
        yield ServerProcess(found[1], psutil.Process(process.pid))
    finally:
        process.terminate()
        process.communicate(timeout=60)


def show(result: Result) -> None:
    """Print what was measured."""
    rows: list[tuple[str, str, str]] = []
    if found := result.get("inference"):
        rows += [
            ("bulk, texts/s", f"{found['bulk_texts_per_s']:,.0f}", ""),
            (
                f"{found['clients']} clients, one text each, texts/s",
                f"{found['served_texts_per_s']:,.0f}",
                "",
            ),
            ("the one over the other", f"{found['ratio']:.2f}", f">= {found['ratio_target']}"),
            ("latency p50 / p95 / p99, ms", _latency(found), ""),
        ]
    if found := result.get("requests"):
        rows += [
            ("echo, requests/s", f"{found['requests_per_s']:,.0f}", f">= {found['target']:,}"),
            ("echo with wrk, requests/s", f"{found['wrk_requests_per_s'] or 0:,.0f}", ""),
            ("parent, µs a request", f"{found['parent_us_a_request']:.0f}", ""),
            ("worker, µs a request", f"{found['worker_us_a_request']:.0f}", ""),
            ("latency p50 / p95 / p99, ms", _latency(found), ""),
        ]
    common.print_table("memworker serve", ("", "measured", "target"), rows)


def show_soak(result: Result) -> None:
    """Print a soak's outcome."""
    rows = [
        (who, *(f"{result[who][key]:,.1f}" for key in ("first_mb", "last_mb", "drift_mb")))
        for who in ("parent", "workers")
    ]
    title = f"soak of {result['seconds']:,.0f} s, {result['requests']:,} requests"
    common.print_table(title, ("private memory", "first MB", "last MB", "drift MB"), rows)
    print("answers by status:", json.dumps(result["statuses"]))


def _bulk(pool: EmbeddingPool, texts: list[str]) -> float:
    started = time.perf_counter()
    pool.embed(texts)
    return len(texts) / (time.perf_counter() - started)


def _all_answered(outcome: http_load.Outcome) -> None:
    if set(outcome.statuses) != {200}:
        raise UsageError(f"not every request was answered: {outcome.statuses}")


def _model_arguments(options: argparse.Namespace) -> list[str]:
    workers = [] if options.workers is None else ["--workers", str(options.workers)]
    return ["--model", MODEL, "--precision", options.precision, "--truncate", *workers]


def _mixed(url: str, texts: list[str], chance: random.Random) -> Iterator[bytes]:
    """Yield what a server meets in a day: some wrong, mostly single texts, some many."""
    for wrong in ([""], ["x"] * 2049, ["tea " * 3000]):
        yield http_load.request(url, MODEL, wrong)
        yield http_load.request(url, "another", wrong)
    for _ in range(200):
        count = chance.choice((1, 1, 1, 1, 2, 8, 32))
        yield http_load.request(url, MODEL, chance.sample(texts, count))


def _grow_accustomed(
    server: ServerProcess, mixed: list[bytes], options: argparse.Namespace
) -> None:
    """Let buffers and arenas reach their size before memory is looked at."""
    http_load.for_seconds(server.url, mixed, options.clients, max(5.0, options.soak / 10))


def _drift(values: list[float]) -> Result:
    """Compare the median of the first quarter with that of the last."""
    quarter = max(1, len(values) // 4)
    first, last = median(values[:quarter]), median(values[-quarter:])
    return {"first_mb": first, "last_mb": last, "drift_mb": round(last - first, 1)}


def _wrk(url: str, options: argparse.Namespace) -> float | None:
    body = json.dumps({"model": "echo", "input": ECHO_TEXT, "encoding_format": "base64"})
    script = (
        'wrk.method = "POST"\nwrk.headers["Content-Type"] = "application/json"\n'
        f"wrk.body = {json.dumps(body)}\n"
    )
    with TemporaryDirectory() as folder:
        path = Path(folder) / "request.lua"
        path.write_text(script)
        command = ["wrk", "-t1", f"-c{options.clients}", f"-d{options.seconds}s", "-s", str(path)]
        done = subprocess.run(
            [*command, f"{url}/v1/embeddings"], capture_output=True, text=True, timeout=300
        )
    found = re.search(r"Requests/sec:\s*([\d.]+)", done.stdout)
    return None if found is None or "Non-2xx" in done.stdout else float(found[1])


def _latency(found: Result) -> str:
    return " / ".join(f"{found[name]:.1f}" for name in ("p50_ms", "p95_ms", "p99_ms"))


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = common.parser("server", __doc__)
    positive = common.positive
    parser.add_argument("--parts", type=common.names, default=["inference", "requests"])
    parser.add_argument("--texts", type=Path, help="a jsonl file; default: the shipped sample")
    parser.add_argument("--limit", type=positive, default=2000, help="texts of a turn")
    parser.add_argument("--clients", type=positive, default=64)
    parser.add_argument("--repeats", type=positive, default=3)
    parser.add_argument("--seconds", type=positive, default=5, help="of a turn with the echo")
    parser.add_argument("--workers", type=positive, help="default: the usable cores")
    parser.add_argument("--precision", default="int8", choices=("fp32", "int8"))
    parser.add_argument("--soak", type=positive, metavar="SECONDS", help="watch the memory")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(common.run(main))
