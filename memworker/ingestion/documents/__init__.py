"""Files that are one document each: their text, and what they say of themselves.

::

    bytes ─► kinds ─► plain, rst, markdown (front_matter), JSON ─────────────► Document
               ├────► html_text ────────────────────────────────────────────►    │
               └────► extraction ─► a process of its own: extractor ─ PDF, DOCX ─┘

What is no document (binary, empty) is `NoDocument`; what should be one and cannot be read is
`BadDocument`. Neither costs anything but its own file.
"""
