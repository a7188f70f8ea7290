"""Every block of every page is true: run where it can be, and parsed by what would run it."""

from __future__ import annotations

import ast
import importlib
import json
import re
import shutil
import tomllib

import pytest
import typer.main
import yaml
from typer.testing import CliRunner

from memworker.cli.app import app
from tests.pages import BLOCKS, PAGES, ROOT

COMMAND = typer.main.get_command(app)
GROUPS = {name for name, command in COMMAND.commands.items() if hasattr(command, "commands")}
# Which test runs what a page has to run: the others are run here.
RUN_BY = {
    "README.md": "tests/test_readme.py",
    "docs/INTEGRATIONS.md": "tests/integrations/test_docs.py",
    "docs/MEMORY.md": "tests/memory/test_docs.py",
    "docs/SERVER.md": "tests/serve/test_docs.py",
}
HERE = ("docs/INGEST.md", "docs/OPERATIONS.md")
# These go on until they are stopped; tests/serve and tests/integrations run them in many ways.
SERVING = ("serve", "mcp")
# Of these the file is there; running them is a developer's day.
TOOLS = re.compile(r"scripts/|python|\.venv/bin/|pip$|export$|cp$|printf$")
RUNNABLE = [block for block in BLOCKS if block.language in ("bash", "sh", "python")]
COMMANDS = [
    (block, words) for block in RUNNABLE if block.language != "python" for words in block.commands()
]


def test_every_block_says_what_it_is_in():
    known = {"python", "bash", "sh", "json", "yaml", "toml", "text", ""}
    for block in BLOCKS:
        assert block.language in known, block
        # A drawing, and no command that nobody tries.
        assert block.language or not re.search(r"^(memworker|pip|\$) ", block.text, re.M), block


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_a_block_can_be_read_by_what_reads_it(block):
    if block.language == "python":
        ast.parse(block.text)
    elif block.language == "json":
        json.loads(block.text)
    elif block.language == "yaml":
        assert yaml.safe_load(block.text) is not None
    elif block.language == "toml":
        tomllib.loads(block.text)


def test_what_there_is_to_run_is_run_by_a_test_or_marked():
    for block in RUNNABLE:
        run = block.page in RUN_BY or block.page in HERE or _need_not_run(block)
        assert run or block.mark, f"nothing runs {block}: name its test, or mark it"
    for page, test in RUN_BY.items():
        assert page.split("/")[-1] in (ROOT / test).read_text(), f"{test} does not read {page}"


def _need_not_run(block):
    if block.language == "python":
        return False
    return all(TOOLS.match(words[0]) or words[1] in SERVING for words in block.commands())


def test_what_an_mcp_client_is_told_to_start_is_a_command():
    (told,) = (json.loads(block.text) for block in BLOCKS if block.language == "json")
    for server in told["mcpServers"].values():
        assert server["command"] == "memworker"
        _parsed(server["args"])


@pytest.mark.parametrize(("block", "words"), COMMANDS, ids=lambda value: str(value)[:60])
def test_a_command_is_one_with_options_that_there_are(block, words):
    for part in _piped(words):
        if part[0] in GROUPS:
            # `models list | pull NAME` tells which there are.
            assert part[1] in COMMAND.commands[part[0]].commands, part
        elif part[0] == "memworker":
            _parsed(part[1:])
        elif part[0].startswith("scripts/"):
            assert (ROOT / part[0]).exists(), part[0]
        elif part[0].startswith("python") and part[1] == "-m" and part[2] == "bench":
            assert (ROOT / "bench" / f"{part[3]}.py").exists(), part
        else:
            assert TOOLS.match(part[0]), f"what is {part[0]!r} in {block}?"


def _piped(words):
    """Part a line at its pipes; where they stand between verbs of a group, name it in each."""
    parts = [[]]
    for word in words:
        if word == "|":
            parts.append([])
        else:
            parts[-1].append(word)
    first = parts[0]
    if len(parts) > 1 and first[0] == "memworker" and first[1] in GROUPS:
        return [first[1:], *([first[1], *part] for part in parts[1:])]
    return parts


