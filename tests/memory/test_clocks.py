"""A clock that goes back by a day between the operations of a Memory, in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.preload import preload  # noqa: F401 - a fixture

ROOT = Path(__file__).parents[2]

SCRIPT = """
import json, sys
from pathlib import Path
from memworker import Memory, Table, ingest
from memworker.ingestion.runs import list_runs
db, clock = Path(sys.argv[1]), Path(sys.argv[2])

def back_by(days):
    clock.write_text(str(-86_400 * days))

def main():
    alice = {"user_id": "alice"}
    with Memory(db, model="echo", workers=1) as memory:
        first = memory.add("one", **alice)["results"][0]["id"]
        second = memory.add("other", **alice)["results"][0]["id"]
        back_by(1)
        memory.update(first, "two")
        back_by(2)
        memory.update(first, "three")
        back_by(3)
        memory.add("three", metadata={"n": 1}, on_duplicate="update", **alice)
        now = memory.get(first)
        found = memory.search("three", filters=alice)["results"]
        back_by(4)
        memory.delete(first)
        memory.delete_all(**alice)
        left = memory.get_all(filters=alice)["results"]
        told = [memory.history(first), memory.history(second)]
    rows = db / "rows.jsonl"
    for number, text in enumerate(["a", "b"]):
        back_by(5 + number)
        rows.write_text(json.dumps({"id": "x", "text": text}))
        ingest(rows, db=db, table="t", model="echo", workers=1, on_conflict="update")
    times = Table.open(db, "t").rows(columns=["text", "created_at", "updated_at"]).to_pylist()
    times = [{name: str(value) for name, value in row.items()} for row in times]
    at = [run.started for run in list_runs(db, "t")]
    print(json.dumps([first, now, found, left, told, times, at]))

main()
"""


def test_43_histories_and_times_go_on_when_the_clock_goes_back(preload, tmp_path):  # noqa: F811
    (tmp_path / "clock").write_text("0")
    env = os.environ | preload("clock", CLOCK_FILE=str(tmp_path / "clock"))
    command = [sys.executable, "-c", SCRIPT, tmp_path / "db", tmp_path / "clock"]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    first, now, found, left, (told, other), rows, runs = json.loads(done.stdout.splitlines()[-1])
    assert now["memory"] == "three" and now["metadata"] == {"n": 1}
    assert now["updated_at"] > now["created_at"]
    assert found[0]["id"] == first and not left
    assert [(event["event"], event["new_memory"]) for event in told] == [
        *[("ADD", "one"), ("UPDATE", "two"), ("UPDATE", "three"), ("UPDATE", "three")],
        ("DELETE", None),
    ]
    assert [event["event"] for event in other] == ["ADD", "DELETE"]
    for events in (told, other):
        moments = [event["updated_at"] for event in events]
        assert moments == sorted(moments) and len(set(moments)) == len(moments)
    assert [row["text"] for row in rows] == ["b"]
    assert rows[0]["updated_at"] >= rows[0]["created_at"]
    # The journal's order, not the clock's.
    assert len(runs) == 2 and runs[0] > runs[1]
