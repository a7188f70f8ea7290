"""Full-text search: the index of the words, and ranking by them.

What agents remember is mostly short, in any language, and full of names. So:
words are found by Unicode's own rules (ICU), which knows where words end in
Chinese, Japanese and Thai, and parted at punctuation besides (``user@example.com``
is found by ``example``); case and accents do not count; English words are cut
to their stems, and a short list of them is left out. Measured (recall@10): LoCoMo
0.566 so, 0.554 with LanceDB's own list, which has single digits in it, 0.505
with none, 0.474 without stems besides; XQuAD in Chinese 0.998, where splitting at
blanks alone has 0.138, and in Arabic and Hindi the same with and without
English stems. Words with endings of their own, such as Korean's particles, are
found as they were written only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from memworker.errors import UsageError
from memworker.store import read
from memworker.store.apart import IndexBuild
from memworker.store.lance import lance_errors
from memworker.store.search import Hit, SearchOptions, asked_columns, checked_limit, text_hits
from memworker.store.writes import Writes

if TYPE_CHECKING:
    from lancedb.query import MatchQuery
    from lancedb.table import LanceTable

INDEX_NAME = "text_idx"
# A query costs 14 ms a kilobyte at 200,000 rows: a pasted book would keep a core for minutes.
_QUERY_CHARS = 8_192
# Lucene's classic list, and what questions and tales about people are full of. Not "will",
# "may" and "us", which are names too; no digit, and no letter but two: "C" and "7" say much.
STOP_WORDS = """
a about am an and are as at be been being but by can could did do does for from had has have he
her hers him his how i if in into is it its me my no not of on or our ours she should so such than
that the their them then there these they this to was we were what when where which who whom whose
why with would you your yours
""".split()


def build(writes: Writes) -> None:
    """Build the full-text index when there is none; 3 ms for an empty table."""
    options = {
        "base_tokenizer": "icu/split",
        "language": "English",
        "stem": True,
        "remove_stop_words": True,
        "custom_stop_words": STOP_WORDS,
    }
    work = IndexBuild("text", INDEX_NAME, "FTS", options, replaces=False)
    writes.build(f"indexing the texts of table {writes.handle.name!r}", work)


def search(table: LanceTable, text: str, options: SearchOptions) -> list[Hit]:
    """Return the rows with words of `text`, best first by BM25.

    Rows that the index does not cover yet are read one by one, so none is missed.
    Of a text longer than 8,192 characters the beginning counts.
    """
    columns = asked_columns(options, table)
    query = match(_checked(text)[:_QUERY_CHARS])
    with lance_errors(f"searching the texts of table {table.name!r}"):
        builder = table.search(query, query_type="fts").limit(checked_limit(options.limit))
        if options.where:
            builder = builder.where(read.sql_of(table, options.where), prefilter=True)
        return text_hits(builder.select([*columns, "_score"]).to_arrow())


def match(text: str) -> MatchQuery:
    """Return the question for rows with words of `text`."""
    from lancedb.query import MatchQuery

    # A MatchQuery has no syntax: whatever the text holds, it is words to look for.
    return MatchQuery(text, "text")


def _checked(text: str) -> str:
    if not isinstance(text, str):
        raise UsageError(f"a text search needs a string, got {type(text).__name__}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UsageError(
            f"the query holds half a character (a lone surrogate) at position {error.start}; "
            "leave it out"
        ) from None
    return text