def _parsed(words):
    """Let the command line read it, without doing it; `a | b` stands for both."""
    command, context = COMMAND, None
    while hasattr(command, "commands"):
        command, words = command.commands[words[0]], words[1:]
    options = [word.split("=")[0] for word in words if word.startswith("--")]
    there = {name for parameter in command.params for name in parameter.opts} | {"--help"}
    assert set(options) <= there, (command.name, set(options) - there)
    with command.make_context(command.name, list(words), parent=context):
        pass


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language == "python"], ids=str)
def test_names_of_ours_are_where_the_block_imports_them_from(block):
    for node in ast.walk(ast.parse(block.text)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("memworker"):
            try:
                module = importlib.import_module(node.module)
            except ImportError as error:
                assert not str(error.name).startswith("memworker"), (block, error)
                continue  # the framework is not here
            for alias in node.names:
                assert hasattr(module, alias.name), (block, alias.name)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_verbs_and_options_that_a_page_speaks_of_are_there(page):
    every = {
        o
        for command in _leaves(COMMAND)
        for parameter in command.params
        for o in (*parameter.opts, *parameter.secondary_opts)
    }
    prose = re.sub(r"```.*?```", "", page.read_text(), flags=re.S)
    for code in re.findall(r"`([^`\n]+)`", prose):
        words = code.split()
        if words[0] == "memworker" and len(words) > 1 and re.fullmatch(r"[a-z]+", words[1]):
            assert words[1] in COMMAND.commands, code
            inner = COMMAND.commands[words[1]]
            if hasattr(inner, "commands") and len(words) > 2 and re.fullmatch(r"[a-z]+", words[2]):
                assert words[2] in inner.commands, code
            assert set(re.findall(r"(?<!\S)--[a-z-]+", code)) <= every | {"--help"}, code


def _leaves(command):
    if not hasattr(command, "commands"):
        return [command]
    return [leaf for inner in command.commands.values() for leaf in _leaves(inner)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_of_a_page_lead_somewhere(page):
    prose = re.sub(r"```.*?```", "", page.read_text(), flags=re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", prose):
        if re.match(r"https?://", target):
            continue
        path, _, anchor = target.partition("#")
        there = page.parent / path if path else page
        assert there.exists(), f"{page.name} leads to {target}"
        if anchor and there.suffix == ".md":
            assert anchor in _anchors(there), f"{page.name} leads to {target}"


def _anchors(page):
    heads = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", page.read_text(), flags=re.S), re.M)
    plain = [
        re.sub(r"[^\w\- ]", "", re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", head).lower())
        for head in heads
    ]
    return {head.strip().replace(" ", "-") for head in plain}


INPUTS = {
    "tickets.jsonl": '{"number": 7, "title": "Refund", "body": "A refund was refused.",'
    ' "state": "open", "project": {"key": "SH"}}\n',
    "old.csv": "1;Der Fl\u00fcgel ist gro\u00df\n2;Tee\n",
    "articles.jsonl": '{"id": "article-7", "text": "%s"}\n'
    % ("Owls hunt at night. They hear well. " * 60),
    "notes/a.md": "# Tea\n\nGreen tea keeps me calm.\n",
}


@pytest.fixture
def desk(tmp_path, monkeypatch):
    """A folder with what the pages' commands read, under their names."""
    for name, text in INPUTS.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(text.encode("latin-1"))
    import sqlite3

    with sqlite3.connect(tmp_path / "notes.db") as notes:
        notes.execute("CREATE TABLE notes (id INTEGER, body TEXT, author TEXT)")
        notes.execute("INSERT INTO notes VALUES (1, 'likes tea', 'ann')")
    notes.close()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def do(words):
    """Run a command in this process, with the encoder that needs no model."""
    verb = COMMAND.commands[words[1]]
    takes = (
        {o for parameter in verb.params for o in parameter.opts}
        if not hasattr(verb, "commands")
        else set()
    )
    with_echo = ["--model", "echo", "--workers", "1"] if {"--model", "--workers"} <= takes else []
    done = CliRunner().invoke(app, [*words[1:], *with_echo])
    assert done.exit_code == 0, (words, done.output, done.exception)
    return done.output


def test_the_commands_and_the_python_of_ingest_run(desk):
    said = {}
    for block in (b for b in RUNNABLE if b.page == "docs/INGEST.md"):
        if block.language == "python":
            echo = {
                "Pool()": 'Pool("echo", workers=1)',
                'jsonl",': 'jsonl", model="echo", workers=1,',
            }
            code = block.text
            for model, instead in echo.items():
                assert model in code
                code = code.replace(model, instead)
            exec(compile(code, str(block), "exec"), {})
            continue
        for words in block.commands():
            # Others go on until they are stopped.
            if "--watch" not in words:
                said[" ".join(words)] = do(words)
    told = dict(said)
    assert any("refund was refused" in line for line in told.values())
    assert (desk / "tickets.parquet").exists()
    assert json.loads(do("memworker jobs --db db --json".split()))


def test_the_commands_of_operations_run(desk):
    do("memworker ingest notes --db db --table memories".split())
    for block in (b for b in RUNNABLE if b.page == "docs/OPERATIONS.md" and b.mark is None):
        for words in block.commands():
            if words[0] == "cp":
                shutil.copytree(words[2], words[3])
            elif words[1] != "doctor":  # which takes its seconds, and has tests of its own
                do(words)
    assert (desk / "memories.html").exists() and (desk / "memories.parquet").exists()
