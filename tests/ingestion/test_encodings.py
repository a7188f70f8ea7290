"""Bytes that are text in another encoding, or no text: decoded where certain, refused by name."""

from __future__ import annotations

import gzip
import json

import pytest

from memworker.errors import InputError
from memworker.ingestion.readers import read

TEXTS = ["plain words", "café, naïve", "记忆 与 遗忘", "😀 smile"]
ENCODINGS = ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"]
FORMS = {
    "txt": "".join(f"{text}\n" for text in TEXTS),
    "csv": "text,n\r\n" + "".join(f'"{text}",1\r\n' for text in TEXTS),
    "tsv": "text\tn\n" + "".join(f"{text}\t1\n" for text in TEXTS),
    "jsonl": "".join(json.dumps({"text": t}, ensure_ascii=False) + "\n" for t in TEXTS),
    "json": json.dumps([{"text": t} for t in TEXTS], ensure_ascii=False, indent=1),
}


def texts_and_rejects(*inputs, **options):
    batches = list(read(inputs, **options))
    texts = [t for c in batches for t in c.rows["text"].to_pylist()]
    return texts, [reject for c in batches for reject in c.rejects]


@pytest.mark.parametrize("packed", ["", ".gz"])
@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("form", FORMS)
def test_unicode_is_decoded_with_and_without_a_mark(tmp_path, form, encoding, packed):
    path, content = tmp_path / f"in.{form}{packed}", FORMS[form].encode(encoding)
    path.write_bytes(gzip.compress(content) if packed else content)
    assert texts_and_rejects(path) == (TEXTS, [])


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le"])
@pytest.mark.parametrize("text", ["记忆\n" * 40, "память и забвение\n", "a\n", "é\nè\n"])
def test_other_scripts_are_decoded_without_a_mark(tmp_path, encoding, text):
    path = tmp_path / "in.txt"
    path.write_bytes(text.encode(encoding))
    assert texts_and_rejects(path) == (text.splitlines(), [])


@pytest.mark.parametrize("form", ["txt", "csv", "jsonl"])
@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_marks_of_files_that_were_joined_are_no_text(tmp_path, form, encoding):
    path = tmp_path / f"in.{form}"
    path.write_bytes(FORMS[form].encode(encoding) + "text\n".encode(encoding))
    texts, rejects = texts_and_rejects(path)
    assert texts + [r.excerpt for r in rejects] == [*TEXTS, "text"]


def test_a_piece_of_utf16_in_a_text_is_not_stored_with_nuls(tmp_path):
    for form in ("txt", "csv", "jsonl"):
        path = tmp_path / f"in.{form}"
        begin = FORMS[form].encode() * 9
        path.write_bytes(begin + "appended by another shell\n".encode("utf-16-le"))
        texts, rejects = texts_and_rejects(path)
        assert len(texts) >= 36 and "\0" not in "".join(texts)
        assert "NUL bytes" in rejects[-1].reason


def test_a_text_that_is_cut_off_within_a_character_is_said(tmp_path):
    path = tmp_path / "in.txt"
    path.write_bytes("one\ntwo\n".encode("utf-16") + b"x")
    texts, (reject,) = texts_and_rejects(path)
    assert texts == ["one", "two"] and "not valid UTF-16" in reject.reason


@pytest.mark.parametrize("form", FORMS)
def test_lines_may_end_in_carriage_returns_alone(tmp_path, form):
    path = tmp_path / f"in.{form}"
    path.write_bytes(FORMS[form].replace("\r", "").replace("\n", "\r").encode())
    assert texts_and_rejects(path) == (TEXTS, [])


def test_zeros_behind_a_text_cost_their_line(tmp_path):
    for form in ("txt", "jsonl", "csv"):
        path = tmp_path / f"in.{form}"
        path.write_bytes(FORMS[form].encode() + bytes(5000))
        texts, (reject,) = texts_and_rejects(path)
        assert texts == TEXTS and "NUL" in reject.reason


STRANGE = {
    gzip.compress(gzip.compress(b"x" * 90)): "compressed twice",
    b"a.jsonl".ljust(257, b"\0") + b"ustar" + bytes(250): "tar archive",
    b"BZh91AY&SY" + b"\1" * 40: "bzip2",
    b"PK\3\4" + b"\0\1" * 40: "zip",
    b"%PDF-1.7\n%\xe2\xe3": "PDF",
    b"SQLite format 3\0" + b"\0" * 40: "SQLite",
    b"PAR1" + b"\1\0" * 40: "--format parquet",
    b"ARROW1\0\0" + b"\0" * 40: "--format arrow",
    b"\xfd7zXZ\0" + b"\0" * 40: "unxz",
    bytes(range(256)) * 4 + b"\0" * 300: "NUL",
    b"\x7fELF\2\1\1" + bytes(range(0, 250, 5)) * 9 + b"\0" * 400: "NUL",
}


@pytest.mark.parametrize("content", STRANGE, ids=STRANGE.values())
@pytest.mark.parametrize("form", ["txt", "csv", "jsonl", "json"])
def test_what_is_no_text_is_refused_by_name_and_costs_its_file(tmp_path, form, content):
    path, good = tmp_path / f"a.{form}", tmp_path / "b.txt"
    path.write_bytes(content)
    good.write_text("fine\n")
    with pytest.raises(InputError, match=STRANGE[content]):
        texts_and_rejects(path)
    texts, (reject,) = texts_and_rejects(tmp_path)
    assert texts == ["fine"] and reject.path == str(path)


@pytest.mark.parametrize("form", ["jsonl", "csv", "txt"])
def test_packing_is_told_by_the_bytes(tmp_path, form):
    content = FORMS[form].encode()
    (tmp_path / f"a.{form}").write_bytes(gzip.compress(content))
    (tmp_path / f"b.{form}.gz").write_bytes(content)
    (tmp_path / f"c.{form}.zst").write_bytes(gzip.compress(content))
    assert texts_and_rejects(tmp_path) == (TEXTS * 3, [])
