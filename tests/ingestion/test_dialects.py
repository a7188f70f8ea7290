"""CSV in every dialect, text in every encoding: found out where that is certain, else asked for."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from memworker.errors import InputError, MissingField, UsageError
from memworker.ingestion import Dialect, Fields
from memworker.ingestion.readers import read_options, read_sources
from memworker.ingestion.readers.paths import found


def taken(path, dialect=None, fields=None, format=None):
    """Return (id, text) of the rows, the reasons of the others, and the notes."""
    options = read_options(fields)
    sources = found([path], format, dialect=dialect).sources
    batches = list(read_sources(sources, options))
    rows = [(r["id"], r["text"]) for batch in batches for r in batch.rows.to_pylist()]
    return rows, [each.reason for batch in batches for each in batch.rejects], options.told.notes


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('id,text\n1,a;b\n2,"c,d"\n', None),
        ('id;text\n1;a,b\n2;"c;d"\n', "';'"),
        ("id\ttext\n1\ta,b\n2\tc;d\n", "a tab"),
        ("id|text\r\n1|a,b\r\n2|c;d\r\n", "|"),
        ("sep=;\nid;text\n1;a,b\n2;c\n", "';'"),
        ('id, text\n1, a\n2, "c, d"\n', "spaces"),
        ("'id','text'\n'1','a, b'\n'2','it''s'\n", "quoted by '"),
        ("text;x,y,z;id\na;1,2,3;1\nb;4,5,6;2\n", "';'"),
        ("id,text,a;b;c;d\n1,x,1;2;3;4\n2,y,1;2;3;4\n", None),
        ("\ufeffid;text\n1;a\n2;b\n", "';'"),
    ],
)
def test_the_header_shows_what_parts_and_quotes_the_cells(tmp_path, text, said):
    path = tmp_path / "in.csv"
    path.write_text(text)
    rows, reasons, notes = taken(path)
    assert [i for i, _ in rows] == ["1", "2"] and not reasons
    assert all(text and "id" not in text for _, text in rows)
    if said is None:
        assert notes == []
    else:
        (note,) = notes
        assert said in note and "--delimiter" in note and "in.csv" in note


def test_a_lone_column_is_one_whatever_marks_its_texts_hold(tmp_path):
    path = tmp_path / "in.csv"
    path.write_text("text\na; b; c\nd; e; f\n")
    assert taken(path) == ([(None, "a; b; c"), (None, "d; e; f")], [], [])


@pytest.mark.parametrize(
    ("text", "rejected", "left"),
    [("id,text\n1,'a, b'\n2,c\n3,d, e\n", 2, 1), ("id,text\n1,a,b;c\n2,c\n", 1, 1)],
)
def test_rows_of_too_many_cells_are_rejected_with_the_options_that_help(
    tmp_path, text, rejected, left
):
    path = tmp_path / "in.csv"
    path.write_text(text)
    _, reasons, (note,) = taken(path)
    assert len(reasons) == rejected and "--delimiter or --quotechar" in note and "in.csv" in note
    assert len(taken(path, Dialect(quotechar="'"))[1]) == left
    path.write_text("id,text\n1\n2,c\n")
    assert len(taken(path)[1]) == 1 and taken(path)[2] == []


BACKSLASH = "\\"


@pytest.mark.parametrize(
    ("body", "texts", "said"),
    [
        ("1,'a, b'\n2,'c'\n3,d\n", ["a, b", "c", "d"], "quoted by '"),
        ("1,'a'\n2,'b'\n", ["a", "b"], "quoted by '"),
        ("1,'a'\n2,it's\n3,'tis\n", ["'a'", "it's", "'tis"], None),
        ("1,'only one'\n", ["'only one'"], None),
        (
            '1,"a ' + BACKSLASH + '"b' + BACKSLASH + '", c"\n2,d\n',
            ['a "b", c', "d"],
            "before quotes",
        ),
        (
            '1,"a ' + BACKSLASH * 2 + '"\n2,"b' + BACKSLASH + '" c"\n',
            ["a \\", 'b" c'],
            "before quotes",
        ),
        ('1,"C:' + BACKSLASH + '"\n2,"a ""b"""\n', ["C:" + BACKSLASH, 'a "b"'], None),
        ("1,a" + BACKSLASH + "nb\n2,c\n", ["a" + BACKSLASH + "nb", "c"], None),
        ("1,'it" + BACKSLASH + "'s, so'\n2,'b'\n", ["it's, so", "b"], "quoted by '"),
        ('1,"it\'s\nso, \'well\'"\n2,"b"\n', ["it's\nso, 'well'", "b"], None),
    ],
)
@pytest.mark.parametrize("head", ["id,text\n", ""])
def test_the_first_rows_show_what_quotes_and_escapes(tmp_path, body, texts, said, head):
    path = tmp_path / "in.csv"
    path.write_text(head + body)
    dialect = None if head else Dialect(header=False, delimiter=",")
    rows, reasons, notes = taken(path, dialect, None if head else Fields("2", "1"))
    assert [text for _, text in rows] == texts and reasons == []
    assert (said in "".join(notes)) if said else not notes


