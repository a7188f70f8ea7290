"""The results so far, in a file of JSON lines, so that a long run can be gone on with."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from tests.faults.every_call.cases import Case
from tests.faults.every_call.driver import Result

ROOT = Path(__file__).parents[3]


class Progress:
    """The results of this state of the code, and where `carry` says so, of others.

    A violation is believed of the code that it was seen with alone: it may be mended.
    """

    def __init__(self, path: Path, *, carry: bool = False) -> None:
        self.path = path
        self.results: dict[str, Result] = {}
        self._code = _code()
        path.parent.mkdir(parents=True, exist_ok=True)
        for line in path.read_text().splitlines() if path.exists() else []:
            code, result = _read(line)
            if code == self._code or (carry and not result.violations):
                self.results[result.case.name] = result
            else:
                self.results.pop(result.case.name, None)

    def add(self, result: Result) -> None:
        """Note a result."""
        self.results[result.case.name] = result
        told = {"code": self._code} | result.to_dict()
        with self.path.open("a") as file:
            file.write(json.dumps(told) + "\n")

    def left(self, cases: Iterable[Case]) -> list[Case]:
        """Return the cases that have no result yet."""
        return [case for case in cases if case.name not in self.results]


def _read(line: str) -> tuple[str, Result]:
    told = json.loads(line)
    return told.pop("code"), Result.of(told)


def _code() -> str:
    """Return what tells one state of the package, and of these scenarios, from another."""
    digest = hashlib.sha256()
    for folder in ("memworker", "tests/faults/every_call"):
        for path in sorted((ROOT / folder).rglob("*.[pc]*")):
            if path.suffix in (".py", ".c"):
                digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
