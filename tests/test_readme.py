"""What the README says can be run, can be run."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import typer

import memworker
from memworker.cli.app import app
from tests import PATIENCE_S

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
COMMAND = Path(sys.executable).with_name("memworker")


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.S)


def test_the_python_of_the_readme_runs(tmp_path):
    lines = [f'{{"id": "{n}", "text": "{t}"}}\n' for n, t in enumerate(["likes tea", "hates nuts"])]
    (tmp_path / "memories.jsonl").write_text("".join(lines))
    printed = []
    for code in blocks("python"):
        command = [sys.executable, "-c", code]
        done = subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE_S
        )
        assert done.returncode == 0, done.stderr
        printed.append(done.stdout.splitlines()[0])
    ingested, remembered = printed
    assert "hates nuts" in ingested
    assert remembered == "I am allergic to peanuts"


def test_the_verbs_and_options_of_the_readme_exist():
    documented = [line for block in blocks("bash") for line in block.splitlines()]
    commands = [line for line in documented if line.startswith("memworker ")]
    assert commands
    for line in commands:
        words = line.split()
        verb = words[1:3] if words[1] in ("models", "table", "memory") else words[1:2]
        for option in re.findall(r"--[a-z-]+", line):
            assert option in helped(*verb), line


@cache
def helped(*verb):
    """What `--help` says of a verb."""
    done = subprocess.run(
        [COMMAND, *verb, "--help"],
        env={**os.environ, "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=True,
    )
    return done.stdout


def test_what_the_command_line_does_python_does_by_the_names_of_the_readme(tmp_path):
    (section,) = re.findall(r"^\| command \| Python \|\n\|[-|]+\n((?:\|.*\n)+)", README, re.M)
    names = set(
        re.findall(r"`(\w+)[`.]", "".join(row.split("|")[2] for row in section.splitlines()))
    )
    beside = {
        "EmbeddingPool",
        "AsyncEmbeddingPool",
        "IngestPlan",
        "IngestReport",
        "SyncReport",
        "VectorSpace",
        "errors",
        "DEFAULT_MODEL",
    }
    assert names | beside == set(memworker.__all__) - {"__version__", "records", "table_names"}
    documented = {word for verb in re.findall(r"`([a-z ]+)`", section) for word in verb.split()}
    verbs = set(typer.main.get_command(app).commands)
    # What serves is a process of its own: see SERVER.md, MCP.md.
    assert verbs - documented == {"serve", "mcp"}

    texts = tmp_path / "texts.txt"
    texts.write_text("likes tea\nhates nuts\n")
    db = tmp_path / "db"
    assert memworker.ingest(texts, db=db, table="t", model="echo", workers=1).written == 2
    assert [run.outcome for run in memworker.list_runs(db)] == ["finished"]
    assert memworker.verify_table(db, "t").healthy and memworker.repair_table(db, "t").healthy
    done = memworker.embed_to_file(texts, tmp_path / "out.npy", model="echo", workers=1)
    assert done.embedded == 2 and (tmp_path / "out.npy").exists()
    assert "all-MiniLM-L6-v2" in {each.spec.name for each in memworker.list_models()}


def test_the_scripts_of_the_readme_exist():
    for name in re.findall(r"^scripts/(\w+)", "\n".join(blocks("bash")), re.M):
        assert (ROOT / "scripts" / name).stat().st_mode & 0o111


def test_the_pages_and_extras_of_the_readme_exist():
    for page in re.findall(r"\]\(((?:docs/)?\w+\.\w+)\)", README):
        assert (ROOT / page).is_file(), page
    project = (ROOT / "pyproject.toml").read_text()
    extras = re.findall(r"\.\[([\w-]+)\]", README)
    assert set(extras) >= {"serve", "mcp", "integrations"}
    for extra in extras:
        assert re.search(rf"^{extra} = \[", project, re.M), extra


def test_the_readme_leads_to_every_page():
    pages = {f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md")}
    assert pages <= set(re.findall(r"\]\((docs/\w+\.md)\)", README))
