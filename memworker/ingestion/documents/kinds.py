"""Bytes of a file to a document, by the file's suffix."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from memworker.errors import InputError
from memworker.ingestion.documents import extraction, front_matter
from memworker.ingestion.documents.extraction import Extraction
from memworker.ingestion.documents.html_text import html_text
from memworker.ingestion.fields import value_at, without
from memworker.ingestion.readers.encodings import BOM, TornStream, utf8_blocks

# Of a file that is read whole; one that is larger is no document that anybody wrote.
MAX_FILE_BYTES = 64 << 20

_HEADING = re.compile(r"#[ \t]+(.+?)[ \t]*#*[ \t]*$")
_FENCE = re.compile(r" {0,3}(```|~~~)")
_RULE = re.compile(r"([=\-~^\"'`#*+.:_<>])\1{2,}[ \t]*$")
_TITLE_CHARS = 500
# Parsing takes the square of the depth of nesting: what may take long is done where it can end.
_LARGE_PAGE = 128 << 10


@dataclass(frozen=True, slots=True)
class Document:
    """The text of a file, and the fields that it gives itself; `note` says what it lost."""

    text: str
    fields: dict[str, Any] = field(default_factory=dict)
    note: str = ""


class NoDocument(Exception):
    """A file that is no document, by a reason that goes after a number: "3 binary files"."""


class BadDocument(Exception):
    """A document that cannot be read, and why."""


def document(
    kind: str,
    data: bytes,
    extraction: Extraction,
    *,
    text_field: str | None = None,
    encoding: str = "",
) -> Document:
    """Read a document; `encoding` is that of text without a mark.

    Raises NoDocument, BadDocument.
    """
    if not data:
        raise NoDocument("empty files")
    if kind == "html":
        _refuse_binary(data)
        data = _as_utf8(data, encoding)
    if kind in extraction_kinds() or (kind == "html" and len(data) > _LARGE_PAGE):
        found = _extracted(kind, data, extraction)
    elif kind == "html":
        text, title = html_text(data)
        found = Document(text, _titled(title))
    else:
        found = _OF_TEXT[kind](_text(data, encoding), text_field)
    if not found.text.strip():
        raise NoDocument(
            "files without text" if not found.fields else "files of nothing but fields"
        )
    return found


def too_large(size: int) -> BadDocument:
    """Say that a file is larger than any document."""
    return BadDocument(
        f"a file of {size:,} bytes, over the {MAX_FILE_BYTES >> 20} MiB that a document may have;"
        " split it"
    )


def beside(
    theirs: dict[str, Any], ours: dict[str, Any], taken: tuple[str, ...] = ("text", "id")
) -> dict[str, Any]:
    """Join the fields of a document with ours; one of theirs that is called alike gets a number."""
    joined = dict(ours)
    for name, value in theirs.items():
        number, given = 2, name
        while name in joined or name in taken or (name != given and name in theirs):
            name, number = f"{given}_{number}", number + 1
        joined[name] = value
    return joined


def extraction_kinds() -> frozenset[str]:
    """Name the kinds that need a package of the extra."""
    return frozenset(extraction.NEEDS)


def _extracted(kind: str, data: bytes, extract: Extraction) -> Document:
    try:
        text, title = extract.text(kind, data)
    except extraction.NotInstalled:
        raise NoDocument(f".{kind} files, which need {extraction.INSTALL}") from None
    except extraction.NotTaken as error:
        raise BadDocument(str(error)) from None
    return Document(text, _titled(title))


def _refuse_binary(data: bytes) -> None:
    head = data[:4096]
    wide = head.startswith((b"\xff\xfe", b"\xfe\xff"))
    if b"\0" in head and not wide:
        raise NoDocument("binary files")


def _as_utf8(page: bytes, encoding: str) -> bytes:
    """Mark a page as UTF-8 where its encoding is given, and it has no mark of its own."""
    if not encoding or page.startswith((BOM, b"\xff\xfe", b"\xfe\xff")):
        return page
    return BOM + page.decode(encoding, errors="replace").encode(errors="replace")


def _text(data: bytes, encoding: str) -> str:
    """Decode text in any Unicode encoding that its bytes tell. Raises NoDocument, BadDocument."""
    try:
        raw = b"".join(utf8_blocks("it", iter([data]), encoding))
    except InputError:
        raise NoDocument("binary files") from None
    except TornStream as error:
        raise BadDocument(str(error)) from None
    controls = sum(
        raw[:8192].count(bytes([code])) for code in range(32) if code not in b"\t\n\v\f\r\x1b"
    )
    if controls > 0.02 * len(raw[:8192]):
        raise NoDocument("binary files")
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        high = sum(byte > 0x7F for byte in raw[:8192])
        if high > 0.3 * len(raw[:8192]):
            raise NoDocument("binary files") from None
        raise BadDocument(
            f"byte {error.start:,} is no {(encoding or 'utf-8').upper()}; say in which encoding it"
            " is, such as --encoding windows-1252"
        ) from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _plain(text: str, _: str | None) -> Document:
    return Document(text)


def _markdown(text: str, _: str | None) -> Document:
    note = ""
    try:
        fields, text = front_matter.parted(text)
    except front_matter.Malformed as error:
        fields, note = {}, f"{error}"
    if "title" not in fields:
        fields |= _titled(_markdown_title(text))
    return Document(text.strip("\n"), fields, note)


def _markdown_title(text: str) -> str:
    """Return the first heading of the first level."""
    fence, before = "", ""
    for line in _lines(text):
        if opened := _FENCE.match(line):
            fence = "" if fence == opened.group(1) else fence or opened.group(1)
        elif not fence:
            if heading := _HEADING.match(line):
                return heading.group(1)
            if before and len(line) > 1 and not line.strip("= \t"):
                return before
        before = "" if fence else line.strip()
    return ""


def _rst(text: str, _: str | None) -> Document:
    before = ""
    for line in _lines(text):
        if _RULE.match(line) and before and len(line.rstrip()) >= len(before):
            return Document(text, _titled(before))
        before = "" if _RULE.match(line) else line.strip()
    return Document(text)


def _lines(text: str) -> Iterator[str]:
    start = 0
    while start < len(text):
        end = text.find("\n", start)
        end = len(text) if end < 0 else end
        yield text[start:end]
        start = end + 1


def _json(text: str, text_field: str | None) -> Document:
    """Take the field that holds the text, the others as fields; else all texts that it holds."""
    from memworker import values
    from memworker.json_lines import without_doubles

    try:
        value = json.loads(text, object_pairs_hook=without_doubles)
    except RecursionError:
        raise BadDocument("malformed JSON: nested too deeply") from None
    except ValueError as error:
        raise BadDocument(f"malformed JSON: {error}") from None
    name = text_field or "text"
    found = value_at(value, name) if isinstance(value, dict) else None
    if isinstance(found, str):
        try:
            rest = values.plain_mapping(without(value, [name]))
        except values.Unsayable as error:
            return Document(_sayable(found), note=f"fields that cannot be kept: {error}")
        return Document(_sayable(found), rest)
    if text_field is not None:
        raise BadDocument(f"it has no field {text_field!r} that holds a text")
    return Document(_sayable("\n".join(_strings(value))))


def _strings(value: Any) -> Iterator[str]:
    """Yield the texts within a value, in their order."""
    waiting = [value]
    while waiting:
        found = waiting.pop()
        if isinstance(found, str):
            if found.strip():
                yield found
        elif isinstance(found, dict):
            waiting += reversed(found.values())
        elif isinstance(found, list):
            waiting += reversed(found)


def _sayable(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise BadDocument("a lone surrogate (half of a pair), which is no character") from None
    return text


def _titled(title: str) -> dict[str, Any]:
    title = " ".join(title.split())[:_TITLE_CHARS]
    return {"title": title} if title else {}


_OF_TEXT: dict[str, Callable[[str, str | None], Document]] = {
    "plain": _plain,
    "markdown": _markdown,
    "rst": _rst,
    "json": _json,
}
