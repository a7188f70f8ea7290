"""Texts a second of memworker and its peers, side by side in one run.

Every contestant has a process of its own, the same texts, weights, token limit
and number of threads. They take turns, one busy at a time; figures are medians
over the repeats, from the first text to the last vector. Start-up is apart.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from bench import common
from bench.coordination import IndependentSessions
from bench.peers import PEERS, STATIC_PEERS
from bench.processes import Absent, Contestant, Workload
from bench.reference import export_reference
from bench.texts import read_texts, token_counts
from memworker.errors import UsageError
from memworker.models import ready_model
from memworker.pool import machine

MODEL, STATIC_MODEL = "all-MiniLM-L6-v2", "wordllama-256"
DEFAULT_PEER = "fastembed-parallel"

Counts = npt.NDArray[np.int64]


def main(arguments: Sequence[str] | None = None) -> None:
    options = _options(arguments)
    peers_there = STATIC_PEERS if options.static else PEERS
    options.peers = list(peers_there) if options.peers is None else options.peers
    if unknown := sorted(set(options.peers) - peers_there.keys()):
        there = ", ".join(peers_there)
        raise UsageError(f"no such peer: {', '.join(unknown)}. There are: {there}.")
    texts = read_texts(options.texts, options.limit)
    with TemporaryDirectory() as folder, ExitStack() as stack:
        load, counts = _workload(texts, options, Path(folder))
        ours = [
            _open_pool(precision, load, Path(folder), stack) for precision in options.precisions
        ]
        peers = [_open_peer(name, load, counts, options, stack) for name in options.peers]
        rivals = _open_independent(ours, load, counts, stack) if options.coordination else {}
        for number in range(options.repeats):
            _round(ours, peers, rivals, backwards=number % 2 == 1)
        result = _result(ours, peers, rivals, load, counts, options)
    common.publish("throughput", result, options, show)


@dataclass(slots=True)
class Entry:
    """A contestant and its turns, or the reason why it has none."""

    name: str
    what: str
    texts: int
    real_tokens: int
    padded_tokens: int = 0
    contestant: Contestant | None = None
    skipped: str = ""
    turns: list[dict[str, Any]] = field(default_factory=list)

    def open(self, name: str, workload: Path, stack: ExitStack) -> Entry:
        try:
            self.contestant = stack.enter_context(Contestant(name, workload))
            self.contestant.wait_ready()
        except Absent as absence:
            self.contestant, self.skipped = None, str(absence)
        return self

    def turn(self) -> None:
        if self.contestant is None:
            return
        try:
            self.turns.append(self.contestant.turn())
        except Absent as absence:
            self.contestant, self.skipped = None, str(absence)

    @property
    def tokens_per_second(self) -> float:
        """Real tokens a second, the median over the turns; 0 without turns."""
        return float(median(self.real_tokens / turn["seconds"] for turn in self.turns or [_NEVER]))


@dataclass(slots=True)
class Rival:
    """The independent sessions that a pool is held against, turn by turn."""

    sessions: IndependentSessions
    tokens_per_second: list[float] = field(default_factory=list)
    gone: bool = False

    def turn(self) -> None:
        if self.gone:
            return
        try:
            self.tokens_per_second.append(self.sessions.turn())
        except Absent as absence:
            print(f"independent sessions: {absence}", file=sys.stderr)
            self.gone = True


_NEVER = {"seconds": float("inf")}


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = common.parser("throughput", __doc__)
    parser.add_argument("texts", nargs="?", type=Path, help="jsonl(.gz); default: shipped sample")
    parser.add_argument("--limit", type=common.positive, default=1024)
    parser.add_argument("--static", action="store_true", help=f"{STATIC_MODEL} and its peers")
    parser.add_argument("--max-tokens", type=common.positive, help="default: 256, static: its own")
    parser.add_argument("--workers", type=common.positive, default=machine.usable_cores())
    parser.add_argument("--repeats", type=common.positive, default=3)
    parser.add_argument("--precisions", type=common.names, help="default: all")
    parser.add_argument("--peers", type=common.names, help="default: all")
    parser.add_argument(
        "--peer-limit",
        type=common.positive,
        help="time the slow peers on this many of the texts, evenly spaced",
    )
    parser.add_argument(
        "--coordination",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="also run N independent sessions: the limit for N workers",
    )
    options = parser.parse_args(arguments)
    if options.static:
        options.precisions, options.coordination = options.precisions or ["fp32"], False
    else:
        options.precisions = options.precisions or ["fp32", "bf16", "int8"]
        options.max_tokens = options.max_tokens or 256
    return options


def _workload(
    texts: list[str], options: argparse.Namespace, folder: Path
) -> tuple[Workload, Counts]:
    """Write the model as the peers want it, from the weights that the pool uses."""
    name = STATIC_MODEL if options.static else MODEL
    model = ready_model(name, max_tokens=options.max_tokens)
    directory = folder / "model"
    if options.static:
        directory.mkdir()
        (directory / "tokenizer.json").symlink_to(model.tokenizer)
        weights = model.graph.parents[2] / "files" / name / "model.safetensors"
    else:
        export_reference(model, directory)
        # sentence-transformers reads the weights themselves.
        weights = model.tokenizer.parent / "model.safetensors"
    (directory / "model.safetensors").symlink_to(weights.resolve())
    load = Workload(texts, name, "fp32", str(directory), model.max_tokens, options.workers)
    return load, token_counts(texts, model)


def _open_pool(precision: str, load: Workload, folder: Path, stack: ExitStack) -> Entry:
    name = f"memworker-{precision}"
    path = replace(load, precision=precision).save(folder / f"{name}.json")
    entry = Entry(name, f"memworker {precision}", len(load.texts), 0)
    return entry.open("memworker", path, stack)


def _open_peer(
    name: str, load: Workload, counts: Counts, options: argparse.Namespace, stack: ExitStack
) -> Entry:
    peer = {**PEERS, **STATIC_PEERS}[name]
    rows = _sample(len(load.texts), options.peer_limit if peer.slow else None)
    texts = [load.texts[row] for row in rows]
    padded = peer.padded_tokens(texts, counts[rows])
    entry = Entry(name, peer.what, len(rows), int(counts[rows].sum()), padded)
    if package := peer.missing():
        entry.skipped = f"{package} is not installed"
        return entry
    folder = Path(load.model_dir).parent
    return entry.open(name, replace(load, texts=texts).save(folder / f"{name}.json"), stack)


def _sample(count: int, limit: int | None) -> Counts:
    """Pick `limit` rows, evenly spaced; all without a limit."""
    wanted = min(limit or count, count)
    return np.arange(wanted, dtype=np.int64) * count // wanted


def _open_independent(
    ours: list[Entry], load: Workload, counts: Counts, stack: ExitStack
) -> dict[str, Rival]:
    folder, rivals = Path(load.model_dir).parent, {}
    for entry in ours:
        if entry.contestant is not None:
            precise = replace(load, precision=entry.name.removeprefix("memworker-"))
            rivals[entry.name] = Rival(IndependentSessions(precise, counts, folder, stack))
    return rivals


def _round(
    ours: list[Entry], peers: list[Entry], rivals: dict[str, Rival], *, backwards: bool
) -> None:
    """Let everybody run once; every other round backwards, as a machine warms up and drifts."""
    for entry in reversed([*ours, *peers]) if backwards else [*ours, *peers]:
        entry.turn()
        if entry.name in rivals:
            rivals[entry.name].turn()


def _result(
    ours: list[Entry],
    peers: list[Entry],
    rivals: dict[str, Rival],
    load: Workload,
    counts: Counts,
    options: argparse.Namespace,
) -> common.Result:
    entries = [*ours, *peers]
    for entry in ours:
        entry.real_tokens = int(counts.sum())
    return {
        "texts": len(load.texts),
        "source": options.texts.name if options.texts else "shipped sample",
        "max_tokens": load.max_tokens,
        "threads": load.threads,
        "repeats": options.repeats,
        "real_tokens": int(counts.sum()),
        "rows": [_row(entry, ours[0], len(counts) / int(counts.sum())) for entry in entries],
        "ratios": {entry.name: _ratios(entry, ours, peers) for entry in ours if entry.turns},
        "coordination": {
            name: _coordination(name, ours, rival)
            for name, rival in rivals.items()
            if rival.tokens_per_second and any(e.turns for e in ours if e.name == name)
        },
    }


def _row(entry: Entry, reference: Entry, texts_per_token: float) -> common.Result:
    """Give an entry's figures; texts a second as all the texts are, also from a sample."""
    if entry.skipped or not entry.turns:
        return {"name": entry.name, "what": entry.what, "skipped": entry.skipped or "no turn"}
    rate = entry.tokens_per_second
    cosines = _cosines(entry, reference)
    padded = entry.turns[-1]["padded_tokens"] or entry.padded_tokens
    return {
        "name": entry.name,
        "what": entry.what,
        "texts": entry.texts,
        "texts_per_second": rate * texts_per_token,
        "tokens_per_second": rate,
        "padding_ratio": 1 - entry.real_tokens / padded,
        "setting": entry.turns[-1]["setting"],
        "mean_cosine": cosines and cosines[0],
        "min_cosine": cosines and cosines[1],
        "spread": common.spread([turn["seconds"] for turn in entry.turns]),
        "seconds": [turn["seconds"] for turn in entry.turns],
    }


