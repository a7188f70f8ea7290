"""The live page: one file of the package, and the policy that lets nothing else run in it."""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cache
from importlib.resources import files

from memworker.serve.refusals import Headers

CONTENT_TYPE = b"text/html; charset=utf-8"


@cache
def html() -> bytes:
    """Read the page."""
    return files("memworker.serve").joinpath("page.html").read_bytes()


@cache
def _policy() -> bytes:
    """Allow the page's own script and style, by their hashes, and asking this server."""
    script, style = _hash("script"), _hash("style")
    return (
        f"default-src 'none'; script-src {script}; style-src {style}; connect-src 'self';"
        " img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ).encode()


def headers() -> Headers:
    """Give the headers that the page is sent with."""
    return [(b"content-security-policy", _policy())]


def _hash(tag: str) -> str:
    (inside,) = re.findall(rf"<{tag}>(.*?)</{tag}>".encode(), html(), re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(inside).digest()).decode()
    return f"'sha256-{digest}'"
