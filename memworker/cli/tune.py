"""`memworker tune`: the best setting for a model on this machine, found on the user's own texts."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from memworker import DEFAULT_MODEL
from memworker.cli import options
from memworker.cli.output import json_line, print_grid

if TYPE_CHECKING:
    from memworker.pool import Trial

_MOST_TEXTS = 4096


def tune(
    inputs: options.Inputs,
    model: options.Model = DEFAULT_MODEL,
    precision: Annotated[
        list[str] | None,
        typer.Option(help="fp32, int8 or bf16; repeatable. Default: fp32 and int8."),
    ] = None,
    seconds: Annotated[float, typer.Option(help="How long to try, in all.")] = 60.0,
    memory: Annotated[
        str | None, typer.Option(help="Try nothing that needs more, for example 4GB.")
    ] = None,
    text_field: options.TextField = "text",
    format: options.Format = None,
    as_json: options.Json = False,
) -> None:
    """Try worker counts, run sizes and precisions; keep the best for the pools to come."""
    from memworker.pool import tune as run

    trials = run(
        list(options.texts_of(inputs, text_field, format=format, limit=_MOST_TEXTS)),
        model=model,
        precisions=precision or ("fp32", "int8"),
        seconds=seconds,
        memory=memory,
    )
    if as_json:
        print(json_line({"model": model, "trials": [asdict(trial) for trial in trials]}))
    else:
        _show(trials)


def _show(trials: list[Trial]) -> None:
    names = ("precision", "workers", "run tokens", "tokens/s", "texts/s", "memory", "")
    print_grid(dict.fromkeys(names, {"justify": "right"}), map(_row, trials))


def _row(trial: Trial) -> tuple[str, ...]:
    return (
        trial.precision,
        str(trial.workers),
        str(trial.batch_tokens),
        f"{trial.tokens_per_s:,.0f}",
        f"{trial.texts_per_s:,.0f}",
        f"{trial.memory_bytes / 2**20:,.0f} MiB",
        "kept" if trial.kept else "",
    )