def test_a_backslash_behind_the_first_lines_names_its_option(tmp_path):
    path = tmp_path / "in.csv"
    many = "".join(f"{i},text {i}\n" for i in range(300))
    path.write_text(f'id,text\n{many}a,"b {BACKSLASH}"c{BACKSLASH}""\n')
    _, reasons, (note,) = taken(path)
    assert len(reasons) == 1 and "--escapechar" in note
    rows, reasons, notes = taken(path, Dialect(escapechar=BACKSLASH))
    assert rows[-1] == ("a", 'b "c"') and not reasons and not notes
    path.write_text(f'id,text\na,"b {BACKSLASH}"c{BACKSLASH}""\n')
    assert "malformed" in taken(path, Dialect(escapechar="none"))[1][0]


def test_the_excerpt_of_a_rejected_row_is_what_the_file_says(tmp_path):
    path = tmp_path / "in.csv"
    path.write_text('id;text\r\n1;"a ""b""";c\r\n2;d\r\n')
    (batch,) = read_sources(found([path], None).sources, read_options(None))
    assert [each.excerpt for each in batch.rejects] == ['1;"a ""b""";c']


def test_a_file_that_is_read_twice_is_named_once(tmp_path):
    path, options = tmp_path / "in.csv", read_options(None)
    path.write_text("id;text\n1;a\n")
    for _ in range(2):
        list(read_sources(found([path]).sources, options))
    (note,) = options.told.notes
    assert note.count("in.csv") == 1


def test_a_header_that_nothing_parts_names_the_option(tmp_path):
    path = tmp_path / "in.csv"
    path.write_text("id:text\n1:a\n")
    with pytest.raises(MissingField, match="say --delimiter"):
        taken(path)
    assert taken(path, Dialect(delimiter=":"))[0] == [("1", "a")]


def test_a_line_that_was_not_cut_into_cells_has_no_id(tmp_path):
    path = tmp_path / "in.csv"
    path.write_text('id,text\n1,"never closed\n2,two\n')
    (batch,) = read_sources(found([path], None).sources, read_options(None))
    assert [(each.id, each.line) for each in batch.rejects] == [(None, 2)]
    assert batch.rows["id"].to_pylist() == ["2"]


def test_options_decide_against_what_the_header_shows(tmp_path):
    path = tmp_path / "in.csv"
    path.write_text("text,id;text\n1,b;c\n")
    assert taken(path, Dialect(delimiter=";"), Fields("text"))[0] == [(None, "c")]
    assert taken(path)[0] == [(None, "1")]
    quoted = tmp_path / "quoted.csv"
    quoted.write_text("id,text\n1,~a, b~\n2,'c\n")
    assert taken(quoted, Dialect(quotechar="~"))[0] == [("1", "a, b"), ("2", "'c")]
    quoted.write_text('id,text\n1,"a" b\n')
    assert taken(quoted, Dialect(quotechar="none"))[0] == [("1", '"a" b')]
    assert "malformed" in taken(quoted)[1][0]


def test_without_a_header_columns_have_numbers(tmp_path):
    path = tmp_path / "in.csv"
    path.write_text("1;hello, there;2020\n2;bye;2021\n")
    told = pytest.raises(MissingField, match="--no-header.*header=False")
    with told:
        taken(path)
    fields = Fields.of("2", "1")
    rows, _, (note,) = taken(path, Dialect(header=False), fields)
    assert rows == [("1", "hello, there"), ("2", "bye")]
    assert "';'" in note and "first rows show" in note
    with pytest.raises(MissingField, match="fields are: 1, 2, 3"):
        taken(path, Dialect(header=False))
    lone = tmp_path / "lone.csv"
    lone.write_text("hello\nbye\n")
    assert taken(lone, Dialect(header=False))[0] == [(None, "hello"), (None, "bye")]


@pytest.mark.parametrize("text", ["1,a;x\n2,b;y\n", "a,b\nc\nd;e,f,g\n"])
def test_what_is_not_certain_without_a_header_is_asked_for(tmp_path, text):
    path = tmp_path / "in.csv"
    path.write_text(text)
    with pytest.raises(InputError, match="say it with --delimiter"):
        taken(path, Dialect(header=False), Fields("1"))
    assert taken(path, Dialect(delimiter=",", header=False), Fields("1"))[0]


TEXT = "id,text\n1,café größe\n2,naïve\n"


