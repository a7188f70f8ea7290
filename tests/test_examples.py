"""The examples run as they stand, and give the answers that they are there to show."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec

import pytest

from tests import PATIENCE_S
from tests.pages import ROOT

EXAMPLES = ROOT / "examples"


def run(name, folder, *arguments):
    environment = {**os.environ, "MEM0_DIR": str(folder / "mem0")}
    done = subprocess.run(
        [sys.executable, EXAMPLES / name, *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def needs(package):
    if find_spec(package) is None:
        pytest.skip(f"{package} is not installed")


def test_a_folder_of_notes_is_searched(tmp_path):
    told = run("search_notes.py", tmp_path)
    assert "4 notes added" in told
    bread, train = told.split("when does the train leave?")
    assert "bread.md" in bread and "travel.html" in train
    again = run("search_notes.py", tmp_path, str(EXAMPLES / "notes"), "what about my brakes?")
    assert "0 notes added, 0 updated, 0 removed" in again and "bicycle.md" in again


def test_a_chat_agent_remembers_what_its_own_user_said(tmp_path):
    snack, visit = run("chat_agent.py", tmp_path).strip().split("\n\n")
    assert "allergic to peanuts" in snack and "Oslo" in visit and "love peanut" not in snack


def test_mem0_works_on_memworker(tmp_path):
    needs("mem0")
    told = run("mem0_agent.py", tmp_path)
    assert "allergic to peanuts" in told.splitlines()[0] and "sell" not in told


def test_questions_are_answered_out_of_documents(tmp_path):
    needs("langchain_core")
    told = run("langchain_rag.py", tmp_path)
    assert "4.5 bar" in told and "(bicycle.md)" in told and told.count("(") == 1, told


@pytest.mark.long  # jobs on Ray have tests of their own, which share a cluster
def test_a_cluster_stores_each_row_once(tmp_path):
    needs("ray")
    assert "200 written, 0 known before\nhealthy: True" in run("cluster_ingest.py", tmp_path)
    assert "0 written, 200 known before\nhealthy: True" in run("cluster_ingest.py", tmp_path)


def test_the_notebook_runs_and_draws_its_pictures(tmp_path, monkeypatch, capsys):
    needs("matplotlib")
    import matplotlib
    from matplotlib import pyplot

    notebook = json.loads((EXAMPLES / "memories.ipynb").read_text())
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert not any(cell["outputs"] for cell in cells), "clear its outputs: they grow old"
    matplotlib.use("Agg")
    monkeypatch.chdir(tmp_path)
    drawn = []
    monkeypatch.setattr(pyplot, "show", lambda: drawn.append(pyplot.gcf().axes))
    code = "\n\n".join("".join(cell["source"]) for cell in cells)
    # The model is not what it shows.
    exec(compile(code.replace("all-MiniLM-L6-v2", "echo"), "memories.ipynb", "exec"), {})
    assert [len(axes) for axes in drawn] == [1, 1, 1]
    assert "800 in the table" in capsys.readouterr().out
    pyplot.close("all")


def test_every_example_is_on_its_page_and_tested():
    there = {path.name for path in EXAMPLES.iterdir() if path.suffix in (".py", ".ipynb")}
    page, tests = (
        (EXAMPLES / "README.md").read_text(),
        (ROOT / "tests/test_examples.py").read_text(),
    )
    assert {name for name in there if f"({name})" in page and f'"{name}"' in tests} == there
