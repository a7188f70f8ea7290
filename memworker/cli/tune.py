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
        typer.Option(
            help="fp32, int8 or bf16; repeatable. Default: all that there are on this machine."
        ),
    ] = None,
    min_cosine: Annotated[
        float,
        typer.Option(help="Say what --precision auto takes with this least mean cosine to fp32."),
    ] = 0.998,
    seconds: Annotated[float, typer.Option(help="How long to try, in all.")] = 60.0,
    memory: Annotated[
        str | None, typer.Option(help="Try nothing that needs more, for example 4GB.")
    ] = None,
    text_field: options.TextField = ["text"],  # noqa: B006
    format: options.Format = None,
    as_json: options.Json = False,
) -> None:
    """Try worker counts, run sizes and precisions; keep the best for the pools to come.

    Where all precisions were tried, --precision auto goes by what was found on these texts.
    """
    from memworker import Auto
    from memworker.models import obstacles
    from memworker.pool import EmbeddingPool, choose, tune as run

    wanted = Auto(min_cosine)
    trials = run(
        list(options.texts_of(inputs, text_field, format=format, limit=_MOST_TEXTS)),
        model=model,
        precisions=precision or None,
        seconds=seconds,
        memory=memory,
    )
    absent = {tier: why for tier, why in obstacles(model).items() if why}
    auto = None if precision else choose(model, wanted, None, EmbeddingPool)
    if as_json:
        told = {"model": model, "trials": [asdict(trial) for trial in trials], "absent": absent}
        print(json_line(told | {"auto": asdict(auto) if auto else None}))
        return
    _show(trials)
    if auto is not None:
        print(auto.told())


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
