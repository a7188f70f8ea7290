"""A lane is a process: it runs one case after the other, and its checks cost no other lane's time.

::

    loop ─► line of JSON: a scenario to count, or a case ─► lane: a Driver, and its zygote
         ◄─ line of JSON: its calls, or its result

The loop ends a lane that does not answer, which is a violation, and starts another.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from contextlib import closing, suppress
from dataclasses import astuple
from pathlib import Path
from typing import Any

from tests.faults.every_call.cases import Case
from tests.faults.every_call.driver import ATTEMPTS, WATCHDOG_S, Driver, Result, attempted
from tests.faults.every_call.scenario import Bench
from tests.faults.every_call.shim import Action, Called, Kind
from tests.faults.every_call.zygote import ROOT

# A job is ended by the watchdog; its checks take seconds, and have their own bounds.
ANSWERS_WITHIN_S = ATTEMPTS * (WATCHDOG_S + 60)
_ENDS_WITHIN_S = 30.0


class Lane:
    """The loop's side."""

    def __init__(self, folder: Path, number: int, library: Path) -> None:
        inside = folder / f"lane-{number}"
        inside.mkdir()
        self.sees_all = True
        self._command = [sys.executable, "-m", __spec__.name, *map(str, (inside, library, folder))]
        self._process = self._started()

    def count(self, scenario: str) -> list[Called]:
        """Run a scenario without a fault, which must go well; give its calls."""
        answer = self._asked({"count": scenario})
        if answer is None or "failed" in answer:
            raise RuntimeError(f"{scenario} fails without any fault: {answer or 'no answer'}")
        self.sees_all = answer["sees_all"]
        return [
            Called(Kind(kind), path, pid, outcome, Action(injected), size)
            for kind, path, pid, outcome, injected, size in answer["calls"]
        ]

    def run(self, case: Case) -> Result:
        """Run a case, a few times until its call was reached."""
        answer = self._asked({"case": case.name})
        if answer is None:
            self._kill()
            self._process = self._started()
            within = f"no answer of its lane within {ANSWERS_WITHIN_S:.0f} s, or it ended"
            return Result(case, 0, "", 0, ANSWERS_WITHIN_S, (within,))
        return Result.of(answer)

    def __enter__(self) -> Lane:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_ENDS_WITHIN_S)
        self._kill()

    def _asked(self, question: dict[str, str]) -> dict[str, Any] | None:
        process = self._process
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(json.dumps(question) + "\n")
            process.stdin.flush()
        except BrokenPipeError:
            return None
        if not select.select([process.stdout], [], [], ANSWERS_WITHIN_S)[0]:
            return None
        line = process.stdout.readline()
        return json.loads(line) if line else None

    def _started(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self._command,
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            # So that it can be ended with its zygote.
            start_new_session=True,
        )

    def _kill(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with suppress(BrokenPipeError):
                pipe.close()


def main(inside: str, library: str, templates: str) -> None:
    """Answer questions until stdin ends."""
    answers = os.fdopen(os.dup(1), "w")
    # What anything else prints is no answer.
    os.dup2(2, 1)
    with closing(Bench(Path(inside))) as bench:
        with closing(Driver(Path(inside), Path(library), bench, Path(templates))) as driver:
            for line in sys.stdin:
                answers.write(json.dumps(_answer(driver, json.loads(line))) + "\n")
                try:
                    answers.flush()
                except BrokenPipeError:
                    # The loop was killed: nobody asks any more.
                    os._exit(1)


def _answer(driver: Driver, question: dict[str, str]) -> dict[str, Any]:
    if "case" in question:
        return attempted(driver, Case.of(question["case"])).to_dict()
    try:
        calls = driver.count(question["count"])
    except RuntimeError as error:
        return {"failed": str(error)}
    return {"calls": [astuple(call) for call in calls], "sees_all": driver.sees_all}


if __name__ == "__main__":
    main(*sys.argv[1:])
