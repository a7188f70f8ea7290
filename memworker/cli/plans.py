"""How the plan of a dry run is printed."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from memworker.cli import reports
from memworker.cli.output import json_line

if TYPE_CHECKING:
    from memworker import IngestPlan


def print_plan(plan: IngestPlan, *, as_json: bool) -> None:
    """Print what an ingest would do."""
    reports.print_out(json_line(plan.to_dict()) if as_json else "\n".join(_lines(plan)))
    for note in plan.notes:
        print(f"memworker: {note}", file=sys.stderr)


def _lines(plan: IngestPlan) -> Iterator[str]:
    files = f"{plan.files:,} file{'s' * (plan.files != 1)}"
    how = [*plan.formats, *plan.encodings, *([plan.dialect] if plan.dialect else [])]
    yield f"input    {files}, {reports.size(plan.input_bytes)}: {', '.join(how)}"
    yield f"rows     {_rows(plan)}"
    for each in plan.fields:
        use = f" → {each.use}" if each.use else ""
        kinds = " or ".join(each.kinds) or "never a value"
        yield f"field    {each.name}: {kinds}, in {each.share:.0%} of rows{use}"
    yield f"text     {plan.text!r}; id {plan.id!r}"
    if plan.tokens is not None:
        yield f"tokens   {_tokens(plan)}"
    if plan.chunks is not None:
        yield f"chunks   about {plan.chunks:,}"
    if plan.rejected:
        share = f"{plan.rejected:,} of {plan.sampled:,} ({plan.rejected / plan.sampled:.1%})"
        yield f"rejected {share} of the rows looked at, such as"
        for reject in plan.rejects:
            line = f":{reject.line}" if reject.line else ""
            yield f"         {reject.path}{line}: {reject.reason}"
    yield f"result   {_result(plan)}"
    yield "Nothing was written."


def _rows(plan: IngestPlan) -> str:
    if plan.rows is None:
        return f"not counted; {plan.sampled:,} looked at"
    if plan.rows_counted:
        return f"{plan.rows:,}, counted; {plan.sampled:,} looked at"
    return f"about {plan.rows:,}, estimated from {plan.sampled:,} that were looked at"


def _tokens(plan: IngestPlan) -> str:
    tokens = plan.tokens
    assert tokens is not None
    told = (
        f"{tokens.mean:,.0f} a text in the mean, {tokens.median:,.0f} in the median,"
        f" {tokens.p99:,.0f} at the 99th percentile"
    )
    if tokens.estimated:
        return f"{told} (reckoned by bytes)"
    return f"{told}; {tokens.truncated:.1%} of texts over the {tokens.limit:,} that the model takes"


def _result(plan: IngestPlan) -> str:
    made_with = f"{plan.workers} workers, {plan.model} {plan.precision}"
    if plan.seconds is None or plan.bytes is None:
        return f"no time and size to predict; {made_with}"
    index = f" and {_duration(plan.index_seconds)} for the index" if plan.index_bytes else ""
    size = reports.size(plan.bytes)
    return f"about {_duration(plan.seconds)}{index}, {size} on the disk; {made_with}"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
