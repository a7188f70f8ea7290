"""What every bench shares: its options, medians, its table, its JSON with the machine's facts."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

from memworker import processor
from memworker.errors import MemworkerError, UsageError
from memworker.store import Output

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results"
LIBRARIES = ("memworker", "onnxruntime", "fastembed", "lancedb", "numpy", "tokenizers")
OPTIONAL_LIBRARIES = (
    *(
        "sentence-transformers",
        "torch",
        "openvino",
        "optimum-intel",
        "nncf",
        "model2vec",
        "wordllama",
    ),
    *("mem0ai", "qdrant-client"),
)

Result = dict[str, Any]


def parser(name: str, doc: str | None) -> argparse.ArgumentParser:
    """Make a parser with the options that every bench has."""
    made = argparse.ArgumentParser(prog=f"python -m bench {name}", description=doc)
    made.add_argument("--json", action="store_true", help="print one JSON object on one line")
    made.add_argument(
        "--save", type=Path, default=RESULTS, metavar="DIR", help="where results are kept"
    )
    return made


def positive(text: str) -> int:
    """Read a positive whole number, for argparse."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {value}")
    return value


def names(text: str) -> list[str]:
    """Read a comma-separated list, for argparse."""
    found = [part.strip() for part in text.split(",") if part.strip()]
    if not found:
        raise argparse.ArgumentTypeError("must name at least one")
    return found


def run(
    main: Callable[[Sequence[str] | None], None], arguments: Sequence[str] | None = None
) -> int:
    """Run a bench and give its exit code: 0, 1 for a failure, 2 for a wrong argument."""
    try:
        main(arguments)
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except MemworkerError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


# As `json.dumps` begins what every bench keeps.
RESULT_BEGINS = '{\n "bench": '


def checked_output(path: Path, option: str, begins: str, inputs: Iterable[Path] = ()) -> Output:
    """Look at a file that is to be written: one that is there must begin as ours do.

    Raises UsageError where it does not, or where it is an input as well.
    """
    output = Output.checked(
        path, option, lambda there: there.read_bytes().startswith(begins.encode())
    )
    output.not_among(map(str, inputs))
    return output


def write_output(path: Path, option: str, content: str, *, begins: str) -> None:
    """Write a file whole or not at all, and only over one of ours. Raises UsageError."""
    with checked_output(path, option, begins).written() as file:
        file.write(content.encode())


def publish(
    name: str,
    result: Result,
    options: argparse.Namespace,
    show: Callable[[Result], None],
    *,
    variant: str = "",
) -> None:
    """Keep a result with the machine's facts, and print it as a table or as JSON.

    Results of another `variant` of a bench are kept beside each other.
    """
    full = {"bench": name, "machine": machine_facts(), **result}
    options.save.mkdir(parents=True, exist_ok=True)
    path = options.save / f"{'-'.join(filter(None, (name, variant)))}.json"
    write_output(path, "--save", json.dumps(full, indent=1), begins=RESULT_BEGINS)
    if options.json:
        print(json.dumps(full))
    else:
        show(full)


def machine_facts() -> Result:
    """Say what the figures were measured on."""
    return {
        "cpu": processor.name(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "load_average": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {
            name: v for name in (*LIBRARIES, *OPTIONAL_LIBRARIES) if (v := _version(name))
        },
        "measured_at": time.strftime("%Y-%m-%d %H:%M:%S %z"),
    }


def optional(module: str) -> Any:
    """Import a module of the bench extra.

    Raises UsageError with the pip command where it is not installed.
    """
    try:
        return import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise UsageError(
            f"this needs {package}, which is not installed: pip install 'memworker[bench]'"
        ) from error


def medians(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Give each key's median over repeats."""
    return {key: median(row[key] for row in rows) for key in rows[0]} if rows else {}


def ratio(value: float | None, base: float | None) -> float | None:
    """Divide; None where either was not measured, or nothing ended in the time it was given."""
    return None if value is None or not base else value / base


def figure(value: float | None, form: str = ",.2f") -> str:
    """Write a figure for a table, or that it was not measured."""
    return "not measured" if value is None else f"{value:{form}}"


def spread(values: Sequence[float]) -> float:
    """Give the largest value over the smallest, less 1: how restless the machine was."""
    return max(values) / min(values) - 1 if values and min(values) > 0 else 0.0


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print a table: first column to the left, the others to the right."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=title, title_justify="left", title_style="bold")
    for position, column in enumerate(columns):
        table.add_column(column, justify="right" if position else "left")
    for row in rows:
        table.add_row(*(escape(str(cell)) for cell in row))
    Console(width=None if sys.stdout.isatty() else 140).print(table)


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
