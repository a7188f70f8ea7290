"""`memworker doctor`: what this machine has and allows, how fast it is, what is wrong."""

from __future__ import annotations

from typing import Annotated

import typer

from memworker import DEFAULT_MODEL
from memworker.cli import options
from memworker.cli.output import json_line, printable


def doctor(
    db: Annotated[
        str,
        typer.Option(
            help="Where a table would lie: its disk is looked at; for a bucket, that of the folder"
            " in which this machine keeps its journal."
        ),
    ] = ".",
    model: options.Model = DEFAULT_MODEL,
    precision: Annotated[
        str, typer.Option(help="fp32, int8 or bf16: what the pool is tried in.")
    ] = "fp32",
    as_json: options.Json = False,
) -> None:
    """Look at this machine: processor, limits, disk, cache, speed, and what to do. 3 seconds."""
    from memworker.doctor import examine_machine

    found = []
    for finding in examine_machine(db, model, precision):
        found.append(finding)
        if not as_json:
            print(f"{finding.topic:16} {printable(finding.told)}")
            for advice in finding.advice:
                print(f"{'':14}! {printable(advice)}")
    if as_json:
        told = {each.topic.replace(" ", "_"): dict(each.facts) for each in found}
        wrong = [{"topic": each.topic, "advice": line} for each in found for line in each.advice]
        print(json_line(told | {"advice": wrong}))
