"""Files as documents: their text, their fields, and what becomes of those that give none."""

from __future__ import annotations

import io
import json
import os
import zipfile
from contextlib import closing
from pathlib import Path

import pytest

from memworker import EmbeddingPool, Table, ingest, sync_folder
from memworker.errors import InputError, UsageError
from memworker.ingestion.documents import extraction
from memworker.ingestion.documents.extraction import Extraction, NotTaken
from memworker.ingestion.documents.kinds import BadDocument, NoDocument, document
from memworker.ingestion.readers import found


def pdf(*pages, title="", encrypt=False):
    """Write a PDF by hand: a page a text, None for one that holds but a picture's place."""
    objects = ["<< /Type /Catalog /Pages 2 0 R >>", ""]
    kids = []
    font = len(objects) + 1
    objects.append("<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>")
    for text in pages:
        drawn = "0 0 10 10 re f" if text is None else f"BT /F1 12 Tf 72 700 Td ({text}) Tj ET"
        objects.append(f"<< /Length {len(drawn)} >>\nstream\n{drawn}\nendstream")
        objects.append(
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents {len(objects)} 0 R"
            f" /Resources << /Font << /F1 {font} 0 R >> >> >>"
        )
        kids.append(f"{len(objects)} 0 R")
    objects[1] = f"<< /Type /Pages /Kids [{' '.join(kids)}] /Count {len(kids)} >>"
    objects.append(f"<< /Title ({title}) >>")
    trailer = f"/Size {len(objects) + 1} /Root 1 0 R /Info {len(objects)} 0 R"
    if encrypt:
        objects.append(f"<< /Filter /Standard /V 1 /R 2 /O <{'28' * 32}> /U <{'41' * 32}> /P -4 >>")
        trailer += f" /Encrypt {len(objects)} 0 R /ID [<01><01>]"
    out, places = b"%PDF-1.4\n", []
    for number, body in enumerate(objects, 1):
        places.append(len(out))
        out += f"{number} 0 obj\n{body}\nendobj\n".encode()
    table = "".join(f"{place:010} 00000 n \n" for place in places)
    start = len(out)
    out += f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n{table}".encode()
    return out + f"trailer\n<< {trailer} >>\nstartxref\n{start}\n%%EOF\n".encode()


def docx(*paragraphs, title=""):
    """Write the parts of a DOCX that hold its text."""
    w = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"
    body = "".join(f"<w:p><w:r><w:t>{text}</w:t></w:r></w:p>" for text in paragraphs)
    cells = "".join(f"<w:tc><w:p><w:r><w:t>{c}</w:t></w:r></w:p></w:tc>" for c in ("c1", "c2"))
    types = "http://schemas.openxmlformats.org/package/2006/content-types"
    relations = "http://schemas.openxmlformats.org/package/2006/relationships"
    kind = "http://schemas.openxmlformats.org/officeDocument/2006/relationships/officeDocument"
    core = "http://schemas.openxmlformats.org/package/2006/metadata/core-properties"
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as parts:
        parts.writestr("[Content_Types].xml", f'<Types xmlns="{types}"></Types>')
        parts.writestr(
            "_rels/.rels",
            f'<Relationships xmlns="{relations}"><Relationship Id="r1" Type="{kind}"'
            ' Target="word/document.xml"/></Relationships>',
        )
        parts.writestr(
            "word/document.xml",
            f'<w:document xmlns:w="{w}"><w:body>{body}<w:tbl><w:tr>{cells}</w:tr></w:tbl></w:body>'
            "</w:document>",
        )
        parts.writestr(
            "docProps/core.xml",
            f'<cp:coreProperties xmlns:cp="{core}" xmlns:dc="http://purl.org/dc/elements/1.1/">'
            f"<dc:title>{title}</dc:title></cp:coreProperties>",
        )
    return data.getvalue()


@pytest.fixture(scope="module")
def extract():
    with closing(Extraction()) as extraction:
        yield extraction


@pytest.fixture
def of(extract):
    def read(kind, data, **options):
        data = data.encode() if isinstance(data, str) else data
        found = document(kind, data, extract, **options)
        return found.text, found.fields, found.note

    return read


