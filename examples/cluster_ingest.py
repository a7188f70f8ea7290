"""An ingest on a Ray cluster: files are read and embedded on all nodes, each row stored once.

Without --address a Ray of its own is started on this machine, and stopped at the end. Kill it
and run it again: what is in the table is left out.

    pip install "memworker[ray]"
    python examples/cluster_ingest.py [ADDRESS]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from memworker import ingest, verify_table

FILES, ROWS = 4, 50


def main(address: str | None = None, *, model: str = "all-MiniLM-L6-v2") -> None:
    """Write some files to read, ingest them, and look whether all is there."""
    corpus = Path("corpus").absolute()
    corpus.mkdir(exist_ok=True)
    for n in range(FILES):
        rows = [{"id": f"{n}-{i}", "text": f"reading {i} of sensor {n}"} for i in range(ROWS)]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (corpus / f"part-{n}.jsonl").write_text(lines)
    db = Path("cluster-db").absolute()  # where every node sees it under the same name
    report = ingest(corpus, db=db, table="readings", model=model, runner="ray", address=address)
    print(f"{report.written} written, {report.duplicates} known before")
    print(f"healthy: {verify_table(db, 'readings').healthy}")


if __name__ == "__main__":
    main(*sys.argv[1:2])
