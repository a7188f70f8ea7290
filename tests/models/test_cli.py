"""`memworker models …` as a script sees it."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from memworker.cli.models import app
from memworker.errors import NoRows, UnknownModel, UsageError
from memworker.models import ready_model
from tests.models.tiny import Sizes, make_bert


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setenv("MEMWORKER_CACHE", str(tmp_path / "cache"))
    return lambda *arguments: CliRunner().invoke(app, list(map(str, arguments)))


def test_list(run):
    text = run("list")
    assert text.exit_code == 0 and "all-MiniLM-L6-v2" in text.stdout.splitlines()[0]
    (line,) = run("list", "--json").stdout.splitlines()
    minilm = json.loads(line)["models"][0]
    assert (minilm["dim"], minilm["license"], minilm["cached"]) == (384, "apache-2.0", False)


def test_pull_path_verify(run, tmp_path):
    folder = make_bert(tmp_path / "model")
    pulled = json.loads(run("pull", folder, "--json").stdout)
    assert run("path", folder).stdout.strip() == pulled["graph"]
    assert pulled["fingerprint"] == ready_model(folder, cache_dir=None).fingerprint
    assert "files as expected" in run("verify", folder).stdout
    graph = tmp_path / "cache/models/built" / pulled["graph"].split("/")[-2] / "model.onnx"
    graph.write_bytes(graph.read_bytes() + b"\0")
    told = run("verify", folder, "--json")
    assert told.exit_code == 1 and str(graph) in json.loads(told.stdout)["corrupt"][str(folder)]
    assert run("pull", folder).exit_code == 0
    assert run("verify", folder).exit_code == 0


def test_pull_in_another_precision(run, tmp_path):
    folder = make_bert(tmp_path / "model")
    pulled = json.loads(run("pull", folder, "--precision", "int8", "--json").stdout)
    assert pulled["precision"] == "int8"
    assert run("path", folder, "--precision", "int8").stdout.strip() == pulled["graph"]
    assert run("path", folder).stdout.strip() != pulled["graph"]


def test_quality_of_a_precision(run, tmp_path):
    folder = make_bert(tmp_path / "model")
    texts = tmp_path / "texts.txt"
    lines = [f"w{i} w{i * 7 % 59} w{i * 3 % 59}" for i in range(30)]
    texts.write_text("\n".join([*lines, lines[0]]))
    told = run("verify", folder, "--quality", texts, "--precision", "int8")
    assert told.exit_code == 0 and "on 30 different texts" in told.stdout
    measured = json.loads(run("verify", folder, "--quality", texts, "--json").stdout)
    assert measured["model"] == "model" and measured["texts"] == 30
    assert 0.999 < measured["min_cosine"] <= measured["mean_cosine"] < 1.00001
    assert 0.8 < measured["recall_at_10"] <= 1


def test_quality_needs_texts_and_another_precision(run, tmp_path):
    folder = make_bert(tmp_path / "model")
    texts = tmp_path / "texts.txt"
    texts.write_text("w1 w2\nw1 w2\n")
    assert isinstance(run("verify", folder, "--quality", texts).exception, NoRows)
    refused = run("verify", folder, "--quality", texts, "--precision", "fp32")
    assert isinstance(refused.exception, UsageError)


def test_info(run, tmp_path):
    folder = make_bert(tmp_path / "model")
    settings = {"prompts": {"query": "q: ", "sort": "s: "}, "similarity_fn_name": "dot"}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(settings))
    told = json.loads(run("info", folder, "--json").stdout)
    assert (told["query_prefix"], told["passage_prefix"]) == ("q: ", "")
    assert (told["prompts"], told["similarity"]) == (["query", "sort"], "dot")
    assert (told["pooling"], told["normalized"], told["matryoshka"]) == ("mean", True, False)
    shown = run("info", "wordllama-256").stdout
    assert "matryoshka        yes" in shown and "cached            no" in shown
    assert "query_prefix      'q: '" in run("info", folder).stdout
    assert not (tmp_path / "cache/models/files").exists()


def test_errors_are_left_to_the_command_line_itself(run):
    assert isinstance(run("path", "no-such-model").exception, UnknownModel)


def test_a_long_build_is_told_once_and_beside_the_data(tmp_path):
    folder = make_bert(tmp_path / "wide", sizes=Sizes(hidden=256, inner=1024))
    environment = os.environ | {"MEMWORKER_CACHE": str(tmp_path / "cache")}
    pull = [sys.executable, "-m", "memworker", "models", "pull", str(folder)]
    command = [*pull, "--precision", "int8", "--json"]
    first, again = (
        subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
        for _ in range(2)
    )
    assert "memworker: wide is built in int8, once: about" in first.stderr
    assert "is built" not in again.stderr
    assert json.loads(first.stdout) == json.loads(again.stdout)