@pytest.mark.parametrize(
    ("kind", "data", "text", "fields"),
    [
        ("plain", "a\r\nb\rc", "a\nb\nc", {}),
        ("plain", "Grüße".encode("utf-16"), "Grüße", {}),
        ("plain", b"\xef\xbb\xbfmarked", "marked", {}),
        ("markdown", "# One #\n\n# Two", "# One #\n\n# Two", {"title": "One"}),
        ("markdown", "Set\n===\nx", "Set\n===\nx", {"title": "Set"}),
        ("markdown", "```\n# code\n```\n# real", "```\n# code\n```\n# real", {"title": "real"}),
        ("markdown", "---\na: 1\n---\nx", "x", {"a": 1}),
        ("markdown", "---\r\na: 1\r\n---\r\nx", "x", {"a": 1}),
        ("markdown", "---\ndate: 2024-01-02\n...\nx", "x", {"date": "2024-01-02"}),
        (
            "markdown",
            '+++\nd = 2024-01-02\nt = ["x"]\n+++\nx',
            "x",
            {"d": "2024-01-02", "t": ["x"]},
        ),
        ("markdown", "---\n---\nx", "x", {}),
        ("markdown", "---\nno fields, a rule\n---\nx", "---\nno fields, a rule\n---\nx", {}),
        ("markdown", "---\nnever closed", "---\nnever closed", {}),
        ("rst", "====\nTop\n====\n\nx", "====\nTop\n====\n\nx", {"title": "Top"}),
        ("rst", "Top\n---\n\nx", "Top\n---\n\nx", {"title": "Top"}),
        ("html", "<h1>H<b>1</b></h1>a<br>b<p>c <i>d</i>e", "H1\n\na\nb\n\nc de", {"title": "H1"}),
        ("html", "<nav>menu</nav><style>s</style><p>x&nbsp;&lt;y", "x\xa0<y", {}),
        ("html", "<pre>a\n  b</pre><ul><li>c<li>d</ul>", "a\n  b\n\nc\nd", {}),
        ("html", "<table><tr><th>a<td>b<tr><td>c<td>d", "a\tb\nc\td", {}),
        ("html", '<meta charset="cp1251"><p>да'.encode("cp1251"), "да", {}),
        ("html", "<p>caf\xe9".encode("latin-1"), "café", {}),
        ("html", "<p>ünï".encode("utf-16"), "ünï", {}),
        ("json", '{"text": "t", "n": 1}', "t", {"n": 1}),
        ("json", '[{"x": "a"}, ["b", 1, {"y": "c"}]]', "a\nb\nc", {}),
    ],
)
def test_text_and_fields(of, kind, data, text, fields):
    assert of(kind, data) == (text, fields, "")


@pytest.mark.parametrize(
    ("block", "why"),
    [
        ("a: [1", "line 3"),
        ("a: &x 1\nb: *x", "aliases"),
        ("a: 1\nb: {c: 1, c: 2}", "'c' is given twice"),
        ("1: x", "key 1"),
        ("a: .nan", "nan"),
        ("a: 2024-99-01", "month"),
        ("a: !!python/object:os.system x", "could not determine a constructor"),
        ("<<: {a: 1}", "merge"),
    ],
)
def test_front_matter_that_is_no_data_is_said_and_stays_text(of, block, why):
    whole = f"---\n{block}\n---\nbody"
    text, fields, note = of("markdown", whole)
    assert (text, fields) == (whole, {}) and why in note


@pytest.mark.parametrize(
    ("kind", "data", "reason"),
    [
        ("plain", b"", "empty files"),
        ("plain", b" \n ", "files without text"),
        ("markdown", b"---\na: 1\n---\n", "files of nothing but fields"),
        ("plain", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "binary files"),
        ("plain", bytes(range(128, 256)) * 10, "binary files"),
        ("html", b"GIF89a\0\0", "binary files"),
        ("html", b"<p></p>", "files without text"),
    ],
)
def test_what_is_no_document(of, kind, data, reason):
    with pytest.raises(NoDocument, match=f"^{reason}$"):
        of(kind, data)


@pytest.mark.parametrize(
    ("kind", "data", "reason"),
    [
        ("plain", "Stra\xdfe und Gr\xfc\xdfe".encode("latin-1"), "byte 4 is no UTF-8"),
        ("json", b"{", "malformed JSON"),
        ("json", b"[" * 100_000, "nested too deeply"),
        ("json", b'{"a": 1, "a": 2}', "twice|two"),
        ("json", rb'["\ud83d"]', "lone surrogate"),
        ("pdf", b"%PDF-1.4 nonsense", "broken"),
        ("pdf", pdf("x", encrypt=True), "encrypted"),
        ("pdf", pdf(None, None), "2 pages hold no text: a scan"),
        ("docx", b"PK\3\4 nonsense", "broken"),
        ("docx", b"\xd0\xcf\x11\xe0 old", "encrypted, or of an old Word"),
        ("docx", docx()[:-40], "broken"),
    ],
)
def test_documents_that_cannot_be_read_say_why(of, kind, data, reason):
    with pytest.raises(BadDocument, match=reason):
        of(kind, data)


def test_pdf_and_docx(of):
    assert of("pdf", pdf("First page", "Second", title="On pages")) == (
        "First page\n\nSecond",
        {"title": "On pages"},
        "",
    )
    text, fields, _ = of("docx", docx("One &amp; two", "three", title="Doc"))
    assert (
        text == "One & two\n\nthree\n\nc1\n\nc2" or text.split() == "One & two three c1 c2".split()
    )
    assert fields == {"title": "Doc"}


def test_a_page_that_takes_for_ever_is_given_up_and_the_next_one_read(of):
    with closing(Extraction(seconds=1)) as extraction:
        with pytest.raises(NotTaken, match="more than 1 s|ended the process"):
            extraction.text("html", b"<div>" * 2_000_000)
        assert extraction.text("pdf", pdf("after")) == ("after", "")


