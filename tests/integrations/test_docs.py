"""The snippets of docs/INTEGRATIONS.md run as they are printed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests import PATIENCE_S

PAGE = (Path(__file__).parents[2] / "docs" / "INTEGRATIONS.md").read_text()
SNIPPETS = re.findall(r"```python\n(.*?)```", PAGE, re.S)
PRINTED = {
    "langchain_core": "the invoice is due on Friday",
    "memworker": "1",
    "langgraph": "is allergic to peanuts",
    "llama_index": "is allergic to peanuts",
    "haystack": "384",
    "lancedb": "is allergic to peanuts",
    "mem0": "I am allergic to peanuts",
}


def first_import(snippet):
    return re.search(r"^(?:from|import) (\w+)", snippet, re.M).group(1)


def test_every_adapter_has_a_snippet():
    assert [first_import(snippet) for snippet in SNIPPETS] == list(PRINTED)


@pytest.mark.parametrize("snippet", SNIPPETS, ids=first_import)
def test_a_snippet_runs(snippet, tmp_path):
    framework = first_import(snippet)
    if find_spec({"memworker": "langchain_core"}.get(framework, framework)) is None:
        pytest.skip(f"{framework} is not installed")
    environment = {**os.environ, "MEM0_DIR": str(tmp_path / "mem0")}
    done = subprocess.run(
        [sys.executable, "-c", snippet],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == PRINTED[framework]


def test_every_extra_of_the_page_exists():
    project = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    for extra in set(re.findall(r"memworker\[([\w-]+)\]", PAGE)):
        assert re.search(rf"^{extra} = \[", project, re.M), extra