def _ratios(entry: Entry, ours: list[Entry], peers: list[Entry]) -> common.Result:
    others = [other for other in [*ours, *peers] if other.turns and other is not entry]
    ratios = {o.name: entry.tokens_per_second / o.tokens_per_second for o in others}
    rest = [peer for peer in peers if peer.turns and peer.name != DEFAULT_PEER]
    best = max(rest, key=lambda peer: peer.tokens_per_second, default=None)
    return {
        "over": ratios,
        "best_peer": best.name if best else None,
        "over_best_peer": ratios[best.name] if best else None,
    }


def _coordination(name: str, ours: list[Entry], rival: Rival) -> common.Result:
    """Hold the pool against the sessions that ran right after it, round by round."""
    entry = next(entry for entry in ours if entry.name == name)
    pool = [entry.real_tokens / turn["seconds"] for turn in entry.turns]
    ratios = [mine / theirs for mine, theirs in zip(pool, rival.tokens_per_second, strict=False)]
    return {
        "pool_tokens_per_second": median(pool),
        "independent_tokens_per_second": median(rival.tokens_per_second),
        "ratio": median(ratios),
    }


def _cosines(entry: Entry, reference: Entry) -> tuple[float, float] | None:
    """Compare vectors with the reference's, mean and least; None where the texts differ."""
    if entry.contestant is None or reference.contestant is None or entry.texts != reference.texts:
        return None
    ours, theirs = entry.contestant.vectors, reference.contestant.vectors
    norms = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
    cosines = (ours * theirs).sum(axis=1) / norms
    return float(cosines.mean()), float(cosines.min())


