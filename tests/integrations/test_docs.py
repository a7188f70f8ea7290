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
# In the order of the page: what a snippet needs, and what it prints last.
PRINTED = [
    ("langchain_core", "the invoice is due on Friday"),
    ("langchain_core", "due on Friday"),
    ("langchain_core", "1"),
    ("langgraph", "is allergic to peanuts"),
    ("langgraph", "is allergic to peanuts"),
    ("llama_index", "is allergic to peanuts"),
    ("haystack", "384"),
    ("haystack", "due on Friday"),
    ("lancedb", "is allergic to peanuts"),
    ("mem0", "I am allergic to peanuts"),
]


def test_every_adapter_has_a_snippet():
    assert len(SNIPPETS) == len(PRINTED)
    assert all(
        re.search(rf"\b{name}|integrations.langchain", snippet)
        for snippet, (name, _) in zip(SNIPPETS, PRINTED, strict=True)
    )


@pytest.mark.parametrize("place", range(len(PRINTED)))
def test_a_snippet_runs(place, tmp_path):
    snippet, (framework, printed) = SNIPPETS[place], PRINTED[place]
    if find_spec(framework) is None:
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
    assert done.stdout.splitlines()[-1] == printed


def test_every_extra_of_the_page_exists():
    project = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    for extra in set(re.findall(r"memworker\[([\w-]+)\]", PAGE)):
        assert re.search(rf"^{extra} = \[", project, re.M), extra
