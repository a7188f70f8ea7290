"""The server: how much of the pool's throughput arrives over HTTP, and what a request costs.

`inference` compares many clients of one text each with the bulk throughput of a
pool in this process, turn by turn in one run. `requests` asks an echo encoder,
which leaves nothing but the server's own work. `passing` asks for one text at a time
beside clients of 512 texts each, and says what those lose by it. What it holds after an hour of
everything, good and bad, is seen by `bench/soak.py`.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from threading import Thread
from typing import TextIO

import psutil

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from bench import common, http_load
from bench.common import Result
from bench.texts import read_texts
from memworker import EmbeddingPool
from memworker.errors import MemworkerError, UsageError

MODEL = "all-MiniLM-L6-v2"
ECHO_TEXT = "The user prefers tea to coffee in the morning."
RATIO_TARGET, REQUESTS_TARGET = 0.85, 3000
BULK_TEXTS, BULK_CLIENTS = 512, 16
PASSING_MS_TARGET, KEPT_TARGET = 150, 0.8


def main(arguments: Sequence[str] | None = None) -> None:
    options = _options(arguments)
    result: Result = {}
    if "inference" in options.parts:
        result["inference"] = inference(options)
    if "requests" in options.parts:
        result["requests"] = requests(options)
    if "passing" in options.parts:
        result["passing"] = passing(options)
    common.publish("server", result, options, show)


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


def passing(options: argparse.Namespace) -> Result:
    """Ask for one text at a time beside clients of many, in turns with those alone."""
    texts = (read_texts(options.texts, options.limit) * BULK_TEXTS)[:BULK_TEXTS]
    alone, beside, latencies = [], [], []
    with serving(_model_arguments(options)) as server, ThreadPoolExecutor(1) as other:
        many = [http_load.request(server.url, MODEL, texts)]
        one = [http_load.request(server.url, MODEL, texts[:1])]

        def bulk() -> float:
            outcome = http_load.for_seconds(server.url, many, BULK_CLIENTS, options.seconds)
            _all_answered(outcome)
            return outcome.requests_per_s * BULK_TEXTS

        bulk()
        for _ in range(options.repeats):
            alone.append(bulk())
            small = other.submit(http_load.for_seconds, server.url, one, 1, options.seconds)
            beside.append(bulk())
            _all_answered(small.result())
            latencies.append(small.result().percentiles_ms())
    return {
        "bulk_clients": BULK_CLIENTS,
        "texts_a_bulk_request": BULK_TEXTS,
        "bulk_texts_per_s": round(median(alone), 1),
        "bulk_texts_per_s_beside": round(median(beside), 1),
        "kept": round(median(b / a for a, b in zip(alone, beside, strict=True)), 3),
        "kept_target": KEPT_TARGET,
        **common.medians(latencies),
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


@contextmanager
def serving(
    arguments: Sequence[str], environment: Mapping[str, str] | None = None
) -> Iterator[ServerProcess]:
    """Run `memworker serve` on a free port."""
    command = [str(Path(sys.executable).with_name("memworker")), "serve", "--port", "0"]
    with ExitStack() as stack:
        process = stack.enter_context(
            subprocess.Popen(
                [*command, *arguments],
                stderr=subprocess.PIPE,
                text=True,
                env=environment,
                # A Ctrl-C is the bench's, which ends the server when it has ended itself.
                start_new_session=True,
            )
        )
        stack.callback(_end, process)
        assert process.stderr is not None
        line = process.stderr.readline()
        found = re.search(r" on (http://\S+)", line)
        if found is None:
            raise UsageError(f"the server did not start: {line}{process.stderr.read()}")
        # What it says later would fill the pipe and stop it.
        listener = Thread(target=_pass_on, args=(process.stderr,))
        listener.start()
        stack.callback(listener.join)
        # Last in, first out: it ends, and so does the listener, before the pipe is closed.
        stack.callback(_end, process)
        yield ServerProcess(found[1], psutil.Process(process.pid))


def _end(process: subprocess.Popen[str]) -> None:
    process.terminate()
    try:
        process.wait(timeout=60)
    except subprocess.TimeoutExpired:
        process.kill()
        raise


def _pass_on(lines: TextIO) -> None:
    for line in lines:
        sys.stderr.write(f"server: {line}")


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
    if found := result.get("passing"):
        rows += [
            (
                f"{found['bulk_clients']} clients of {found['texts_a_bulk_request']}, texts/s",
                f"{found['bulk_texts_per_s']:,.0f}",
                "",
            ),
            ("of that, beside one text at a time", f"{found['kept']:.2f}", f">= {KEPT_TARGET}"),
            ("one text, p50 / p95 / p99, ms", _latency(found), f"p50 <= {PASSING_MS_TARGET}"),
        ]
    common.print_table("memworker serve", ("", "measured", "target"), rows)


def _bulk(pool: EmbeddingPool, texts: list[str]) -> float:
    started = time.perf_counter()
    pool.embed(texts)
    return len(texts) / (time.perf_counter() - started)


def _all_answered(outcome: http_load.Outcome) -> None:
    if not outcome.statuses:
        raise MemworkerError(f"no request was answered within {outcome.seconds:.1f} s")
    if set(outcome.statuses) != {200}:
        raise MemworkerError(f"not every request was answered: {outcome.statuses}")


def _model_arguments(options: argparse.Namespace) -> list[str]:
    workers = [] if options.workers is None else ["--workers", str(options.workers)]
    return ["--model", MODEL, "--precision", options.precision, "--truncate", *workers]


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
    parser.add_argument("--parts", type=common.names, default=["inference", "requests", "passing"])
    parser.add_argument("--texts", type=Path, help="a jsonl file; default: the shipped sample")
    parser.add_argument("--limit", type=positive, default=2000, help="texts of a turn")
    parser.add_argument("--clients", type=positive, default=64)
    parser.add_argument("--repeats", type=positive, default=3)
    parser.add_argument(
        "--seconds", type=positive, default=5, help="of a turn that lasts some seconds"
    )
    parser.add_argument("--workers", type=positive, help="default: the usable cores")
    parser.add_argument("--precision", default="int8", choices=("fp32", "int8"))
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(common.run(main))
