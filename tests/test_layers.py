"""The map of rooms in docs/ARCHITECTURE.md, held against the code."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "memworker"

# Which rooms a room may import; everything may use `errors` and `failpoints`.
ROOMS = {
    "locks": set(),
    "models": {"locks"},
    "pool": {"locks", "models"},
    "store": {"locks"},
    "ingest": {"locks", "pool", "store"},
    "memory": {"pool", "store"},
    "serve": {"pool"},
    # Adapters for other frameworks live on the public names alone.
    "integrations": set(),
    "cli": {"models", "pool", "store", "ingest", "memory", "serve", "integrations"},
}

# Where a heavy package may be imported, and by whom alone.
HEAVY = {
    "lancedb": {"store", "integrations/lancedb.py"},
    "onnxruntime": {"pool/encoder.py", "pool/limit.py"},
    "tokenizers": {"pool/tokenize.py"},
    "onnx": {"models", "pool/limit.py"},
    "fastembed": {"models"},
    "huggingface_hub": {"models"},
    "typer": {"cli"},
    "rich": {"cli"},
}

# Modules of the pool and what each may know of the others, besides itself.
POOL = {
    "plan": set(),
    "arena": set(),
    "messages": set(),
    "cgroups": set(),
    "machine": {"cgroups"},
    "meter": set(),
    "remembered": set(),
    "budget": set(),
    "limit": {"machine", "remembered"},
    "engine": {"plan", "budget", "echo", "encoder", "worker"},
    "sizing": {"machine", "plan", "remembered", "arena", "budget", "engine", "worker"},
    "spawn": set(),
    "pickling": set(),
    "admission": set(),
    "tokenize": set(),
    "worker": {"plan", "arena", "messages"},
    "echo": {"arena", "worker"},
    "encoder": {"plan", "arena", "tokenize", "worker"},
    "outside": {"worker", "arena", "spawn"},
    "incoming": {"messages", "arena"},
    "handle": {"worker", "arena", "messages", "incoming", "outside"},
    "blame": {"handle"},
    "restarts": set(),
    "pace": set(),
    "supervisor": {
        *("handle", "blame", "restarts", "worker", "arena", "messages", "incoming", "outside"),
        "pace",
    },
    "rows": {"arena"},
    "requests": {"plan", "arena", "rows", "incoming"},
    "scheduler": {
        *("supervisor", "handle", "plan", "requests", "meter", "arena", "sizing"),
        *("admission", "incoming", "outside"),
    },
    "agreement": {"pool"},
    "tuning": {"pool", "limit", "machine", "remembered", "sizing", "budget", "engine"},
    "opening": {"pool"},
    "aio": {"admission", "opening", "pool", "requests", "scheduler"},
    "pool": {
        *("admission", "arena"),
        *("scheduler", "plan", "requests", "meter", "engine", "supervisor", "sizing"),
        "rows",
    },
}

MODULES = sorted(PACKAGE.rglob("*.py"))


def imports(path: Path) -> set[str]:
    """Dotted names that a module imports when it runs; type-checking imports do not count."""
    found = set()
    tree = ast.parse(path.read_text())
    for node in _running(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def _running(node: ast.AST):
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
            continue
        yield child
        yield from _running(child)


def room_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE).parts
    return parts[0] if len(parts) > 1 else ""


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_room_knows_only_what_the_map_says(path):
    room = room_of(path)
    if not room:
        return
    assert room in ROOMS, f"{room} is not on the map"
    for name in imports(path):
        parts = name.split(".")
        if parts[0] == "memworker" and len(parts) > 1 and parts[1] in ROOMS:
            allowed = ROOMS[room] | {room}
            assert parts[1] in allowed, f"{path.name} imports {name}; {room} may not"


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_heavy_packages_stay_in_their_rooms(path):
    relative = str(path.relative_to(PACKAGE))
    for name in imports(path):
        allowed = HEAVY.get(name.split(".")[0])
        if allowed is not None:
            assert room_of(path) in allowed or relative in allowed, f"{relative} imports {name}"


@pytest.mark.parametrize("name", sorted(POOL))
def test_the_pool_has_one_direction(name):
    for imported in imports(PACKAGE / "pool" / f"{name}.py"):
        parts = imported.split(".")
        if parts[:2] == ["memworker", "pool"] and len(parts) > 2:
            assert parts[2] in POOL[name], f"pool/{name}.py imports {imported}"


def test_interpreters_are_started_in_one_way():
    """Without the working directory on their path, and told to be silent: see `interpreters`."""
    for path in set(MODULES) - {PACKAGE / "interpreters.py"}:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.List | ast.Tuple):
                assert "sys.executable" not in map(ast.unparse, node.elts), path
            if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("subprocess."):
                assert "env=interpreters.environment(" in ast.unparse(node), path


def test_every_module_of_the_pool_is_on_the_map():
    assert {p.stem for p in (PACKAGE / "pool").glob("*.py")} == set(POOL) | {"__init__"}


def test_a_worker_loads_nothing_of_the_parents_side():
    code = (
        "import sys, memworker.pool.worker, memworker.pool.encoder\n"
        "heavy = ('lancedb', 'pyarrow', 'onnx', 'fastembed', 'typer', 'onnxruntime')\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_what_was_cleared_away_stays_away():
    command = [sys.executable, ROOT / "scripts" / "count-house"]
    counted = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    counts = dict(re.findall(r"^(.+?): (\d+)", counted, re.MULTILINE))
    assert int(counts["isinstance tests on engines"]) == 0
    # Adapters, which get no model ready before they are used; a server that answers meanwhile;
    # tools that try again after a failure.
    assert int(counts["modules that open a pool later by themselves"]) <= 3


def test_public_names_are_pinned():
    import memworker

    assert set(memworker.__all__) == {
        *("AsyncEmbeddingPool", "AsyncMemory", "Memory"),
        *("EmbeddingPool", "IngestReport", "Table", "__version__", "errors", "ingest"),
        *("VectorSpace", "records", "table_names"),
    }
    for name in memworker.__all__:
        assert getattr(memworker, name) is not None
