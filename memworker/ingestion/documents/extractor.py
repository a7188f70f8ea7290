"""The process that takes PDF, DOCX and large pages apart: what kills it kills no job.

The document lies in the file that is standard input; a line on a pipe says of what kind it is
and how long. The reply is written into the same file, and its length into the other pipe.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import zipfile
from collections.abc import Callable
from io import BytesIO
from typing import Any

from memworker.ingestion.documents.html_text import html_text

MEMORY_BYTES = 2 << 30
_OLE = b"\xd0\xcf\x11\xe0"


class Refused(Exception):
    """Why a document has no text to give, in words."""


def serve(orders: int, replies: int, seconds: int) -> None:
    """Answer one order after the other, until the other end is closed."""
    _limit(resource.RLIMIT_CORE, 0)
    if sys.platform == "linux":
        _limit(resource.RLIMIT_AS, MEMORY_BYTES)
    with os.fdopen(orders, "r") as lines:
        for line in lines:
            kind, size = line.split()
            # Whoever waits may be gone: a document that loops must not outlive it.
            used = resource.getrusage(resource.RUSAGE_SELF)
            _limit(resource.RLIMIT_CPU, int(used.ru_utime + used.ru_stime) + seconds + 5)
            reply = json.dumps(_answer(kind, os.pread(0, int(size), 0))).encode()
            os.ftruncate(0, 0)
            os.pwrite(0, reply, 0)
            os.write(replies, b"%d\n" % len(reply))


def _limit(what: int, soft: int) -> None:
    _, hard = resource.getrlimit(what)
    resource.setrlimit(what, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))


def _answer(kind: str, data: bytes) -> dict[str, str]:
    try:
        text, title = _KINDS[kind](data)
        return {"text": _sayable(text), "title": _sayable(title)}
    except ModuleNotFoundError as error:
        return {"missing": error.name or str(error)}
    except Refused as error:
        return {"refused": str(error)}
    except MemoryError:
        return {"refused": f"taking it apart needs more than {MEMORY_BYTES >> 30} GiB"}
    except Exception as error:  # of libraries that read what anybody wrote
        return {"refused": f"it is broken: {type(error).__name__}: {error}"[:300]}


def _pdf(data: bytes) -> tuple[str, str]:
    import pypdfium2

    try:
        document = pypdfium2.PdfDocument(data)
    except pypdfium2.PdfiumError as error:
        if "password" in str(error).lower():
            raise Refused("it is encrypted: save it without a password") from None
        raise Refused(f"it is broken: {error}") from None
    pages = [_page(document, at) for at in range(len(document))]
    text = "\n\n".join(page for page in pages if page)
    if not text:
        raise Refused(f"its {len(pages)} pages hold no text: a scan, which only OCR can read")
    return text, str(document.get_metadata_dict().get("Title", "")).strip()


def _page(document: Any, at: int) -> str:
    words: str = document[at].get_textpage().get_text_range()
    lines = words.replace("\r\n", "\n").replace("\r", "\n")
    # PDFium's sign for a hyphen at the end of a line, whose word goes on in the next.
    return lines.replace("\ufffe\n", "").replace("\ufffe", "").strip()


def _docx(data: bytes) -> tuple[str, str]:
    if data.startswith(_OLE):
        raise Refused("it is encrypted, or of an old Word: save it as .docx without a password")
    import mammoth

    no_image = mammoth.images.img_element(lambda image: {"src": ""})
    try:
        page = mammoth.convert_to_html(BytesIO(data), convert_image=no_image).value
    except (zipfile.BadZipFile, KeyError) as error:
        raise Refused(f"it is broken: {error}") from None
    text, _ = html_text(f"<body>{page}</body>")
    if not text:
        raise Refused("it holds no text")
    return text, _core_title(data)


def _core_title(data: bytes) -> str:
    from xml.etree import ElementTree

    try:
        with zipfile.ZipFile(BytesIO(data)) as parts:
            root = ElementTree.fromstring(parts.read("docProps/core.xml"))
    except (KeyError, zipfile.BadZipFile, ElementTree.ParseError):
        return ""
    return (root.findtext("{http://purl.org/dc/elements/1.1/}title") or "").strip()


def _sayable(text: str) -> str:
    return text.encode("utf-8", "replace").decode()


_KINDS: dict[str, Callable[[bytes], tuple[str, str]]] = {
    "pdf": _pdf,
    "docx": _docx,
    "html": html_text,
}