@pytest.mark.parametrize(
    ("encoding", "given"),
    [
        ("utf-8", None),
        ("utf-8-sig", None),
        ("utf-16", None),
        ("utf-32", None),
        ("utf-16-le", "utf-16-le"),
        ("latin-1", "latin-1"),
        ("cp1252", "cp1252"),
        ("utf-8-sig", "latin-1"),
        ("mac-roman", "mac-roman"),
    ],
)
@pytest.mark.parametrize("suffix", ["csv", "jsonl", "txt"])
def test_text_is_read_in_every_encoding(tmp_path, encoding, given, suffix):
    text = {
        "csv": TEXT,
        "jsonl": '{"id": "1", "text": "café größe"}\n{"id": "2", "text": "naïve"}\n',
        "txt": "café größe\nnaïve\n",
    }[suffix]
    path = tmp_path / f"in.{suffix}"
    path.write_bytes(text.encode(encoding))
    rows, reasons, _ = taken(path, Dialect(encoding=given))
    assert [text for _, text in rows] == ["café größe", "naïve"] and not reasons


@pytest.mark.parametrize("encoding", ["shift_jis", "gb18030", "euc-kr"])
def test_encodings_of_several_bytes_are_read_too(tmp_path, encoding):
    text = {"shift_jis": "テキスト", "gb18030": "文本", "euc-kr": "텍스트"}[encoding]
    path = tmp_path / "in.txt"
    path.write_bytes(f"{text}\n{text}\n".encode(encoding))
    assert [t for _, t in taken(path, Dialect(encoding=encoding))[0]] == [text, text]


def test_a_byte_that_an_encoding_does_not_have_costs_its_line(tmp_path):
    path = tmp_path / "in.txt"
    path.write_bytes(b"a\n\x81\nb\n")
    rows, reasons, _ = taken(path, Dialect(encoding="cp1252"))
    assert [text for _, text in rows] == ["a", "b"] and len(reasons) == 1


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "txt"])
def test_what_is_not_utf8_is_rejected_with_the_option_that_helps(tmp_path, suffix):
    text = {"csv": "id,text\n1,caf\xe9\n2,b\n", "jsonl": '{"text": "caf\xe9"}\n{"text": "b"}\n'}
    path = tmp_path / f"in.{suffix}"
    path.write_bytes(text.get(suffix, "caf\xe9\nb\n").encode("latin-1"))
    rows, reasons, (note,) = taken(path)
    assert len(rows) == len(reasons) == 1 and "--encoding" in note and "in." in note


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"delimiter": "ab"}, "one character"),
        ({"delimiter": "\n"}, "one character"),
        ({"quotechar": ";", "delimiter": ";"}, "both part cells and quote"),
        ({"encoding": "nope"}, "names no encoding"),
        ({"encoding": "base64"}, "names no encoding"),
        ({"separator": ";"}, "a dialect has delimiter"),
    ],
)
def test_a_dialect_that_cannot_be_is_refused(given, told):
    with pytest.raises(UsageError, match=told):
        Dialect.of(given)


def test_options_of_csv_are_refused_where_nothing_is_csv(tmp_path):
    path = tmp_path / "in.txt"
    path.write_text("text;id\na;1\n")
    with pytest.raises(UsageError, match="--delimiter is for csv.*--format csv"):
        taken(path, Dialect(delimiter=";"))
    with pytest.raises(UsageError, match="--no-header"):
        taken(path, Dialect(header=False))
    assert taken(path, Dialect(delimiter=";"), format="csv")[0] == [("1", "a")]


def test_an_encoding_is_not_told_where_it_does_nothing_and_refused_where_it_is_given(tmp_path):
    path, text = tmp_path / "in.parquet", tmp_path / "in.txt"
    pq.write_table(pa.table({"text": [b"one", b"\xff"]}), path)
    rows, reasons, notes = taken(path)
    assert [t for _, t in rows] == ["one"] and "UTF-8" in reasons[0] and notes == []
    with pytest.raises(UsageError, match="--encoding is for files of text.*parquet.*leave it out"):
        taken(path, Dialect(encoding="latin-1"))
    text.write_bytes(b"caf\xe9\n")
    both = found([path, text], dialect=Dialect(encoding="latin-1")).sources
    (_, batch) = read_sources(both, read_options(None))
    assert batch.rows["text"].to_pylist() == ["caf\xe9"]


@pytest.mark.parametrize("given", [{"encoding": "latin-1"}, {"delimiter": ";"}, {"header": False}])
def test_a_dialect_is_refused_where_a_database_reads_the_file(tmp_path, given):
    path = tmp_path / "in.csv"
    path.write_text("id;text\n1;a\n")
    with pytest.raises(UsageError, match="is for files of text, and --sql"):
        found([path], dialect=Dialect(**given), sql="SELECT * FROM input")
    assert found([path], dialect=Dialect(), sql="SELECT * FROM input").sources


@pytest.mark.parametrize("address", ["https://x.org/a.jsonl", "http://x/a", "s3://b/a.parquet"])
def test_what_is_not_on_this_machine_is_refused_in_one_line(address):
    with pytest.raises(UsageError, match="fetch it first") as raised:
        found([address])
    assert "\n" not in str(raised.value)
