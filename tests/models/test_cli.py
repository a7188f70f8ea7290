"""`memworker models …` as a script sees it."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from memworker.cli.models import app
from memworker.errors import UnknownModel
from memworker.models import ready_model
from tests.models.tiny import make_bert


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


def test_errors_are_left_to_the_command_line_itself(run):
    assert isinstance(run("path", "no-such-model").exception, UnknownModel)
