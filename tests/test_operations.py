"""docs/OPERATIONS.md, done: a copy of a database is one, and the site has every page."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "OPERATIONS.md").read_text()
COMMAND = str(Path(sys.executable).with_name("memworker"))


def shell(line, folder):
    words = re.sub(r"\s+#.*", "", line).replace("memworker ", f"{COMMAND} ", 1)
    return subprocess.run(
        words, shell=True, cwd=folder, capture_output=True, text=True, check=True, timeout=240
    ).stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("operations")
    sample = ROOT / "memworker/data/memories.jsonl.gz"
    ingest = f"memworker ingest {sample} --db db --table memories --model echo --workers 1 --quiet"
    shell(ingest, folder)
    return folder


def test_a_copy_is_a_database_and_comes_back(folder):
    (copy,) = re.findall(r"^cp -a .*$", PAGE, re.M)
    (verify,) = re.findall(r"^memworker table verify --db db\.copy .*$", PAGE, re.M)
    shell(copy, folder)
    assert "is healthy" in shell(verify, folder)
    shutil.rmtree(folder / "db")
    (folder / "db.copy").rename(folder / "db")
    count = shell("memworker table count --db db --table memories", folder)
    assert int(count.replace(",", "").split()[0]) == 4000


def test_an_export_holds_all_rows(folder):
    (export,) = re.findall(r"^memworker export memories .*$", PAGE, re.M)
    shell(export, folder)
    table = pq.read_table(folder / "memories.parquet")
    assert table.num_rows == 4000 and "vector" in table.column_names


def test_the_site_has_every_page():
    site = (ROOT / "mkdocs.yml").read_text()
    pages = {path.name for path in (ROOT / "docs").glob("*.md")}
    pages |= {"SECURITY.md", "CHANGELOG.md", "CONTRIBUTING.md", "index.md"}
    assert set(re.findall(r": (\w+\.md)$", site, re.M)) == pages


def test_the_python_page_has_every_public_name():
    import memworker

    told = set(re.findall(r"^::: memworker\.(\w+)$", (ROOT / "docs/API.md").read_text(), re.M))
    beside = {"DEFAULT_MODEL", "__version__"}
    assert told == set(memworker.__all__) - beside
