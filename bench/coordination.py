"""What N sessions could do together if nothing had to coordinate them.

N plain processes, each with one single-threaded session on memworker's own
graph, get micro-batches cut beforehand from all texts sorted by token count,
each the same number of tokens. They tokenise and run, all at the same time.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bench.processes import Contestant, Workload
from memworker.pool import Costs


class IndependentSessions:
    """The N processes; a turn is one run of all of them at once."""

    def __init__(
        self, load: Workload, counts: npt.NDArray[np.int64], folder: Path, stack: ExitStack
    ) -> None:
        self._contestants = []
        for number, batches in enumerate(deal(counts, load.max_tokens, load.threads)):
            share = replace(
                load,
                texts=[load.texts[row] for batch in batches for row in batch],
                batches=[len(batch) for batch in batches],
            )
            path = share.save(folder / f"independent-{load.precision}-{number}.json")
            self._contestants.append(stack.enter_context(Contestant("independent", path)))
        for contestant in self._contestants:
            contestant.wait_ready()

    def turn(self) -> float:
        """Let all run at the same time; gives the sum of their real tokens a second."""
        for contestant in self._contestants:
            contestant.go()
        turns = [contestant.result() for contestant in self._contestants]
        return float(sum(turn["real_tokens"] / turn["seconds"] for turn in turns))


def deal(
    counts: npt.NDArray[np.int64], max_tokens: int, shares: int
) -> list[list[npt.NDArray[np.int64]]]:
    """Cut all texts into micro-batches and deal those out, the same tokens for everybody.

    Longest processing time first (Graham 1969): each batch, costliest first,
    goes to whoever has least.
    """
    batches = pack(counts, Costs(max_tokens=max_tokens).batch_tokens)
    batches.sort(key=lambda batch: -int(counts[batch].sum()))
    dealt: list[list[npt.NDArray[np.int64]]] = [[] for _ in range(shares)]
    tokens = [0] * shares
    for batch in batches:
        least = tokens.index(min(tokens))
        dealt[least].append(batch)
        tokens[least] += int(counts[batch].sum())
    return [share for share in dealt if share]


def pack(counts: npt.NDArray[np.int64], batch_tokens: int) -> list[npt.NDArray[np.int64]]:
    """Cut all texts, sorted by token count, into runs of at most `batch_tokens` padded tokens."""
    order = np.argsort(-counts, kind="stable")
    batches, start = [], 0
    while start < len(order):
        end = start + max(batch_tokens // int(counts[order[start]]), 1)
        batches.append(order[start:end])
        start = end
    return batches
