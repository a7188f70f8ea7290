"""Which files are documents, by their suffixes."""

from __future__ import annotations

import os

SUFFIXES = {
    ".md": "markdown",
    ".markdown": "markdown",
    ".mdx": "markdown",
    ".txt": "plain",
    ".text": "plain",
    ".rst": "rst",
    ".html": "html",
    ".htm": "html",
    ".xhtml": "html",
    ".json": "json",
    ".pdf": "pdf",
    ".docx": "docx",
}
# Of these an ingest reads lines or rows, unless it is told otherwise.
OF_DOCUMENTS = tuple(suffix for suffix in SUFFIXES if suffix not in (".txt", ".json"))


def kind_of(name: str) -> str | None:
    """Return of what kind a file is, by its name; None where that tells no document."""
    return SUFFIXES.get(os.path.splitext(name.lower())[1])
