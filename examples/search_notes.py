"""A folder of notes, searched: Markdown, HTML and text files, kept in step with a table.

Run it again after changing a note: only what changed is embedded.

    python examples/search_notes.py [FOLDER] [QUESTION …]
"""

from __future__ import annotations

import sys
from pathlib import Path

from memworker import EmbeddingPool, Table, sync_folder

NOTES = Path(__file__).parent / "notes"


def main(folder: Path = NOTES, *questions: str) -> None:
    """Bring the table up to date, and answer each question with the best passage."""
    with EmbeddingPool() as pool:
        # Long notes are cut into passages that the model can take in whole.
        report = sync_folder(
            folder, db="notes-db", table="notes", pool=pool, chunk="model", delete=True
        )
        print(f"{report.added} notes added, {report.updated} updated, {report.removed} removed")
        table = Table.open("notes-db", "notes")
        for question in questions or ("how do I bake bread?", "when does the train leave?"):
            (vector,) = pool.embed([question], kind="query")
            (best,) = table.search(vector, limit=1, group=True)
            passage = " ".join(best.text.split())
            print(f"\n{question}\n  {best.parent_id}: {passage[:160]}")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:2]), *sys.argv[2:])
