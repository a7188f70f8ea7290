"""Runs cases: fresh folders, a forked child with its faults, the checks, the job once more."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tests.faults.every_call import shim
from tests.faults.every_call.cases import Case
from tests.faults.every_call.scenario import KILLED, Bench, Outcome, forced, healthy, watched
from tests.faults.every_call.scenarios import SCENARIOS
from tests.faults.every_call.shim import Called, Control, Fault
from tests.faults.every_call.zygote import Ended, Order, Zygote
from tests.leftovers import own_folder

WATCHDOG_S = 90.0
# The order of calls of several threads differs a little from run to run, and their number.
ATTEMPTS = 3


@dataclass(frozen=True, slots=True)
class Result:
    """What became of a case: `acted` calls were failed, the first of them at `site`."""

    case: Case
    acted: int
    site: str
    status: int
    seconds: float
    violations: tuple[str, ...]
    said: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON can have it."""
        return asdict(self) | {"case": self.case.name}

    @classmethod
    def of(cls, told: dict[str, Any]) -> Result:
        """Read what `to_dict` returned."""
        case, violations = Case.of(told["case"]), tuple(told["violations"])
        return cls(**told | {"case": case, "violations": violations})


class Driver:
    """Runs one case at a time, with a zygote of its own.

    What is there before a scenario's job is made once, in `templates`.
    """

    def __init__(
        self, folder: Path, library: Path, bench: Bench, templates: Path | None = None
    ) -> None:
        self.bench = bench
        self._folder = folder
        self._templates = templates or folder
        self._control = Control(folder / "control")
        self._zygote = Zygote(self._control, library)
        self._number = 0

    def count(self, scenario: str) -> list[Called]:
        """Run a scenario without a fault, which must go well; give its calls."""
        result = self.run(Case(scenario, "any", 0, "gone"))
        if result.violations:
            raise RuntimeError(f"{scenario} fails without any fault: {result}")
        return self.calls()

    def calls(self) -> list[Called]:
        """Return the calls of the last run."""
        return list(self._control.calls())

    @property
    def sees_all(self) -> bool:
        return self._control.sees_all

    def run(self, case: Case) -> Result:
        """Run one case in a folder of its own."""
        self._number += 1
        folder = self._folder / f"case-{self._number}"
        shutil.copytree(self.template(case.scenario), folder)
        try:
            return self._run(case, folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def template(self, name: str) -> Path:
        """Return the folder as it is before a scenario's job, made once."""
        folder = self._templates / f"before-{name}"
        if not folder.exists():
            for inside in ("db", "tmp", "cache"):
                (watched(folder) / inside).mkdir(parents=True)
            SCENARIOS[name].prepare(folder, self.bench)
        return folder

    def child(self, scenario: str, folder: Path, fault: Fault) -> Ended:
        """Do a scenario's job in a folder, in a process of its own, with its calls failing."""
        self._control.prepare(fault, (f"{watched(folder)}/", "/memfd:"))
        try:
            return self._zygote.run(Order(scenario, str(folder), str(watched(folder)), WATCHDOG_S))
        finally:
            self._control.disarm()

    def close(self) -> None:
        self._zygote.close()

    def _run(self, case: Case, folder: Path) -> Result:
        scenario = SCENARIOS[case.scenario]
        ended = self.child(case.scenario, folder, case.fault)
        failed = tuple(_failed(self._control.calls(), folder))
        outcome = replace(
            said(folder, ended),
            messy=case.messy,
            ongoing=case.ongoing,
            failed=tuple(path for _, path in failed),
        )
        calls = self.calls() if scenario.durable else []
        violations = list(_ended_well(ended, outcome))
        violations += _said(scenario.check(folder, outcome, self.bench), "check")
        violations += _said(healthy(folder), "verify")
        if scenario.durable and scenario.acknowledged(folder, outcome):
            violations += _said(forced(folder, scenario.of_table, calls), "power loss")
        # The table as a crash left it must also be one that the job can go on with.
        violations += _said(scenario.finish(folder, self.bench), "again")
        return Result(
            case,
            self._control.acted,
            " ".join(failed[0]) if failed else "",
            ended.status,
            ended.seconds,
            tuple(violations),
            outcome.err[-600:],
        )


def attempted(lane: Driver, case: Case) -> Result:
    """Run a case until its call was reached, a few times."""
    for _ in range(ATTEMPTS):
        result = lane.run(case)
        # One that came to no end before its call was reached shows a busy machine.
        slow = all(said.startswith("no end within") for said in result.violations)
        if result.acted or not slow:
            break
    return result


def said(folder: Path, ended: Ended) -> Outcome:
    """Return how a job ended and what it said."""
    out, err = ((folder / name).read_text(errors="replace") for name in ("out", "err"))
    return Outcome(ended.status, out, err)


@contextmanager
def driver(folder: Path | None = None) -> Iterator[Driver]:
    """Give a driver with everything that it needs, for the time of a block."""
    with workshop(folder) as (inside, library):
        bench = Bench(inside)
        made = Driver(inside, library, bench)
        try:
            yield made
        finally:
            made.close()
            bench.close()


@contextmanager
def workshop(folder: Path | None = None) -> Iterator[tuple[Path, Path]]:
    """Give a folder, and the library built; all of it goes at the end."""
    own = own_folder(folder)
    try:
        yield own.path, shim.build(own.path)
    finally:
        own.remove()


def _ended_well(ended: Ended, outcome: Outcome) -> Iterator[str]:
    if ended.hung:
        yield f"no end within {WATCHDOG_S:.0f} s: {outcome.err[-3000:]}"
    elif ended.status < 0 and ended.status != KILLED:
        yield f"ended by signal {-ended.status}: {outcome.err[-1500:]}"
    if ended.left:
        yield f"{ended.left} processes were left behind"


def _said(flaws: Iterator[str], when: str) -> Iterator[str]:
    """Give the flaws, and as one of them what looking for them raised."""
    try:
        yield from (f"{when}: {flaw}" for flaw in flaws)
    except Exception as error:
        yield f"{when}: {type(error).__name__}: {error}"


def _failed(calls: Iterator[Called], folder: Path) -> Iterator[tuple[str, str]]:
    """Give kind and path of each call that was failed."""
    prefix = f"{watched(folder)}/"
    for call in calls:
        if call.injected:
            yield call.kind.name.lower(), call.path.removeprefix(prefix)
