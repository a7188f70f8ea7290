"""`memworker models`: list, pull, verify and locate models."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from memworker import DEFAULT_MODEL
from memworker.cli import options
from memworker.cli.output import json_line

if TYPE_CHECKING:
    from memworker.models import ModelListing, ReadyModel

app = typer.Typer(help="List, fetch, verify and locate models.", no_args_is_help=True)

_Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on one line.")]
_Name = Annotated[str, typer.Argument(help="A catalogue name or a directory.")]


@app.command("list")
def list_(as_json: _Json = False) -> None:
    """List the models of the catalogue."""
    from memworker.models import list_models

    listings = list_models()
    if as_json:
        typer.echo(json_line({"models": [_as_dict(listing) for listing in listings]}))
        return
    width = max(len(listing.spec.name) for listing in listings)
    for listing in listings:
        typer.echo(_line(listing, width))


@app.command()
def info(name: _Name, as_json: _Json = False) -> None:
    """Say what is known of a model: its vectors, prompts and precisions; nothing is fetched."""
    from memworker.models import describe_model, obstacles

    told = _described(listing := describe_model(name))
    why = {} if listing.unsupported else obstacles(name)
    told["not_here"] = [f"{precision}: {reason}" for precision, reason in why.items() if reason]
    if as_json:
        typer.echo(json_line(told))
        return
    for label, value in told.items():
        typer.echo(f"{label:<17} {_readable(value)}".rstrip())


@app.command()
def pull(name: _Name, precision: options.Precision = "fp32", as_json: _Json = False) -> None:
    """Fetch, verify and build a model; damaged files are replaced."""
    from memworker.models import pull_model

    if precision == "auto":
        # What is damaged is put right before anything is measured with it.
        pull_model(name)
    model = pull_model(name, precision=_tier(name, precision))
    told = f"{model.spec.name} is ready: {model.graph}"
    typer.echo(json_line(_location(model)) if as_json else told)


@app.command()
def path(name: _Name, precision: options.Precision = "fp32", as_json: _Json = False) -> None:
    """Print where a model's graph lies, without reaching for the network."""
    from memworker.models import ready_model

    if precision == "auto":
        ready_model(name, offline=True)
    model = ready_model(name, precision=_tier(name, precision), offline=True)
    typer.echo(json_line(_location(model)) if as_json else str(model.graph))


@app.command()
def verify(
    name: Annotated[
        str | None, typer.Argument(help="A model; without it, every model that was fetched.")
    ] = None,
    quality: Annotated[
        list[str] | None,
        typer.Option(help="Texts (a file or folder) on which to hold a precision against fp32."),
    ] = None,
    precision: Annotated[str, typer.Option(help="The precision to compare.")] = "int8",
    text_field: options.TextField = ["text"],  # noqa: B006
    limit: Annotated[int, typer.Option(min=2, help="Compare this many texts at most.")] = 2000,
    as_json: _Json = False,
) -> None:
    """Hash every file of a model, or of all fetched ones, afresh; or measure a precision."""
    if quality:
        texts = options.texts_of(quality, text_field, limit=limit)
        _report_quality(name or DEFAULT_MODEL, precision, texts, as_json)
        return
    from memworker.errors import ModelCorrupt
    from memworker.models import list_models, verify_model

    cached = [listing.spec.name for listing in list_models() if listing.cached]
    verified: dict[str, dict[str, str]] = {}
    corrupt: dict[str, str] = {}
    for model in [name] if name is not None else cached:
        try:
            verified[model] = {str(at): digest for at, digest in verify_model(model).items()}
        except ModelCorrupt as error:
            corrupt[model] = str(error)
    _report(verified, corrupt, as_json)
    if corrupt:
        raise typer.Exit(1)


def _tier(name: str, precision: str) -> str:
    """Give the precision that "auto" takes for a model; measured now if need be."""
    from memworker.pool import EmbeddingPool, settled

    return settled(name, precision, None, EmbeddingPool)[0]


def _report_quality(name: str, precision: str, texts: Iterator[str], as_json: bool) -> None:
    from memworker.pool import compare_precision

    agreement = compare_precision(texts, model=name, precision=precision)
    typer.echo(json_line(asdict(agreement)) if as_json else agreement.told())


def _report(verified: dict[str, dict[str, str]], corrupt: dict[str, str], as_json: bool) -> None:
    if as_json:
        typer.echo(json_line({"verified": verified, "corrupt": corrupt}))
        return
    for model, files in verified.items():
        typer.echo(f"{model}: {len(files)} files as expected" if files else f"{model}: not cached")
    for model, reason in corrupt.items():
        typer.echo(f"{model}: {reason}", err=True)
    if not verified and not corrupt:
        typer.echo("no model was fetched yet; `memworker models pull NAME` fetches one")


def _line(listing: ModelListing, width: int) -> str:
    spec = listing.spec
    precisions = ",".join(listing.precisions) or "-"
    kind = "static" if spec.static else ""
    state = "cached" if listing.cached else "not usable" if listing.unsupported else ""
    facts = f"{spec.dim:5}  {precisions:14}  {kind:6}  {spec.license:12}  {state}"
    return f"{spec.name:{width}}  {facts}".rstrip()


def _as_dict(listing: ModelListing) -> dict[str, Any]:
    spec = listing.spec
    return {
        "name": spec.name,
        "aliases": list(listing.aliases),
        "dim": spec.dim,
        "max_tokens": spec.max_tokens,
        "static": spec.static,
        "precisions": list(listing.precisions),
        "license": spec.license,
        "cached": listing.cached,
        "unsupported": listing.unsupported,
        "description": spec.description,
    }


def _described(listing: ModelListing) -> dict[str, Any]:
    spec = listing.spec
    told = _as_dict(listing)
    told |= {
        "position_limit": spec.position_limit,
        "pooling": str(spec.pooling),
        "dense": [f"{d.inputs} to {d.outputs}, {d.activation}" for d in spec.dense],
        "normalized": spec.normalize,
        "matryoshka": spec.matryoshka,
        "query_prefix": spec.query_prefix,
        "passage_prefix": spec.passage_prefix,
        "prompts": list(spec.prompts),
        "lowercase": spec.lowercase,
        "similarity": spec.similarity,
    }
    return told


def _readable(value: Any) -> str:
    match value:
        case bool():
            return "yes" if value else "no"
        case list():
            return "; ".join(value) or "none"
        case str():
            return repr(value) if value != value.strip() else value or "none"
    return str(value)


def _location(model: ReadyModel) -> dict[str, Any]:
    return {
        "name": model.spec.name,
        "dim": model.spec.dim,
        "precision": model.precision,
        "max_tokens": model.max_tokens,
        "graph": str(model.graph),
        "tokenizer": str(model.tokenizer),
        "fingerprint": model.fingerprint,
    }
