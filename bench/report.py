"""One HTML page of all results, with plots: reads what the benches saved, or runs them first."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from html import escape
from importlib import import_module
from pathlib import Path
from typing import Any, TypeAlias

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from bench import charts, common, memory
from bench.__main__ import BENCHES
from bench.charts import Bar, Curve
from memworker.errors import InputNotFound, UsageError

_PAGE_BEGINS = (
    '<!doctype html><html lang="en"><meta charset="utf-8"><title>memworker, measured</title>'
)
_CHART_BEGINS = "<svg"

Cells: TypeAlias = Sequence[Sequence[Any]]


def main(arguments: Sequence[str] | None = None) -> None:
    options = _options(arguments)
    _check_outputs(options)
    if options.run:
        _run_all(options)
    results = read_results(options.json or _saved(options.save))
    if not results:
        raise UsageError(
            f"no results in {options.save}: run the benches first, for example"
            " `python -m bench throughput`, or add --run."
        )
    options.out.parent.mkdir(parents=True, exist_ok=True)
    common.write_output(options.out, "--out", page(results), begins=_PAGE_BEGINS)
    print(f"{options.out}: {', '.join(result['bench'] for result in results)}")
    for result in results:
        if options.chart and result["bench"] == "throughput":
            chart = throughput_chart(result)
            common.write_output(options.chart, "--chart", chart, begins=_CHART_BEGINS)
            print(options.chart)


def _check_outputs(options: argparse.Namespace) -> None:
    """Refuse, before anything is run, what may not be written. Raises UsageError."""
    read = options.json or ()
    common.checked_output(options.out, "--out", _PAGE_BEGINS, read)
    if options.chart:
        common.checked_output(options.chart, "--chart", _CHART_BEGINS, read)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench report", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.html")
    parser.add_argument("--json", type=Path, nargs="+", help="results to show; default: all saved")
    parser.add_argument("--save", type=Path, default=common.RESULTS, help="where results are kept")
    parser.add_argument("--chart", type=Path, metavar="FILE.svg", help="the main chart, apart")
    parser.add_argument("--run", action="store_true", help="run the benches first")
    parser.add_argument("--limit", type=common.positive, help="with --run: rows for each bench")
    parser.add_argument("--data", type=Path, help="with --run: reference data, for quality")
    return parser.parse_args(arguments)


def _run_all(options: argparse.Namespace) -> None:
    shared = ["--save", str(options.save)]
    shared += ["--limit", str(options.limit)] if options.limit else []
    for name in SECTIONS:
        extra = ["--data", str(options.data)] if name == "quality" and options.data else []
        try:
            import_module(f"bench.{name}").main([*shared, *extra])
        except UsageError as error:
            print(f"{name} left out: {error}", file=sys.stderr)


def _saved(folder: Path) -> list[Path]:
    """List what the benches saved, but for those that the page has no section for."""
    apart = BENCHES.keys() - SECTIONS.keys()
    return [
        path
        for path in sorted(folder.glob("*.json"))
        if json.loads(path.read_text()).get("bench") not in apart
    ]


def read_results(paths: Sequence[Path]) -> list[common.Result]:
    """Read results, and bring them into the page's order."""
    found = []
    for path in paths:
        if not path.is_file():
            raise InputNotFound(f"no such file: {path}")
        result = json.loads(path.read_text())
        if result.get("bench") not in SECTIONS:
            raise UsageError(f"{path} is no result of a bench; --json takes what they saved.")
        found.append(result)
    return sorted(found, key=lambda result: list(SECTIONS).index(result["bench"]))


def page(results: Sequence[common.Result]) -> str:
    """Write the page: nothing in it points outside."""
    sections = [_section(result) for result in results]
    return (
        f"{_PAGE_BEGINS}"
        '<meta name="viewport" content="width=device-width">'
        f"<style>{_STYLE}</style><main><h1>memworker, measured</h1>{''.join(sections)}"
        "</main></html>"
    )


