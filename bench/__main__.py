"""`python -m bench NAME [options]`: run one bench by its name."""

from __future__ import annotations

import sys
from importlib import import_module

from bench import common

BENCHES = {
    "throughput": "texts a second beside fastembed, onnxruntime and others, and coordination",
    "latency": "a lone caller, 64 callers, and a question during bulk work",
    "server": "what of the pool arrives over HTTP, and what a request costs",
    "callers": "64 threads, coroutines and HTTP clients of one text each over one bulk call",
    "quality": "STS-B, LoCoMo and SciFact for each precision",
    "ceiling": "everything but inference: the echo encoder, to vectors and to LanceDB",
    "ladder": "the same memories from one mutex up to a static model",
    "scaling": "costs a text and a shard, and the curve they predict",
    "scaling_ray": "the same job on Ray beside the local run, on the same cores",
    "scaling_rows": "ten million rows into one table: whether anything drifts, and what it is then",
    "memory_of_a_worker": "what one more worker costs in memory, and start-up",
    "memory": "the memory layer beside Mem0: adds, batches, searches, at many stored memories",
    "lone": "one add, one search, beside LanceDB by itself and Mem0; both after 10,000 adds",
    "growth": "whether memory grows with the rows, and stays within --memory",
    "soak": "an hour of the server and of a Memory: nothing may grow, every answer must be right",
    "report": "one HTML page of all results",
}


def main() -> int:
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name not in BENCHES:
        print("usage: python -m bench NAME [options], where NAME is one of\n", file=sys.stderr)
        for known, what in BENCHES.items():
            print(f"  {known:<20} {what}", file=sys.stderr)
        return 0 if name in ("-h", "--help") else 2
    return common.run(import_module(f"bench.{name}").main, sys.argv[2:])


if __name__ == "__main__":
    sys.exit(main())
