"""Files that are written where somebody names them: nothing of theirs is replaced, at any door."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from memworker.errors import StoreUnwritable, UsageError
from memworker.ingestion.export import embed_to_file
from memworker.ingestion.job import ingest
from memworker.memory import Memory
from memworker.pool.echo import EchoLoader

ROWS = [{"id": str(i), "text": f"text {i}"} for i in range(5)]
BAD = "".join(json.dumps(row) + "\n" for row in ROWS) + "not json\n"
ECHO = {"model": EchoLoader(dim=8), "workers": 1}


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("in").mkdir()
    Path("in/a.jsonl").write_text(BAD)
    return tmp_path


def rejects_of_ingest(inputs, out):
    return ingest(inputs, db="db", table="t", rejects=out, **ECHO)


def rejects_of_embed(inputs, out):
    return embed_to_file(inputs, "vectors.npy", rejects=out, **ECHO)


def vectors_of_embed(inputs, out):
    return embed_to_file(inputs, out, **ECHO)


DOORS = {
    "ingest --rejects": (rejects_of_ingest, "out.jsonl"),
    "embed --rejects": (rejects_of_embed, "out.jsonl"),
    "embed --out npy": (vectors_of_embed, "out.npy"),
    "embed --out parquet": (vectors_of_embed, "out.parquet"),
}


@pytest.fixture(params=DOORS)
def door(request):
    return DOORS[request.param]


def linked(path: Path, name: str, how: str) -> Path:
    """Give `path` another name, which ends as an output of the door has to."""
    other = path.parent.parent / name
    if how == "itself":
        other = path.with_name(f"itself-{name}")
        path.rename(other)
        path.write_text(BAD)
        return other
    {"hard link": os.link, "symbolic link": os.symlink}[how](path, other)
    return other


@pytest.mark.parametrize("how", ["itself", "hard link", "symbolic link"])
def test_an_output_that_is_an_input_is_refused_and_both_stay(here, door, how):
    run, name = door
    given = Path("in/a.jsonl").resolve()
    out = linked(given, name, how)
    inputs = [out] if how == "itself" else [given]
    with pytest.raises(UsageError):
        ingest_or_embed(run, inputs, out)
    assert out.read_text() == given.read_text() == BAD


def ingest_or_embed(run, inputs, out):
    try:
        return run(inputs, out)
    except UsageError as error:
        # The suffix of vectors names no format: then it is refused as an input.
        assert "input as well" in str(error) or "did not make it" in str(error), error
        raise


@pytest.mark.parametrize("spelled", ["in/./a.jsonl", "in/../in/a.jsonl", "/proc/self/fd/{}"])
@pytest.mark.parametrize("inputs", [["in/a.jsonl"], ["in"], ["in/*.jsonl"], ["in/**"]])
def test_an_input_under_any_spelling_is_not_overwritten(here, spelled, inputs):
    with open("in/a.jsonl") as file:
        out = spelled.format(file.fileno())
        with pytest.raises(UsageError, match="did not make it"):
            rejects_of_ingest(inputs, out)
    assert Path("in/a.jsonl").read_text() == BAD and not Path("db").exists()


def test_even_a_list_of_ours_is_not_overwritten_while_it_is_read(here):
    rejects_of_ingest(["in"], "list.jsonl")
    listed = Path("list.jsonl").read_text()
    os.link("list.jsonl", "other.jsonl")
    for name in ("list.jsonl", "./other.jsonl"):
        with pytest.raises(UsageError, match="is an input as well"):
            ingest([name], db="db", table="u", text_field="reason", rejects="list.jsonl", **ECHO)
    assert Path("list.jsonl").read_text() == listed


def test_standard_input_is_an_input_too(here):
    rejects_of_ingest(["in"], "list.jsonl")
    listed = Path("list.jsonl").read_text()
    command = "from memworker.ingestion.job import ingest; ingest('-', db='db', table='t',"
    command += " text_field='reason', model='echo', rejects='list.jsonl')"
    with open("list.jsonl") as stdin:
        done = subprocess.run([sys.executable, "-c", command], stdin=stdin, capture_output=True)
    assert b"is an input as well (standard input)" in done.stderr
    assert Path("list.jsonl").read_text() == listed


@pytest.mark.parametrize("kind", ["file", "folder", "pipe", "socket", "device", "link to a file"])
def test_what_is_there_and_not_ours_is_refused_before_anything_is_read(here, door, kind):
    run, name = door
    out, read = Path(name), Path("notes.txt")
    read.write_text("precious")
    bound = socket.socket(socket.AF_UNIX)
    make = {
        "file": lambda: out.write_text("precious"),
        "folder": out.mkdir,
        "pipe": lambda: os.mkfifo(out),
        "socket": lambda: bound.bind(name),
        "device": lambda: out.symlink_to("/dev/null"),
        "link to a file": lambda: out.symlink_to(read),
    }
    with bound:
        make[kind]()
        before = out.lstat()
        # An input that may not even be looked at: it is never opened.
        os.mkfifo("never-written")
        with pytest.raises(UsageError, match="did not make it|regular file"):
            run(["never-written"], out)
    assert out.lstat() == before and read.read_text() == "precious"
    assert not Path("db").exists() and not Path("vectors.npy").exists()


def test_an_output_of_ours_and_an_empty_one_are_replaced(here, door):
    run, name = door
    Path(name).touch()
    run(["in"], name)
    first = Path(name).read_bytes()
    run(["in"], name)
    assert Path(name).read_bytes() == first and first


def test_a_link_is_followed_and_stays(here, door):
    run, name = door
    Path("elsewhere").mkdir()
    Path(name).symlink_to(f"elsewhere/{name}")
    for _ in range(2):
        run(["in"], name)
    assert Path(name).is_symlink() and Path("elsewhere", name).stat().st_size > 0


def test_vectors_that_other_tools_wrote_or_changed_are_not_ours(here):
    vectors_of_embed(["in"], "v.npy")
    np.save("v.npy", np.load("v.npy"))
    vectors_of_embed(["in"], "v.parquet")
    pq.write_table(pq.read_table("v.parquet").slice(1), "v.parquet")
    for name in ("v.npy", "v.parquet"):
        with pytest.raises(UsageError, match="did not make it"):
            vectors_of_embed(["in"], name)
        assert embed_to_file(["in"], name, overwrite=True, **ECHO).embedded == 5
    assert np.load("v.npy").shape == (6, 8)


def test_overwriting_does_not_reach_an_input(here):
    with pytest.raises(UsageError, match="is an input as well"):
        embed_to_file(["in"], "v.npy", rejects="in/a.jsonl", overwrite=True, **ECHO)
    assert Path("in/a.jsonl").read_text() == BAD


def test_outputs_in_the_input_folder_are_not_read(here):
    for _ in range(2):
        assert rejects_of_ingest(["in"], "in/list.jsonl").read == 6
        assert rejects_of_ingest(["in/**"], "in/list.jsonl").read == 6
    for _ in range(2):
        assert vectors_of_embed(["in"], "in/v.parquet").read == 6


def test_two_outputs_are_two_files(here):
    with pytest.raises(UsageError, match="are the same file"):
        embed_to_file(["in"], "v.npy", rejects="./v.npy", **ECHO)


def test_no_file_within_a_table_nor_where_none_can_be(here):
    rejects_of_ingest(["in"], "list.jsonl")
    with pytest.raises(UsageError, match="within the table"):
        rejects_of_ingest(["in"], "db/t.lance/list.jsonl")
    with pytest.raises(StoreUnwritable, match="is no folder"):
        rejects_of_ingest(["in"], "in/a.jsonl/list.jsonl")
    with pytest.raises(UsageError, match=r"give \./-"):
        rejects_of_ingest(["in"], "-")
    with pytest.raises(UsageError, match="folder's name"):
        rejects_of_ingest(["in"], "new/")
    with pytest.raises(UsageError, match="what memworker keeps of a table"):
        rejects_of_ingest(["in"], "db/.memworker/t/new.jsonl")


def test_a_list_with_a_line_of_somebody_elses_is_not_ours(here):
    rejects_of_ingest(["in"], "list.jsonl")
    with open("list.jsonl", "a") as file:
        file.write("mended by hand\n")
    with pytest.raises(UsageError, match="did not make it"):
        rejects_of_ingest(["in"], "list.jsonl")


def test_a_run_lists_its_own_inputs_and_keeps_what_is_listed_of_others(here):
    Path("b.jsonl").write_text('{"id": "b", "text": "b"}\n')
    first = ingest(["in"], db="db", table="t", **ECHO)
    listed = Path(first.rejects).read_bytes()
    clean = ingest(["b.jsonl"], db="db", table="t", **ECHO)
    assert clean.rejects is None and Path(first.rejects).read_bytes() == listed
    Path("b.jsonl").write_text("also bad\n")
    both = ingest(["b.jsonl"], db="db", table="t", **ECHO)
    assert both.rejected == 1 and "1 rows of other inputs" in both.notes[-1]
    paths = [json.loads(line)["path"] for line in Path(first.rejects).read_bytes().splitlines()]
    assert paths == ["in/a.jsonl", "b.jsonl"]
    Path("in/a.jsonl").write_text('{"id": "1", "text": "text 1"}\n')
    ingest(["in"], db="db", table="t", **ECHO)
    assert b"in/a.jsonl" not in Path(first.rejects).read_bytes()
    Path("b.jsonl").write_text('{"id": "b", "text": "b"}\n')
    ingest(["b.jsonl"], db="db", table="t", **ECHO)
    assert not Path(first.rejects).exists()


def memworker(*arguments):
    command = [Path(sys.executable).with_name("memworker"), *arguments]
    return subprocess.run(command, capture_output=True, text=True)


def test_an_export_of_memories_replaces_exports_alone(here):
    with Memory("db", model="echo", workers=1) as memory:
        memory.add("tea", user_id="u")
    export = ("memory", "export", "db", "-o")
    for _ in range(2):
        assert memworker(*export, "m.jsonl").returncode == 0
    assert len(Path("m.jsonl").read_text().splitlines()) == 1
    for name in ("in/a.jsonl", "/dev/stdout", "in"):
        done = memworker(*export, name)
        assert done.returncode == 2 and "memworker: --output" in done.stderr
    assert Path("in/a.jsonl").read_text() == BAD
    assert memworker(*export, "in/a.jsonl", "--overwrite").returncode == 0
    with open("m.jsonl", "a") as file:
        file.write('{"id": "mine", "memory": "by hand", "metadata": null}\n')
    assert memworker(*export, "m.jsonl").returncode == 2