def _section(result: common.Result) -> str:
    title, body = SECTIONS[result["bench"]]
    return (
        f"<section><h2>{title}</h2>{body(result)}"
        f"<p class=facts>{escape(_facts(result['machine']))}</p></section>"
    )


def _facts(machine: common.Result) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    return (
        f"{machine['cpu']}, {machine['cores']} cores, {machine['system']}, Python"
        f" {machine['python']}, {versions}. Measured {machine['measured_at']}, load average then"
        f" {machine['load_average']}."
    )


def _throughput(result: common.Result) -> str:
    rows = [row for row in result["rows"] if not row.get("skipped")]
    names = list(result["ratios"])
    cells = [
        [
            row["what"],
            f"{row['texts_per_second']:,.1f}",
            f"{row['tokens_per_second']:,.0f}",
            f"{row['padding_ratio']:.1%}",
            f"{row['spread']:.0%}",
            *(_ratio(result["ratios"][name]["over"].get(row["name"])) for name in names),
        ]
        for row in rows
    ]
    heads = ["", "texts/s", "real tokens/s", "padding", "spread", *(f"{n} ÷" for n in names)]
    notes = [
        f"{name} reaches {found['ratio']:.1%} of what {result['threads']} independent sessions do"
        " together on micro-batches packed beforehand."
        for name, found in result["coordination"].items()
    ]
    notes += [
        f"{row['what']} was timed on {row['texts']:,} of the texts, evenly spaced."
        for row in rows
        if row["texts"] < result["texts"]
    ]
    notes += [
        f"Not measured: {r['what']} ({r['skipped']})." for r in result["rows"] if r.get("skipped")
    ]
    return throughput_chart(result) + _table(heads, cells) + _paragraphs(notes)


def throughput_chart(result: common.Result) -> str:
    """Draw texts a second of all contestants, fastest first."""
    rows = [row for row in result["rows"] if not row.get("skipped")]
    rows.sort(key=lambda row: -row["tokens_per_second"])
    items = [
        Bar(row["what"], row["texts_per_second"], ours=row["name"].startswith("memworker"))
        for row in rows
    ]
    return charts.bars(
        f"Texts a second, {result['threads']} threads, same texts and weights"
        f" ({result['texts']:,} texts, at most {result['max_tokens']} tokens)",
        items,
    )


def _quality(result: common.Result) -> str:
    rows = [row for row in result["rows"] if "tasks" in row]
    metrics = [task["metric"] for task in rows[0]["tasks"].values()] if rows else []
    cells = [
        [
            f"{row['model']} {row['precision']}",
            *(f"{task['value']:.4f}" for task in row["tasks"].values()),
            *(f"{row[key]:.4f}" if key in row else "" for key in ("mean_cosine", "min_cosine")),
        ]
        for row in rows
    ]
    whole = _table(["", *metrics, "mean cosine to fp32", "minimum"], cells)
    return whole + _by_conversation(rows)


def _by_conversation(rows: Sequence[common.Result]) -> str:
    """Show LoCoMo's recall of each conversation, one column a model and mode."""
    columns = {
        f"{row['model']} {row['precision']}, {key.rpartition('-')[2]}": task["by_conversation"]
        for row in rows
        for key, task in row["tasks"].items()
        if "by_conversation" in task
    }
    if not columns:
        return ""
    names = next(iter(columns.values()))
    cells = [[name, *(f"{by[name]:.3f}" for by in columns.values())] for name in names]
    return "<h3>LoCoMo recall@10 a conversation</h3>" + _table(["", *columns], cells)


def _ceiling(result: common.Result) -> str:
    what = "echo (no inference)" if result["model"] == "echo" else result["model"]
    title = f"Texts a second, {what} ({result['texts']:,} texts)"
    chart = charts.bars(
        title, [Bar(row["name"], row["texts_per_second"], ours=True) for row in result["rows"]]
    )
    cells = [
        [row["name"], f"{row['texts_per_second']:,.0f}", f"{row['parent_cpu_us_per_text']:.2f}"]
        for row in result["rows"]
    ]
    return chart + _table(["", "texts/s", "parent's CPU, µs a text"], cells)