def test_a_process_that_is_killed_costs_one_document(extract):
    assert extract.text("pdf", pdf("one"))[0] == "one"
    extract._child.process.kill()
    with pytest.raises(NotTaken, match="ended the process|could not be used"):
        extract.text("pdf", pdf("two"))
    assert extract.text("pdf", pdf("three"))[0] == "three"


@pytest.fixture(scope="module")
def pool():
    with EmbeddingPool("echo", workers=1) as pool:
        yield pool


def test_ingest_and_sync_see_the_same_texts(tmp_path, monkeypatch, pool):
    monkeypatch.chdir(tmp_path)
    os.makedirs("d/sub")
    Path("d/a.md").write_text("---\ntitle: T\nid: 7\nauthor: ann\n---\nalpha")
    Path("d/sub/b.html").write_text("<p>beta")
    Path("d/c.pdf").write_bytes(pdf("gamma"))
    Path("d/e.docx").write_bytes(docx("delta"))
    Path("d/scan.pdf").write_bytes(pdf(None))
    Path("d/no.md").write_bytes(b"\0\1")
    report = ingest("d", db="one", table="t", pool=pool, scope={"user_id": "author"})
    assert (report.written, report.rejected) == (4, 1)
    assert any("1 binary files (d/no.md)" in note for note in report.notes)
    assert "OCR" in Path(report.rejects).read_text()
    sync_folder("d", db="two", table="t", pool=pool)
    got = {}
    for db in ("one", "two"):
        found = Table.open(db, "t").rows(columns=["id", "text", "metadata"]).to_pylist()
        got[db] = {row["id"]: (row["text"], json.loads(row["metadata"])) for row in found}
    assert {k: v[0] for k, v in got["one"].items()} == {k: v[0] for k, v in got["two"].items()}
    assert got["one"]["a.md"][1] == {"path": "a.md", "size": 40, "title": "T", "id_2": 7}
    assert got["two"]["a.md"][1]["id_2"] == 7
    assert Table.open("one", "t").count({"user_id": "ann"}) == 1
    assert ingest("d", db="one", table="t", pool=pool, scope={"user_id": "author"}).written == 0


def test_templates_and_nested_fields_hold_for_documents_too(of, tmp_path, monkeypatch, pool):
    monkeypatch.chdir(tmp_path)
    Path("a.md").write_text("---\ntitle: T\n---\nalpha")
    how = {"text_template": "{title}: {text}", "id_template": "doc-{path}"}
    ingest("a.md", db="db", table="t", pool=pool, **how)
    (row,) = Table.open("db", "t").rows(columns=["id", "text"]).to_pylist()
    assert row == {"id": "doc-a.md", "text": "T: alpha"}
    assert of("json", '{"a": {"b": "x", "c": 1}}', text_field="a.b")[:2] == ("x", {"a": {"c": 1}})


def test_an_encoding_that_is_given_holds_where_there_is_no_mark(of, tmp_path, monkeypatch, pool):
    latin = "Grüße, schön".encode("latin-1")
    assert of("plain", latin, encoding="latin-1")[0] == "Grüße, schön"
    assert of("plain", "ü".encode("utf-16"), encoding="latin-1")[0] == "ü"
    assert of("html", b"<p>" + "да".encode("koi8-r"), encoding="koi8-r")[0] == "да"
    with pytest.raises(BadDocument, match="--encoding"):
        of("plain", latin)
    monkeypatch.chdir(tmp_path)
    os.mkdir("d")
    Path("d/a.md").write_bytes(latin)
    ingest("d", db="one", table="t", pool=pool, dialect={"encoding": "latin-1"})
    assert sync_folder("d", db="two", table="t", pool=pool).rejected == 1
    assert sync_folder("d", db="two", table="t", pool=pool, encoding="latin-1").added == 1
    for db in ("one", "two"):
        assert Table.open(db, "t").rows(columns=["text"])["text"].to_pylist() == ["Grüße, schön"]
    with pytest.raises(UsageError, match="encoding"):
        sync_folder("d", db="two", table="t", pool=pool, encoding="no such")


def test_documents_beside_files_of_rows_are_read_when_asked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.mkdir("set")
    for name in ("README.md", "rows.jsonl", "notes.txt"):
        Path("set", name).write_text("{}")
    there = found("set")
    assert [source.path for source in there.sources] == ["set/notes.txt", "set/rows.jsonl"]
    assert "1 documents beside files of rows; --format document" in there.left_out.told()
    assert len(found("set", "document").sources) == 3
    assert [source.format for source in found("set/README.md").sources] == ["document"]


def test_a_missing_package_is_said_once_with_the_command(tmp_path, monkeypatch, pool):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(extraction, "NEEDS", {"pdf": "no_such_package", "docx": "mammoth"})
    os.mkdir("d")
    Path("d/a.md").write_text("alpha")
    for i in range(12):
        Path(f"d/{i}.pdf").write_bytes(pdf("x"))
    report = sync_folder("d", db="db", table="t", pool=pool)
    assert (report.added, report.rejected) == (1, 0)
    (note,) = report.notes
    assert note.count("pip install 'memworker[documents]'") == 1 and "12 .pdf files" in note
    with pytest.raises(InputError, match="pip install"):
        ingest("d/0.pdf", db="db", table="u", pool=pool)
