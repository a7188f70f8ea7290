"""What readers found out that a person should know, said once for all files of which it holds."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

_NAMES_TOLD = 3


@dataclass(slots=True)
class Findings:
    """Gathers findings; `notes` says them in the order in which they were met."""

    found: dict[str, list[str]] = field(default_factory=dict)
    without_value: Counter[str] = field(default_factory=Counter)
    rows_without: int = 0
    not_finite: Counter[str] = field(default_factory=Counter)
    rows_not_finite: int = 0
    never_seen: dict[str, str] = field(default_factory=dict)

    def say(self, what: str, path: str) -> None:
        """Note what is so of a file."""
        self.found.setdefault(what, []).append(path)

    def once(self, what: str, path: str) -> None:
        """Note what may be met again and again in a file."""
        if path not in self.found.get(what, ()):
            self.say(what, path)

    def lacking(self, names: list[str]) -> None:
        """Count a row in which fields of a template have no value."""
        self.rows_without += 1
        self.without_value.update(names)

    def nulled(self, names: list[str]) -> None:
        """Count a row whose metadata got null in place of NaN or infinity."""
        self.rows_not_finite += 1
        self.not_finite.update(names)

    def join(self, other: Findings) -> None:
        """Add what another reader of the same input has found."""
        for what, paths in other.found.items():
            for path in paths:
                self.once(what, path)
        self.without_value.update(other.without_value)
        self.rows_without += other.rows_without
        self.not_finite.update(other.not_finite)
        self.rows_not_finite += other.rows_not_finite
        self.never_seen.update(other.never_seen)

    @property
    def notes(self) -> list[str]:
        """What there is to say."""
        notes = [f"{_several(paths)}: {what}" for what, paths in self.found.items()]
        if self.rows_without:
            notes.append(
                f"in {_rows(self.rows_without)} a field of the text had no value, and nothing"
                f" stands in its place: {_counted(self.without_value)}"
            )
        if self.rows_not_finite:
            notes.append(
                f"in {_rows(self.rows_not_finite)} the metadata had NaN or infinity, which is no"
                f" number in JSON, and null stands in its place: {_counted(self.not_finite)}"
            )
        return notes + list(self.never_seen.values())


def _rows(number: int) -> str:
    return f"{number:,} row" if number == 1 else f"{number:,} rows"


def _counted(names: Counter[str]) -> str:
    return ", ".join(f"{name} {n:,}" for name, n in names.most_common(10))


def _several(found: list[str]) -> str:
    # A file may be read twice, as a dry run does.
    paths = list(dict.fromkeys(found))
    shown = ", ".join(paths[:_NAMES_TOLD])
    return shown if len(paths) <= _NAMES_TOLD else f"{shown} and {len(paths) - _NAMES_TOLD:,} more"
