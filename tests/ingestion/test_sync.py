"""Folders kept in step with a table: real folders, an echo pool, real kills."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from memworker import EmbeddingPool, Table, ingest, sync_folder
from memworker.errors import InputError, InputNotFound, StoreUnwritable, TableLocked, UsageError
from memworker.ingestion.sync import catalogue, planning
from memworker.store import hold_job, state_dir
from tests import PATIENCE_S


@pytest.fixture(scope="module")
def pool():
    with EmbeddingPool("echo", workers=1) as pool:
        yield pool


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write("notes/a.md", "---\ntitle: A\ntags: [x, y]\n---\n# Heading\n\nalpha")
    write("notes/sub/b c.txt", "beta")
    write("notes/page.html", "<title>Page</title><body><p>gamma</p><script>no</script></body>")
    return tmp_path


@pytest.fixture
def sync(here, pool):
    def run(folder="notes", **options):
        return sync_folder(folder, db="db", table="t", pool=pool, **options)

    return run


def write(path, text, mode="w"):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_bytes(text if isinstance(text, bytes) else text.encode())


def rows(**where):
    found = Table.open("db", "t").rows(where or None, columns=["id", "text", "metadata"])
    return {
        row["id"]: (row["text"], json.loads(row["metadata"] or "{}")) for row in found.to_pylist()
    }


def texts():
    return {row_id: text for row_id, (text, _) in rows().items()}


def figures(report):
    names = ("added", "updated", "moved", "unchanged", "removed", "would_remove")
    return {name: getattr(report, name) for name in names if getattr(report, name)}


def test_files_are_documents_with_their_paths_as_ids(sync, here):
    report = sync()
    assert figures(report) == {"added": 3} and report.in_step
    text, metadata = rows()["a.md"]
    assert text == "# Heading\n\nalpha"
    assert metadata["title"] == "A" and metadata["tags"] == ["x", "y"]
    assert metadata["path"] == "a.md" and metadata["size"] == os.path.getsize("notes/a.md")
    assert metadata["modified"].endswith("Z") and metadata["folder"] == str(here / "notes")
    assert texts()["sub/b c.txt"] == "beta"
    assert rows()["page.html"][0] == "gamma" and rows()["page.html"][1]["title"] == "Page"


def test_the_second_run_does_nothing_and_the_third_what_changed(sync):
    sync()
    version = Table.open("db", "t").version
    assert figures(sync()) == {"unchanged": 3} and Table.open("db", "t").version == version
    write("notes/a.md", "alpha, edited")
    write("notes/new.rst", "Title\n=====\n\ndelta")
    os.unlink("notes/page.html")
    report = sync()
    assert figures(report) == {"added": 1, "updated": 1, "unchanged": 1, "would_remove": 1}
    assert not report.in_step and "page.html" in texts()
    assert texts()["a.md"] == "alpha, edited" and rows()["new.rst"][1]["title"] == "Title"
    assert figures(sync(delete=True)) == {"unchanged": 3, "removed": 1}
    assert set(texts()) == {"a.md", "sub/b c.txt", "new.rst"}
    assert figures(sync(delete=True)) == {"unchanged": 3}


def test_what_an_update_replaces_keeps_when_it_was_made(sync):
    sync()
    before = Table.open("db", "t").rows({"id": "a.md"}, columns=["created_at", "updated_at"])
    write("notes/a.md", "again")
    sync()
    after = Table.open("db", "t").rows({"id": "a.md"}, columns=["created_at", "updated_at"])
    assert after["created_at"] == before["created_at"]
    assert after["updated_at"][0].as_py() > before["updated_at"][0].as_py()


def test_a_moved_file_keeps_its_vector(sync):
    sync()
    os.makedirs("notes/deep")
    os.rename("notes/a.md", "notes/deep/z.md")
    shutil.copy("notes/page.html", "notes/copy.html")
    report = sync(delete=True)
    assert figures(report) == {"added": 1, "moved": 1, "unchanged": 2}
    assert (report.embedding.embedded, report.embedding.reused) == (0, 2)
    assert texts()["deep/z.md"] == "# Heading\n\nalpha" and "a.md" not in texts()
    vectors = Table.open("db", "t").rows(columns=["id", "vector"]).to_pylist()
    by_id = {row["id"]: row["vector"] for row in vectors}
    assert by_id["copy.html"] == by_id["page.html"]


def test_a_stamp_is_believed_when_the_file_had_rested_and_not_before(sync, monkeypatch):
    read = []
    whole = planning.read_whole
    monkeypatch.setattr(planning, "read_whole", lambda path: read.append(path) or whole(path))
    sync()
    sync()
    assert len(read) == 6  # all were written a moment ago
    monkeypatch.setattr(catalogue, "_REST_NS", 0)
    sync()
    read.clear()
    assert figures(sync()) == {"unchanged": 3} and not read
    assert figures(sync(check="content")) == {"unchanged": 3} and len(read) == 3
    # The same size, and the time of the last write set back: only the time of the change tells.
    facts = os.stat("notes/sub/b c.txt")
    write("notes/sub/b c.txt", "BETA")
    os.utime("notes/sub/b c.txt", ns=(facts.st_atime_ns, facts.st_mtime_ns))
    assert figures(sync()) == {"updated": 1, "unchanged": 2} and texts()["sub/b c.txt"] == "BETA"


def test_stamps_that_are_damaged_cost_reading_the_files(sync):
    sync()
    write("db/.memworker/t/stamps.sqlite", b"no database at all" * 1000)
    assert figures(sync()) == {"unchanged": 3}


def test_a_touched_file_is_unchanged(sync):
    sync()
    os.utime("notes/a.md")
    assert figures(sync()) == {"unchanged": 3}


def test_rows_of_others_stay_and_their_ids_are_conflicts(sync, pool):
    given = [{"id": "a.md", "text": "mine"}, {"id": "x", "text": "x"}]
    ingest(given, db="db", table="t", pool=pool)
    report = sync(delete=True)
    assert (report.added, report.conflicts) == (2, 1) and report.rejects
    listed = [json.loads(line) for line in Path(report.rejects).read_text().splitlines()]
    assert [each["path"] for each in listed] == [os.path.abspath("notes/a.md")]
    assert texts()["a.md"] == "mine"
    shutil.rmtree("notes")
    os.mkdir("notes")
    sync(delete=True, allow_empty=True)
    assert texts() == {"a.md": "mine", "x": "x"}


def test_two_folders_in_one_table(sync):
    write("other/a.md", "another a")
    write("other/only.md", "only")
    sync()
    report = sync("other")
    assert (report.added, report.conflicts) == (1, 1)
    report = sync("other", name="o")
    assert (report.added, report.conflicts) == (2, 0) and texts()["o/a.md"] == "another a"
    shutil.rmtree("other/")
    write("other/only.md", "only")
    assert figures(sync("other", name="o", delete=True)) == {"unchanged": 1, "removed": 1}
    assert texts()["a.md"].startswith("# Heading") and "only.md" in texts()


def test_a_folder_that_was_moved_is_taken_over_on_request(sync):
    sync()
    os.rename("notes", "elsewhere")
    assert sync("elsewhere").conflicts == 3
    report = sync("elsewhere", on_conflict="update")
    assert (report.added, report.conflicts) == (3, 0)
    assert figures(sync("elsewhere", delete=True)) == {"unchanged": 3} and len(texts()) == 3


def test_an_empty_folder_removes_nothing_unless_that_is_meant(sync):
    sync()
    os.rename("notes", "away")
    with pytest.raises(InputNotFound, match="Nothing was removed"):
        sync(delete=True)
    os.mkdir("notes")
    with pytest.raises(InputError, match=r"none of the 3 documents .* --allow-empty"):
        sync(delete=True)
    assert figures(sync()) == {"would_remove": 3} and len(texts()) == 3
    assert "none of the 3" in " ".join(sync(delete=True, dry_run=True).notes)
    assert figures(sync(delete=True, allow_empty=True)) == {"removed": 3} and not texts()


def test_a_disk_that_goes_while_it_is_read_removes_nothing(sync, monkeypatch):
    sync()
    whole = planning.read_whole

    def unmounted(path):
        if not os.path.exists("away"):
            got = whole(path)
            os.rename("notes", "away")
            os.mkdir("notes")
            return got
        return whole(path)

    monkeypatch.setattr(planning, "read_whole", unmounted)
    with pytest.raises(InputError, match="was replaced while it was looked at"):
        sync(delete=True)
    assert len(texts()) == 3


def test_a_full_disk_under_what_is_known_is_said(sync, monkeypatch):
    def full(*_):
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(catalogue.Catalogue, "see", full)
    with pytest.raises(StoreUnwritable, match="disk is full.*TMPDIR"):
        sync()


def test_rows_of_others_may_have_fields_called_like_ours(sync, here, pool):
    odd = {"folder": str(here / "notes"), "path": 7, "content_hash": [1], "size": None}
    ingest([{"id": "odd", "text": "odd", **odd}], db="db", table="t", pool=pool)
    assert figures(sync(delete=True)) == {"added": 3} and texts()["odd"] == "odd"


def test_no_more_is_removed_than_max_delete_allows(sync):
    sync()
    for name in ("a.md", "page.html"):
        os.unlink(f"notes/{name}")
    with pytest.raises(InputError, match="2 documents .* more than the 1 of --max-delete"):
        sync(delete=True, max_delete=1)
    assert figures(sync(delete=True, max_delete=2)) == {"unchanged": 1, "removed": 2}


def test_what_is_left_out_now_stays_until_it_is_to_go(sync):
    sync()
    report = sync(delete=True, exclude=["sub/"])
    assert figures(report) == {"unchanged": 2} and report.kept == 1
    assert report.skipped == {"excluded": 1}
    report = sync(delete=True, include="*.md")
    assert figures(report) == {"unchanged": 1} and report.kept == 2
    report = sync(delete=True, exclude=["sub"], delete_excluded=True)
    assert figures(report) == {"unchanged": 2, "removed": 1}


def test_a_file_without_text_any_more_is_gone(sync):
    sync()
    write("notes/a.md", b"")
    write("notes/sub/b c.txt", bytes(range(256)))
    report = sync()
    assert figures(report) == {"unchanged": 1, "would_remove": 2}
    assert report.skipped == {"empty files": 1, "binary files": 1}
    assert figures(sync(delete=True)) == {"unchanged": 1, "removed": 2}


def test_what_cannot_be_read_keeps_its_row_and_is_listed(sync):
    sync()
    write("notes/sub/b c.txt", "b\xe9ta, in Latin letters of one byte".encode("latin-1"))
    os.symlink("nothing", "notes/gone.md")
    report = sync(delete=True)
    assert figures(report) == {"unchanged": 2} and report.rejected == 2
    listed = {
        each["id"]: each["reason"]
        for each in map(json.loads, Path(report.rejects).read_text().splitlines())
    }
    assert "UTF-8" in listed["sub/b c.txt"] and "link to nothing" in listed["gone.md"]
    assert texts()["sub/b c.txt"] == "beta"
    write("notes/sub/b c.txt", "mended")
    os.unlink("notes/gone.md")
    report = sync(delete=True)
    assert figures(report) == {"unchanged": 2, "updated": 1} and report.rejects is None


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody else")
def test_a_folder_that_cannot_be_listed_removes_nothing(sync, here):
    sync()
    for path in (*here.parents, here):
        if path != Path("/") and path.stat().st_uid == os.getuid() and "tmp" in str(path):
            path.chmod(path.stat().st_mode | 0o755)
    os.chmod("notes/sub", 0o700)
    code = (
        "import os; from memworker.ingestion.sync.looking import *;"
        "from memworker.ingestion.readers.folders import LeftOut;"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534);"
        f"print([f for f in files_of({str(here / 'notes')!r}, Chosen(), LeftOut(), []) if f.fault],"
        f" is_there({str(here / 'notes')!r}, 'sub/b c.txt'))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd="/")
    assert "name='sub', fault='the folder cannot be read" in done.stdout, done.stderr
    assert done.stdout.endswith(" None\n")


def test_odd_names_files_as_folders_links_in_circles(sync):
    odd = b"notes/caf\xe9 \n.md"
    with open(odd, "w") as file:
        file.write("odd")
    write("notes/ÄÖ ü.md", "umlauts")
    write("notes/A.md", "upper")
    os.symlink("..", "notes/sub/up")
    os.symlink("../page.html", "notes/sub/linked.html")
    report = sync()
    assert report.added == 7 and texts()["caf\\xe9 \n.md"] == "odd" and texts()["A.md"] == "upper"
    os.unlink("notes/A.md")
    write("notes/A.md/inner.md", "inner")
    report = sync(delete=True)
    assert figures(report) == {"added": 1, "unchanged": 6, "removed": 1}
    assert texts()["A.md/inner.md"] == "inner" and "A.md" not in texts()
    # Left out now, and there: its name has bytes that are no UTF-8.
    assert sync(delete=True, exclude=["caf*"]).kept == 1


def test_names_that_are_shown_alike_are_told(sync):
    with open(b"notes/x\xe9.md", "w") as file:
        file.write("one")
    write("notes/x\\xe9.md", "two")
    report = sync()
    assert report.rejected == 1 and "rename one" in Path(report.rejects).read_text()


def test_fields_of_others_called_like_ours_keep_their_values(sync):
    write("notes/f.md", "---\npath: /p\npath_2: q\nfolder: 3\nid: mine\n---\ntext")
    sync()
    metadata = rows()["f.md"][1]
    assert metadata["path"] == "f.md" and metadata["path_3"] == "/p" and metadata["path_2"] == "q"
    assert metadata["folder_2"] == 3 and metadata["id_2"] == "mine"


def test_front_matter_that_cannot_be_read_is_said_and_kept(sync):
    write("notes/bad.md", "---\ntitle: [open\n---\nbody")
    report = sync()
    assert texts()["bad.md"].startswith("---\ntitle: [open")
    assert any("Front matter kept as text" in note and "bad.md" in note for note in report.notes)


def test_a_dry_run_tells_and_writes_nothing(sync, here):
    assert figures(sync(dry_run=True)) == {"added": 3} and not Path("db").exists()
    sync()
    write("notes/a.md", "new text")
    os.rename("notes/page.html", "notes/moved.html")
    before = {p: p.stat().st_mtime_ns for p in Path("db/t.lance").rglob("*")}
    report = sync(dry_run=True, delete=True)
    assert figures(report) == {"updated": 1, "moved": 1, "unchanged": 1} and report.dry_run
    assert {p: p.stat().st_mtime_ns for p in Path("db/t.lance").rglob("*")} == before
    assert figures(sync(delete=True)) == figures(report)


def test_a_text_over_the_cap_is_rejected_and_a_huge_file_not_even_read(sync):
    write("notes/long.txt", "x" * 3000)
    with open("notes/huge.md", "wb") as file:
        file.truncate(200 << 20)
    report = sync(max_text_bytes=2000)
    assert (report.added, report.rejected) == (3, 2)
    said = Path(report.rejects).read_text()
    assert "text of 3,000 bytes" in said and "over the 64 MiB" in said


def test_json_is_its_text_and_its_fields_or_all_its_texts(sync):
    write("notes/one.json", '{"text": "said", "n": 1}')
    write("notes/tree.json", '{"a": ["first", {"b": "second"}], "n": 2}')
    sync()
    assert rows()["one.json"][0] == "said" and rows()["one.json"][1]["n"] == 1
    assert texts()["tree.json"] == "first\nsecond"
    report = sync(text_field="body")
    assert report.rejected == 2  # neither has the field
    assert report.unchanged == 3  # what is read as before


def test_two_at_once_the_second_refuses_by_name_or_waits(sync):
    with hold_job(state_dir(Path("db").resolve(), "t")), pytest.raises(TableLocked, match="pid|t"):
        sync()
    assert sync(wait_s=PATIENCE_S).added == 3


def test_wrong_options_are_refused_before_anything_is_made(sync):
    for options in (
        {"check": "size"},
        {"name": " "},
        {"include": [""]},
        {"max_delete": -1},
        {"on_conflict": "never"},
    ):
        with pytest.raises(UsageError):
            sync(**options)
    with pytest.raises(UsageError, match="is no folder"):
        sync("notes/a.md")
    assert not Path("db").exists()


RUN = (
    "from memworker import sync_folder;"
    "sync_folder('notes', db='db', table='t', model='echo', workers=1, delete=True)"
)
POINTS = ("before_commit", "before_add", "after_added", "after_replaced", "after_removed")


@pytest.mark.parametrize("point", POINTS)
def test_a_kill_at_any_step_costs_nothing(sync, point):
    for i in range(20):
        write(f"notes/many/{i}.md", f"text {i}")
    sync()
    for i in range(10):
        write(f"notes/many/{i}.md", f"edited {i}")
        write(f"notes/new/{i}.md", f"new {i}")
    for i in range(10, 15):
        os.unlink(f"notes/many/{i}.md")
    os.rename("notes/a.md", "notes/renamed.md")
    environment = os.environ | {"MEMWORKER_FAIL": f"{point}:kill"}
    done = subprocess.run([sys.executable, "-c", RUN], env=environment, timeout=PATIENCE_S)
    assert done.returncode == -9
    sync(delete=True)
    wanted = {f"many/{i}.md": f"edited {i}" for i in range(10)}
    wanted |= {f"many/{i}.md": f"text {i}" for i in range(15, 20)}
    wanted |= {f"new/{i}.md": f"new {i}" for i in range(10)}
    wanted |= {"renamed.md": "# Heading\n\nalpha", "sub/b c.txt": "beta", "page.html": "gamma"}
    assert texts() == wanted and Table.open("db", "t").count() == len(wanted)
    assert figures(sync(delete=True)) == {"unchanged": len(wanted)}


def test_a_file_that_is_written_while_it_is_read_is_read_again(sync, monkeypatch):
    from memworker.ingestion.sync import looking

    read, left = looking._read, [2]

    def interrupted(path):
        got = read(path)
        if path.endswith("a.md") and left[0]:
            left[0] -= 1
            write(path, f"written meanwhile {left[0]}")
            return *got[:2], os.stat(path)
        return got

    monkeypatch.setattr(looking, "_read", interrupted)
    assert sync().added == 3 and texts()["a.md"] == "written meanwhile 0"
    left[0] = 10**6
    time.sleep(0.01)
    write("notes/a.md", "never at rest")
    report = sync()
    assert report.rejected == 1 and "changed while it was read" in Path(report.rejects).read_text()
    assert texts()["a.md"] == "written meanwhile 0"


def long_text(*numbers):
    return "\n\n".join(f"Paragraph {i} " + f"says {i} again " * 12 for i in numbers)


def chunks(of):
    found = Table.open("db", "t").rows(
        {"parent_id": of}, columns=["id", "text", "chunk", "updated_at", "vector", "metadata"]
    )
    return sorted(found.to_pylist(), key=lambda row: row["chunk"])


def test_an_edited_document_writes_the_chunks_that_it_changed(sync):
    write("notes/long.md", long_text(*range(20)))
    how = {"chunk": 64, "delete": True}
    assert figures(sync(**how)) == {"added": 4}
    before = chunks("long.md")
    assert len(before) > 5 and json.loads(before[0]["metadata"])["content_hash"]
    assert json.loads(before[1]["metadata"])["path"] == "long.md"
    assert figures(sync(**how)) == {"unchanged": 4}
    write("notes/long.md", long_text(*range(15), 99, *range(16, 20)))
    report = sync(**how)
    assert figures(report) == {"updated": 1, "unchanged": 3}
    assert report.embedding.embedded <= 3
    after = chunks("long.md")
    assert "".join(row["text"] for row in after).count("Paragraph 99") == 1
    same = {row["id"]: row["updated_at"] for row in before}
    kept = [row for row in after if same.get(row["id"]) == row["updated_at"]]
    assert len(kept) >= len(after) - 8 and not any("Paragraph 15" in r["text"] for r in after)
    write("notes/long.md", long_text(1, 2))
    assert figures(sync(**how)) == {"updated": 1, "unchanged": 3}
    assert len(chunks("long.md")) < len(after)


def test_a_moved_document_keeps_the_vectors_of_its_chunks(sync):
    write("notes/long.md", long_text(*range(20)))
    sync(chunk=64)
    before = chunks("long.md")
    os.rename("notes/long.md", "notes/sub/moved.md")
    looked = sync(chunk=64, dry_run=True)
    assert figures(looked) == {"added": 1, "unchanged": 3, "would_remove": 1}
    looked = sync(chunk=64, delete=True, dry_run=True)
    report = sync(chunk=64, delete=True)
    assert figures(report) == figures(looked) == {"moved": 1, "unchanged": 3}
    assert report.embedding.embedded == 0
    after = chunks("sub/moved.md")
    assert [row["vector"] for row in after] == [row["vector"] for row in before]
    assert not chunks("long.md") and figures(sync(chunk=64)) == {"unchanged": 4}


def test_chunks_of_others_stay(sync, pool):
    given = [{"id": "a.md", "text": "mine"}, {"id": "y", "text": long_text(1, 2)}]
    ingest(given, db="db", table="t", pool=pool, chunk=64)
    report = sync(chunk=64, delete=True)
    assert (report.added, report.conflicts) == (2, 1) and chunks("a.md")[0]["text"] == "mine"
    for name in ("notes/page.html", "notes/sub/b c.txt"):
        os.unlink(name)
    report = sync(chunk=64, delete=True, allow_empty=True)
    assert report.removed == 2 and chunks("a.md") and chunks("y") and not chunks("page.html")
    assert sync(chunk=64, on_conflict="update").added == 1
    assert chunks("a.md")[0]["text"].startswith("# Heading")


@pytest.mark.parametrize("point", ["before_commit", "after_commit", "after_removed"])
def test_a_kill_at_any_step_costs_no_chunk(sync, point):
    write("notes/long.md", long_text(*range(20)))
    write("notes/gone.md", long_text(*range(5)))
    how = {"chunk": 64, "delete": True}
    sync(**how)
    write("notes/long.md", long_text(*range(3, 25)))
    write("notes/new.md", long_text(*range(50, 60)))
    os.unlink("notes/gone.md")
    environment = os.environ | {"MEMWORKER_FAIL": f"{point}:kill"}
    run = RUN.replace("delete=True", "delete=True, chunk=64")
    done = subprocess.run([sys.executable, "-c", run], env=environment, timeout=PATIENCE_S)
    assert done.returncode == -9
    sync(**how)
    whole = Table.open("db", "t").rows(columns=["id", "parent_id", "chunk", "text"]).to_pylist()
    sync_folder("notes", db="fresh", table="t", pool=None, model="echo", workers=1, chunk=64)
    fresh = Table.open("fresh", "t").rows(columns=["id", "parent_id", "chunk", "text"]).to_pylist()
    assert sorted(map(str, whole)) == sorted(map(str, fresh))
    assert figures(sync(**how)) == {"unchanged": 5}