def _ladder(result: common.Result) -> str:
    rows = [row for row in result["rows"] if "skipped" not in row]
    return charts.bars(
        f"Memories a second, {result['callers']} callers, {result['workers']} threads",
        [
            Bar(
                row["name"],
                row["operations_per_second"],
                ours=row["name"].startswith("memworker"),
                note=f"× {row['over_first']:.1f}",
            )
            for row in rows
        ],
    )


def _scaling(result: common.Result) -> str:
    rows = [row for row in result["rows"] if "skipped" not in row]
    lines = [
        Curve(row["name"], _points(row["predicted"]), marks=_points(row["measured"]))
        for row in rows
    ]
    chart = charts.curves(
        "Predicted throughput; circles were measured", lines, x_name="cores", y_name="texts/s"
    )
    checks = [
        f"{row['name']}: one parent feeds about {row['parent_feeds_workers']:,.0f} workers."
        for row in rows
    ]
    return chart + _paragraphs([*checks, f"Assumed: {result['assumes']}"])


def _points(by_cores: dict[str, float]) -> list[tuple[float, float]]:
    return [(float(cores), rate) for cores, rate in by_cores.items()]


def _memory(result: common.Result) -> str:
    """Show operations down and contestants across, for each number of stored memories."""
    parts = []
    done = [row for row in result["rows"] if "skipped" not in row]
    for stored in dict.fromkeys(row["stored"] for row in done):
        rows = {(r["operation"], r["what"]): r for r in done if r["stored"] == stored}
        names = list(dict.fromkeys(what for _, what in rows))
        cells = [
            [name, *(_rate_and_wait(rows.get((name, what))) for what in names)]
            for name in dict.fromkeys(name for name, _ in rows)
        ]
        title = f"{stored:,} stored memories; a second (p50 / p95 ms)"
        parts.append(f"<h3>{title}</h3>" + _table(["", *names], cells))
    notes = [f"{memory.said(target)}." for target in result["targets"] if target["met"] is not None]
    return "".join(parts) + _paragraphs(notes)


def _rate_and_wait(row: common.Result | None) -> str:
    if row is None:
        return ""
    return f"{row['per_second']:,.1f} ({row['p50_ms']:.1f} / {row['p95_ms']:.1f})"


def _memory_of_a_worker(result: common.Result) -> str:
    keys = ("anon_mb", "uss_mb", "session_anon_mb", "startup_seconds")
    cells = [
        [row["name"], *(f"{row[key]:.2f}" if key in row else "" for key in keys)]
        for row in result["rows"]
        if "skipped" not in row
    ]
    heads = ["", "one more worker, RssAnon MB", "USS MB", "its session alone MB", "pool ready s"]
    return _table(heads, cells)


def _ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _table(heads: Sequence[str], rows: Cells) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in heads)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f"<table><tr>{head}</tr>{body}</table>"


def _paragraphs(lines: Sequence[str]) -> str:
    return "".join(f"<p>{escape(line)}</p>" for line in lines)


SECTIONS: dict[str, tuple[str, Callable[[common.Result], str]]] = {
    "throughput": ("Throughput, side by side", _throughput),
    "ladder": ("The same memories, one step better at a time", _ladder),
    "quality": ("Quality", _quality),
    "ceiling": ("End to end", _ceiling),
    "scaling": ("More cores", _scaling),
    "memory": ("The memory layer beside Mem0", _memory),
    "memory_of_a_worker": ("One more worker", _memory_of_a_worker),
}

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1f2933; background: #f5f7f9; margin: 0 }
main { max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
section { background: white; border-radius: 8px; padding: 1rem 1.5rem; margin: 1.5rem 0 }
svg { max-width: 100%; height: auto }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums }
th, td { padding: .3rem .8rem; text-align: right; border-bottom: 1px solid #d9dee3 }
th:first-child, td:first-child { text-align: left; padding-left: 0; white-space: nowrap }
th { font-weight: 600; vertical-align: bottom }
.facts { color: #616e7c; font-size: .85rem }
"""

if __name__ == "__main__":
    sys.exit(common.run(main))
