"""The pages of the documentation as tests read them: their blocks, and the marks before them."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *ROOT.glob("examples/*.md")])
# What is not run for lack of something says so before it: <!-- only parsed: needs a bucket -->
_BLOCK = re.compile(
    r"(?:^<!-- only parsed: (?P<mark>[^\n]+) -->\n+)?"
    r"^ *```(?P<language>\w*)\n(?P<text>.*?)^ *```$",
    re.M | re.S,
)


@dataclass(frozen=True)
class Block:
    """One fenced block; `mark` says why it is only parsed."""

    page: str
    line: int
    language: str
    text: str
    mark: str | None

    def __str__(self):
        return f"{self.page}:{self.line}"

    def commands(self):
        """Give the lines of a shell block without comments, joined where they go on."""
        joined = self.text.replace("\\\n", " ")
        return [
            words for line in joined.splitlines() if (words := shlex.split(line, comments=True))
        ]


def blocks(page: Path) -> list[Block]:
    text = page.read_text()
    name = page.relative_to(ROOT).as_posix()
    return [
        Block(name, text[: m.start("text")].count("\n"), m["language"], m["text"], m["mark"])
        for m in _BLOCK.finditer(text)
    ]


BLOCKS = [block for page in PAGES for block in blocks(page)]
