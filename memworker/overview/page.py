"""The page: one file that holds its data, and a policy by which it loads and sends nothing."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from datetime import datetime
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memworker.overview.sample import TEXT_CHARACTERS, DrawnRows

if TYPE_CHECKING:
    from memworker.overview.show import Overview

_MARK = b"<!doctype html>\n<!-- made by memworker table show -->\n"


def is_page(path: Path) -> bool:
    """Tell whether a file is such a page, which may be replaced."""
    try:
        with path.open("rb") as file:
            return file.read(len(_MARK)) == _MARK
    except OSError:
        return False


def page(
    overview: Overview, sample: DrawnRows, made_at: datetime, *, texts: bool, filtered: bool
) -> bytes:
    """Return the page with its data."""
    facts = overview.to_dict()
    del facts["plot"]
    data = {
        **facts,
        "made_at": made_at.strftime("%Y-%m-%d %H:%M UTC"),
        "has_texts": texts,
        "filtered": filtered,
        "cut_at": TEXT_CHARACTERS,
        "left_out": sample.left_out,
        "spread": round(sample.spread, 4),
        "columns": sample.columns,
        "points": sample.points,
        "nearest": sample.nearest,
    }
    frame = files("memworker.overview").joinpath("page.html").read_text("utf-8")
    head, tail = frame.replace("@policy@", _policy(frame)).split("@data@")
    return _MARK + f"{head}{_inside_a_script(data)}{tail}".encode()


def _inside_a_script(data: dict[str, Any]) -> str:
    """Write JSON that ends no element, whatever the texts hold: it has no `<`."""
    return json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")


def _policy(frame: str) -> str:
    """Allow the page's own script and style, by their hashes, and nothing else at all."""
    return (
        f"default-src 'none'; script-src {_hash(frame, 'script')};"
        f" style-src {_hash(frame, 'style')}; img-src data:; base-uri 'none'; form-action 'none'"
    )


def _hash(frame: str, tag: str) -> str:
    (inside,) = re.findall(f"<{tag}>(.*?)</{tag}>", frame, re.DOTALL)
    return f"'sha256-{base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()}'"
