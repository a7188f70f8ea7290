"""HTML to text: what a reader sees, paragraphs parted by blank lines."""

from __future__ import annotations

import re
from typing import Any

_SKIPPED = frozenset(
    "script style template noscript nav svg math iframe object audio video canvas head select"
    " button datalist -comment".split()
)
_PARAGRAPHS = frozenset(
    "p h1 h2 h3 h4 h5 h6 blockquote pre ul ol dl table section article header footer main aside"
    " figure form fieldset details hr address".split()
)
_LINES = frozenset("div li dt dd tr caption figcaption summary legend br option".split())
_CELLS = frozenset(("td", "th"))
_SPACES = re.compile(r"[ \t\n\r\f]+")
_META = re.compile(rb"""<meta[^>]{0,200}?charset\s*=\s*["']?\s*([A-Za-z0-9_.:-]{1,40})""", re.I)
# Browsers take these names for it, too; its 0x80 to 0x9f are letters and not controls.
_WESTERN = {"iso-8859-1", "latin-1", "latin1", "ascii", "us-ascii"}


def html_text(data: bytes | str) -> tuple[str, str]:
    """Return the text of a page and its title, "" where it has none."""
    from selectolax.lexbor import LexborHTMLParser

    page = LexborHTMLParser(data if isinstance(data, str) else _decoded(data))
    heading = page.css_first("title") or page.css_first("h1")
    title = _SPACES.sub(" ", heading.text(deep=True)).strip() if heading is not None else ""
    body = page.body if page.body is not None else page.root
    return ("" if body is None else _text_under(body)), title


def _decoded(data: bytes) -> str:
    """Decode a page as browsers do: by its mark, by what it says, as UTF-8, as windows-1252."""
    for mark, name in (
        (b"\xef\xbb\xbf", "utf-8"),
        (b"\xff\xfe", "utf-16"),
        (b"\xfe\xff", "utf-16"),
    ):
        if data.startswith(mark):
            return data.decode(name, errors="replace").lstrip("\ufeff")
    said = _META.search(data[:4096])
    name = said.group(1).decode().lower() if said else "utf-8"
    # A page that is read byte by byte until its charset is met is not in UTF-16.
    name = "utf-8" if name.startswith("utf-16") else "windows-1252" if name in _WESTERN else name
    for encoding in (name, "utf-8"):
        try:
            return data.decode(encoding)
        except (UnicodeDecodeError, LookupError):
            continue
    return data.decode("windows-1252", errors="replace")


def _text_under(body: Any) -> str:
    """Walk the tree without recursion: pages may be nested as deeply as they like."""
    pieces = _Pieces()
    node, depth = body, 0
    while True:
        tag = node.tag
        inner = None
        if tag == "-text":
            pieces.add(node.text_content or "", kept=pieces.verbatim > 0)
        elif tag not in _SKIPPED:
            pieces.enter(tag)
            inner = node.child
            if inner is None:
                pieces.leave(tag)
        if inner is not None:
            node, depth = inner, depth + 1
            continue
        while depth and node.next is None:
            node, depth = node.parent, depth - 1
            pieces.leave(node.tag)
        if not depth:
            return pieces.text()
        node = node.next


class _Pieces:
    """Gathers text; between two pieces stands the widest gap that was asked for."""

    def __init__(self) -> None:
        self._out: list[str] = []
        self._gap = ""
        self.verbatim = 0

    def enter(self, tag: str) -> None:
        self.verbatim += tag == "pre"
        self._around(tag)

    def leave(self, tag: str) -> None:
        self.verbatim -= tag == "pre"
        self._around(tag)

    def add(self, text: str, *, kept: bool) -> None:
        words = text if kept else _SPACES.sub(" ", text)
        if not words.strip():
            if words:
                self._part(" ")
            return
        if words[0].isspace() and not kept:
            self._part(" ")
        self._out += (
            (self._gap, words if kept else words.strip()) if self._out else (words.strip(),)
        )
        self._gap = " " if words[-1].isspace() and not kept else ""

    def text(self) -> str:
        return "".join(self._out).strip()

    def _around(self, tag: str) -> None:
        if tag in _PARAGRAPHS:
            self._part("\n\n")
        elif tag in _LINES:
            self._part("\n")
        elif tag in _CELLS:
            self._part("\t")

    def _part(self, gap: str) -> None:
        order = ("", " ", "\t", "\n", "\n\n")
        self._gap = max(self._gap, gap, key=order.index)
