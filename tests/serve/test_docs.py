"""What docs/SERVER.md says is there: routes, options, codes, metrics."""

from __future__ import annotations

import re
from pathlib import Path

import typer.main

from memworker.cli.app import app
from tests.serve.test_metrics import samples

ROOT = Path(__file__).parents[2]
DOCS = (ROOT / "docs/SERVER.md").read_text()


def test_every_option_that_it_names_is_one():
    command = typer.main.get_command(app).commands["serve"]
    there = {
        option
        for parameter in command.params
        for option in (*parameter.opts, *parameter.secondary_opts)
    }
    named = set(re.findall(r"(?<=[ `])--[a-z-]+", DOCS))
    assert named <= there
    assert {"--host", "--drain", "--truncate"} <= named


def test_every_route_that_it_names_answers(echo):
    routes = re.findall(r"`(GET|POST) (/[^`]*)`", DOCS)
    assert len(routes) == 21
    for method, path in routes:
        status = echo.http.request(method, path.replace("{name}", "echo")).status_code
        assert status == (400 if method == "POST" else 200), path


def test_every_metric_that_it_names_is_there_and_the_reverse(echo):
    echo.embed(model="echo")
    there = {name for name, *_ in samples(echo)}
    named = set(re.findall(r"`(memworker_\w+)`", DOCS))
    missing = {name for name in named if not {name, f"{name}_count"} & there}
    assert not missing
    told = {re.sub(r"_(bucket|count|sum|created)$", "", name) for name in there}
    told = {name for name in told if "_process_" not in name}
    assert {name.removesuffix("_total") for name in told} <= {
        name.removesuffix("_total") for name in named
    }


def test_the_python_of_the_page_runs(echo):
    (code,) = re.findall(r"```python\n(.*?)```", DOCS, re.S)
    here = code.replace("http://127.0.0.1:8000", echo.url).replace("all-MiniLM-L6-v2", "echo")
    names: dict = {}
    exec(here, names)
    assert len(names["client"].embeddings.create(model="echo", input="tea").data) == 1
    names["client"].close()


def test_every_code_that_the_source_gives_is_in_its_table():
    source = "".join(path.read_text() for path in (ROOT / "memworker/serve").glob("*.py"))
    codes = set(re.findall(r'code=(?:"(\w+)"|"\w+" if)', source)) - {""}
    assert codes and codes <= set(re.findall(r"`(\w+)`", DOCS))
