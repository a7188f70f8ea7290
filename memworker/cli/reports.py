"""How the outcome of a verb is printed, and with what it leaves."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any, NoReturn

import typer

from memworker.cli import signals
from memworker.cli.output import json_line

if TYPE_CHECKING:
    from memworker.ingestion import IngestReport


def print_result(text: str, result: dict[str, Any], *, as_json: bool) -> None:
    """Print a verb's outcome, for people or as one JSON object."""
    print(json_line(result) if as_json else text)


def print_report(report: IngestReport, *, as_json: bool, done: str) -> None:
    """Print a job's outcome; leave with 3 if rows were rejected, 128 + n after signal n."""
    print_out(json_line(report.to_dict()) if as_json else f"{done}\n{_figures(report)}")
    for note in report.notes:
        print(f"memworker: {note}", file=sys.stderr)
    if report.rejects is not None and not as_json:
        print(f"rejected rows, with their reasons: {report.rejects}", file=sys.stderr)
    leave_if_interrupted(report.interrupted, f"{report.written:,} rows of this run are committed")
    if report.rejects is not None:
        raise typer.Exit(3)


def leave_if_interrupted(interrupted: bool, committed: str) -> None:
    """Leave with 128 + n after signal n, saying what is there and whether there is more to do."""
    if number := signals.received():
        rest = "Run the same command again to go on." if interrupted else "That was all."
        print(f"memworker: interrupted; {committed}. {rest}", file=sys.stderr)
        raise typer.Exit(128 + number)


def print_out(text: str) -> None:
    """Print a report; leave with 1, saying so, if nobody reads it."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        output_closed("before the report was printed; the work is done")


def output_closed(when: str) -> NoReturn:
    """Say that the reader of standard output is gone, and leave with 1."""
    print(f"memworker: standard output was closed {when}", file=sys.stderr)
    # What is still in the buffer would fail again at the interpreter's end.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    raise typer.Exit(1) from None


def size(n_bytes: int) -> str:
    """Write a number of bytes as people do."""
    scaled = float(n_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if scaled < 1000 or unit == "GB":
            break
        scaled /= 1000
    return f"{scaled:.0f} {unit}" if unit == "B" else f"{scaled:.1f} {unit}"


def _figures(report: IngestReport) -> str:
    counts = [f"{report.read:,} read", f"{report.embedded:,} embedded"]
    if report.chunks:
        counts[0] += f" ({report.chunks:,} chunks)"
    for name in (
        "written",
        "duplicates",
        "conflicts",
        "updated",
        "moved",
        "removed",
        "rejected",
        "reused",
        "truncated",
    ):
        if value := getattr(report, name):
            counts.append(f"{value:,} {name}")
    return f"{', '.join(counts)}\n{speed(report)}"


def speed(report: IngestReport) -> str:
    """Say how fast texts were embedded, and where the time went."""
    if not report.embedded:
        return "no text was embedded, so there is no speed to tell"
    return (
        f"{report.seconds:.1f} s: {report.texts_per_second:,.0f} texts/s,"
        f" {report.tokens_per_second:,.0f} tokens/s, {report.padding_ratio:.1%} padding,"
        f" {report.workers} workers, {report.model} {report.precision}"
        f" (start-up {report.startup_seconds:.1f} s)\n{_where_time_went(report)}"
    )


def _where_time_went(report: IngestReport) -> str:
    spent = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in report.time.items())
    if report.gemm_limit_ratio is None:
        return spent
    return (
        f"{report.gemm_limit_ratio:.0%} of this machine's {report.precision} matrix limit; {spent}"
    )