def show(result: common.Result) -> None:
    """Print the table and the ratios."""
    ours = list(result["ratios"])
    common.print_table(
        f"{result['texts']:,} texts ({result['source']}), at most {result['max_tokens']} tokens,"
        f" {result['threads']} threads, medians of {result['repeats']}",
        [
            "",
            "texts/s",
            "tokens/s",
            "padding",
            "spread",
            "cosine: mean",
            "min",
            *(f"{n} ÷" for n in ours),
        ],
        [_cells(row, result) for row in result["rows"]],
    )
    for row in result["rows"]:
        if row.get("skipped"):
            print(f"skipped: {row['what']}: {row['skipped']}")
        elif row["texts"] < result["texts"]:
            print(f"{row['what']}: timed on {row['texts']:,} of the texts, evenly spaced.")
    for name, ratios in result["ratios"].items():
        if ratios["best_peer"]:
            print(
                f"{name} ÷ best other peer ({ratios['best_peer']}): {ratios['over_best_peer']:.2f}"
            )
    for name, found in result["coordination"].items():
        print(
            f"coordination, {name} ÷ {result['threads']} independent sessions:"
            f" {found['ratio']:.3f} ({found['pool_tokens_per_second']:,.0f} ÷"
            f" {found['independent_tokens_per_second']:,.0f} tokens/s)"
        )


def _cells(row: common.Result, result: common.Result) -> list[str]:
    if row.get("skipped"):
        return [row["what"], "skipped"]
    cosines = (row["mean_cosine"], row["min_cosine"])
    setting = row["setting"] and f" ({row['setting']})"
    over = [ratios["over"].get(row["name"]) for ratios in result["ratios"].values()]
    return [
        f"{row['what']}{setting}",
        f"{row['texts_per_second']:,.1f}",
        f"{row['tokens_per_second']:,.0f}",
        f"{row['padding_ratio']:.1%}",
        f"{row['spread']:.0%}",
        *("" if cosine is None else f"{cosine:.5f}" for cosine in cosines),
        *("" if ratio is None else f"{ratio:.2f}" for ratio in over),
    ]


if __name__ == "__main__":
    sys.exit(common.run(main))
