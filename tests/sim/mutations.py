"""Rules of the pool and of the committer, each broken on purpose; the simulation must notice.

A simulation that finds nothing proves little unless it finds what is there. Each mutation
is made in a copy of the code, in which schedules are run until one complains.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
# A broken rule may let the pool's loop go round without ever waiting.
_FOR_EVER_S = 1800.0


@dataclass(frozen=True, slots=True)
class Mutation:
    """A rule, and how it is broken: `before` stands once in `file`, and becomes `after`.

    `also` is what else stands there for the same rule, and must go with it.
    """

    rule: str
    file: str
    before: str
    after: str
    also: tuple[tuple[str, str], ...] = ()

    def broken(self, root: Path) -> str:
        """Return the file under `root` with the rule broken; ValueError where it is not there."""
        text = (root / "memworker" / self.file).read_text()
        for before, after in ((self.before, self.after), *self.also):
            if text.count(before) != 1:
                raise ValueError(f"{self.file} has {text.count(before)} times {before!r}")
            text = text.replace(before, after)
        return text

    def apply(self, root: Path) -> None:
        """Break the rule in the code under `root`."""
        (root / "memworker" / self.file).write_text(self.broken(root))


@dataclass(frozen=True, slots=True)
class Found:
    """After how many schedules a mutation was complained of (None: not at all), and how."""

    rule: str
    schedules: int | None
    complaint: str


def find(seed: int, schedules: int) -> Iterator[Found]:
    """Break each rule, and run schedules from `seed` on until one complains."""
    for mutation in MUTATIONS:
        with tempfile.TemporaryDirectory(prefix="memworker-mutation-") as folder:
            root = Path(folder)
            for name in ("memworker", "tests"):
                leave = shutil.ignore_patterns("__pycache__")
                shutil.copytree(ROOT / name, root / name, ignore=leave)
            mutation.apply(root)
            yield _found(mutation, root, seed, schedules)


def _found(mutation: Mutation, root: Path, seed: int, schedules: int) -> Found:
    # One process, a batch at a time: the first complaint ends it.
    command = [sys.executable, "-m", "tests.sim", "--seed", str(seed), "--jobs", "1"]
    command += ["--schedules", str(schedules), "--most-broken", "1", "--json"]
    try:
        ended = subprocess.run(
            command, cwd=root, capture_output=True, text=True, timeout=_FOR_EVER_S
        )
    except subprocess.TimeoutExpired:
        return Found(mutation.rule, schedules, f"a schedule without an end in {_FOR_EVER_S:.0f} s")
    if ended.returncode not in (0, 1) or not ended.stdout:
        raise RuntimeError(f"{mutation.rule}: {ended.stderr}")
    broken = {int(at): how for at, how in json.loads(ended.stdout)["broken"].items()}
    if not broken:
        return Found(mutation.rule, None, "")
    first = min(broken)
    return Found(mutation.rule, first - seed + 1, broken[first])


_SUPERVISOR, _SCHEDULER = "pool/supervisor.py", "pool/scheduler.py"
_HANDLE, _ADMISSION = "pool/handle.py", "pool/admission.py"
_REQUESTS, _COMMITTER = "pool/requests.py", "ingestion/committer.py"

# Left out is what another rule makes good: that a worker is kept free for a shard on trial (bulk
# work waits anyway while one has come back), that half a message has a deadline (the work
# has one too), and that who leaves the line lets in those behind (whoever is done next does).
MUTATIONS = (
    Mutation(
        "a shard that ended workers is tried alone",
        _SUPERVISOR,
        "self._try_alone(shard) if shard.blames else self.offer(shard)",
        "self.offer(shard)",
    ),
    Mutation(
        "nothing goes beside a shard on trial",
        _SUPERVISOR,
        " and not handle.tries\n",
        "\n",
    ),
    Mutation(
        "a buried worker is not read",
        _SUPERVISOR,
        "        if handle.gone:\n            return  # it was woken for",
        "        if False:\n            return  # it was woken for",
    ),
    Mutation(
        "after a message that ended its worker none is read",
        _SUPERVISOR,
        "                if handle.gone:\n                    return\n",
        "",
    ),
    Mutation(
        "a dying worker's last answers are read",
        _SUPERVISOR,
        "        self._read(handle)\n        if not handle.gone",
        "        if not handle.gone",
        (
            (
                "        woken.sort(key=lambda wake: wake.ended)\n",
                "        woken.sort(key=lambda wake: not wake.ended)\n",
            ),
        ),
    ),
    Mutation(
        "an order that was not sent is nobody's fault",
        _HANDLE,
        "        self._unsent.add(index)\n",
        "",
    ),
    Mutation(
        "what a dead worker held is done again",
        _SUPERVISOR,
        "                self.returned.appendleft(shard)\n            case Verdict.SPLIT",
        "                pass\n            case Verdict.SPLIT",
    ),
    Mutation(
        "hung workers are ended",
        _SUPERVISOR,
        "            if due is not None and due <= now:",
        "            if False:",
    ),
    Mutation(
        "a worker that cannot die keeps its memory to itself",
        _SUPERVISOR,
        "            del self._regions[handle.number]\n",
        "            pass\n",
    ),
    Mutation(
        "deadlines count anew after this process was stopped",
        _SUPERVISOR,
        "            self._restart_deadlines()\n",
        "            pass\n",
    ),
    Mutation(
        "a start that failed is tried again",
        _SUPERVISOR,
        "number, now, how)\n                self._restarts.schedule(number, now)",
        "number, now, how)",
    ),
    Mutation(
        "an answer's turn is checked",
        _HANDLE,
        "if (given.shard.id, given.generation) != (done.shard, done.generation):",
        "if given.shard.id != done.shard:",
    ),
    Mutation(
        "an answer's shard is checked",
        _HANDLE,
        "if (given.shard.id, given.generation) != (done.shard, done.generation):",
        "if given.generation != done.generation:",
    ),
    Mutation(
        "an answer's slot is checked",
        _HANDLE,
        "        if given is None:\n            raise Nonsense",
        "        if given is None:\n            given = next(iter(self.slots.values()))\n"
        "        if False:\n            raise Nonsense",
    ),
    Mutation(
        "a status that cannot be is refused",
        "pool/incoming.py",
        "    if len(counts) > _STATUSES:",
        "    if False:",
    ),
    Mutation(
        "a count of tokens that cannot be is refused",
        "pool/incoming.py",
        "    if tokens.min() < 0:",
        "    if False:",
    ),
    Mutation(
        "only what a worker had begun is blamed on it",
        _HANDLE,
        "return {index for index in self.in_hand() if not self.region.slots[index].untouched}",
        "return set(self.slots)",
    ),
    Mutation(
        "a text is set aside after the third worker",
        "pool/blame.py",
        "_BEFORE_QUARANTINE = 3",
        "_BEFORE_QUARANTINE = 2",
    ),
    Mutation(
        "both halves of a shard that is split are done",
        _REQUESTS,
        "parts = (self.indices[:middle], self.indices[middle:])",
        "parts = (self.indices[:middle], self.indices[middle + 1 :])",
    ),
    Mutation(
        "a request ends when all its rows are there",
        _REQUESTS,
        "return not self._rows_left and self.future.claim()",
        "return self.future.claim()",
    ),
    Mutation(
        "of those who complete a request one is first",
        _REQUESTS,
        "        if not self._unclaimed.acquire(blocking=False):\n            return False\n",
        "",
    ),
    Mutation(
        "a wake-up during the clearing is not lost",
        _SCHEDULER,
        "        assert self._alarm is not None\n        self._alarm.clear()\n",
        "        assert self._alarm is not None\n        self._woken = False\n"
        "        self._alarm.clear()\n        return\n",
    ),
    Mutation(
        "whoever queues wakes the pool",
        _SCHEDULER,
        "self._inbox.append(entry)\n                self._heed(entry)",
        "self._inbox.append(entry)",
    ),
    Mutation(
        "what is queued during a step is not left lying",
        _SCHEDULER,
        "        self._finish()\n        self._look_once_more()\n",
        "        self._finish()\n        self._enough_tokens = self._lanes.enough_tokens()\n",
    ),
    Mutation(
        "nothing is queued in a pool that has closed",
        _SCHEDULER,
        "            if self._failure is None and not self._closing:",
        "            if True:",
    ),
    Mutation(
        "callers are told of an outage",
        _SCHEDULER,
        "            self._fail_all(outage)\n",
        "            pass\n",
    ),
    Mutation(
        "all that waits is told of the pool's end",
        _SCHEDULER,
        "        self._fail_all(error)\n        # A pool",
        "        # A pool",
    ),
    Mutation(
        "what was queued last is told of the pool's end",
        _SCHEDULER,
        "            for entry in self._inbox:\n                self._register(entry)\n",
        "",
    ),
    Mutation(
        "room that is given back lets in the next",
        _ADMISSION,
        "            self._pending = max(0, self._pending - cost)\n            self._let_in()\n",
        "            self._pending = max(0, self._pending - cost)\n",
    ),
    Mutation(
        "who gives up a turn that has come gives back its room",
        _ADMISSION,
        "            self.leave(ticket.cost)\n",
        "            pass\n",
    ),
    Mutation(
        "after a commit that failed nothing more is committed",
        _COMMITTER,
        "            self._error, self._failed = error, True",
        "            self._error = error",
    ),
    Mutation(
        "a position is acknowledged after its commit",
        _COMMITTER,
        "        done = self._write(self._table, batch)\n",
        "        self._history.committed(self._table, pending.position)\n"
        "        done = self._write(self._table, batch)\n",
    ),
    Mutation(
        "the last rows are committed too",
        _COMMITTER,
        "self._guard(self._commit if item is None else partial(self._take, *item))",
        "self._guard((lambda: None) if item is None else partial(self._take, *item))",
    ),
)
