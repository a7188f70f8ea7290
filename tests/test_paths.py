"""One function says which path is used: whatever the spelling, a place is one place."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest

from memworker import AsyncMemory, EmbeddingPool, Memory, Table, errors, ingest, table_names
from memworker.ingestion.export import embed_to_file
from memworker.ingestion.runs import list_runs
from memworker.models.cache import ModelCache, cache_home
from memworker.paths import named, place, used_path
from memworker.serve.options import read_key


class Fs:
    """A path that is neither a str nor a Path."""

    def __init__(self, path):
        self._path = path

    def __fspath__(self):
        return self._path


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home folder, with the working folder elsewhere."""
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    home.mkdir()
    elsewhere.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(elsewhere)
    return home


@pytest.fixture(scope="module")
def echo():
    with EmbeddingPool("echo", workers=1) as pool:
        yield pool


KINDS = [str, Path, Fs, os.fsencode, lambda name: Fs(os.fsencode(name))]
IDS = ["str", "Path", "PathLike", "bytes", "PathLike of bytes"]


@pytest.mark.parametrize("kind", KINDS, ids=IDS)
def test_every_spelling_of_a_place_is_that_place(home, kind):
    (home / "x").mkdir()
    (Path.cwd() / "link").symlink_to(home)
    for name in ("~/x", "~/x/", "~/./x", "~/y/../x", "link/x", "link/x/../x", str(home / "x")):
        assert place(kind(name)) == home / "x", name


def test_the_folder_above_a_link_is_that_above_where_it_leads(home):
    (home / "a").mkdir()
    (Path.cwd() / "link").symlink_to(home / "a")
    assert used_path("link/../x") == home / "x"
    # What a link names last stays a link: where it leads may have another suffix.
    assert used_path("link") == Path.cwd() / "link"


def test_a_relative_path_stays_where_it_was(home, monkeypatch):
    before = used_path("x")
    monkeypatch.chdir(home)
    assert before != used_path("x") == home / "x"


def test_patterns_and_names_that_are_shown_stay_as_they_are(home):
    assert named("a/*.jsonl") == "a/*.jsonl" and named("-") == "-"
    assert named("~/*.jsonl") == f"{home}/*.jsonl"
    assert named("./~/x") == "./~/x" and used_path("./~") == Path.cwd() / "~"
    assert named(b"\xff.jsonl") == "\udcff.jsonl"


def test_a_database_whose_name_is_not_utf_8_is_refused_before_anything_is_made(home):
    for door in (
        lambda db: Memory(db, model="echo"),
        lambda db: AsyncMemory(db, model="echo"),
        lambda db: Table.open(db, "t"),
        lambda db: ingest([{"text": "a"}], db=db, table="t", model="echo"),
        table_names,
    ):
        with pytest.raises(errors.UsageError, match=r"must be UTF-8.*db\\xff"):
            door(os.fsencode(home) + b"/db\xff")
    assert os.listdir(home) == []


@pytest.mark.parametrize(
    "bad", ["", "  ", "a\0b", "s3://bucket/x", Path("s3://bucket/x"), "file:///x", 7, None, ["x"]]
)
def test_what_names_no_file_here_is_refused_by_name(bad):
    with pytest.raises(errors.UsageError, match="a database|named by") as caught:
        place(bad, "a database")
    assert "a database" in str(caught.value)


def test_a_working_folder_that_was_removed_is_said(tmp_path):
    code = (
        "import os\nfrom memworker.paths import used_path\n"
        "from memworker.errors import UsageError\n"
        "os.rmdir(os.getcwd())\n"
        "assert str(used_path('/x')) == '/x'\n"
        "try: used_path('x')\n"
        "except UsageError as error: print(error)\n"
    )
    folder = tmp_path / "gone"
    folder.mkdir()
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)
    assert "was removed" in done.stdout, done.stderr


def _memory(echo):
    with Memory(Path("~/db"), pool=echo) as memory:
        memory.add("x", user_id="u")


def _async_memory(echo):
    async def use():
        async with AsyncMemory("~/db", pool=echo) as memory:
            await memory.add("x", user_id="u")

    asyncio.run(use())


def _ingest(echo):
    ingest("~/in.jsonl", db=b"~/db", table="memories", pool=echo, rejects="~/bad.jsonl")


@pytest.mark.parametrize("door", [_memory, _async_memory, _ingest])
def test_a_database_in_the_home_folder_lies_there_whole(home, echo, door):
    (home / "in.jsonl").write_text('{"text": "x"}\n{"no": 1}\n')
    door(echo)
    assert {p.name for p in (home / "db").iterdir()} >= {"memories.lance", ".memworker"}
    assert list(Path.cwd().iterdir()) == []
    assert table_names("~/db") == ["memories"]
    assert Table.open(Fs("~/db/"), "memories").count() == 1
    assert len(list_runs("~/db")) == (door is _ingest)


def test_files_that_are_written_lie_in_the_home_folder(home, monkeypatch):
    (home / "in.jsonl").write_text('{"text": "x"}\n{"no": 1}\n')
    out = Fs("~/out.npy")
    embed_to_file("~/in.jsonl", out, model="echo", workers=1, rejects="~/bad.jsonl")
    assert {p.name for p in home.iterdir()} == {"in.jsonl", "out.npy", "bad.jsonl"}
    assert list(Path.cwd().iterdir()) == []


def test_caches_and_keys_in_the_home_folder(home, monkeypatch):
    (home / "key").write_text("k" * 32)
    assert read_key("~/key") == "k" * 32
    monkeypatch.setenv("MEMWORKER_CACHE", "~/cache")
    assert cache_home() == home / "cache"
    assert ModelCache.locate("~/models").root == home / "models"
    monkeypatch.setenv("MEMWORKER_CACHE", "s3://bucket")
    with pytest.raises(errors.ModelUnavailable, match="MEMWORKER_CACHE"):
        cache_home()


@pytest.mark.parametrize("kind", KINDS, ids=IDS)
def test_a_models_directory_is_found_by_any_spelling(home, kind):
    (home / "model").mkdir()
    # It is found, and found to hold no model: a name that is none would be told otherwise.
    with pytest.raises(errors.ModelError, match=r"home/model"):
        EmbeddingPool(kind("~/model"))


def test_the_command_line_uses_the_same(home):
    (home / "in.jsonl").write_text('{"text": "x"}\n')

    def run(*words):
        command = [sys.executable, "-m", "memworker", *words]
        return subprocess.run(command, capture_output=True, text=True, env=dict(os.environ))

    done = run("ingest", "~/in.jsonl", "--db=~/db", "--table", "t", "--model", "echo")
    assert done.returncode == 0, done.stderr
    assert run("table", "count", "--db=~/db", "--table=t").stdout.strip() == "1"
    assert run("jobs", "--db=~/db").returncode == 0
    (home / "m.jsonl").write_text('{"id": "a", "memory": "x", "user_id": "u"}\n')
    assert run("memory", "import", "~/db", "~/m.jsonl", "--model", "echo").returncode == 0
    assert run("memory", "export", "~/db", "-o", "~/out.jsonl").returncode == 0
    assert (home / "out.jsonl").is_file()
    assert list(Path.cwd().iterdir()) == []
