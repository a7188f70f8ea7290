"""The map of rooms in docs/ARCHITECTURE.md, held against the code."""

from __future__ import annotations

import ast
import itertools
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "memworker"

PAGE = (ROOT / "docs" / "ARCHITECTURE.md").read_text()


def table(heading: str) -> list[list[str]]:
    """Return the rows of the table on the page whose first line starts so."""
    lines = PAGE[PAGE.index(heading) :].splitlines()[2:]
    rows = itertools.takewhile(lambda line: line.startswith("|"), lines)
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


def named(cell: str) -> set[str]:
    """Return what a cell lists, with or without backticks; a dash is nothing."""
    return {name.strip("` /") for name in cell.split(",")} - {"–"}


# Which rooms a room may import; everything may use the modules beside them.
ROOMS = {
    room.strip("`/"): named(allowed) for room, _, allowed in table("| room |") if room != "`data/`"
}
# Where a heavy package may be imported, and by whom alone.
HEAVY = {package: named(where) for package, where in table("| package |")}
# Modules of the pool and what each may know of the others, besides itself.
POOL = {
    module: named(knows)
    for names, _, knows in table("| module | | knows |")
    for module in named(names)
}
BESIDE = {
    name.removesuffix(".py")
    for names, _ in table("| module | |\n|---|---|\n| `errors.py`")
    for name in named(names)
}

MODULES = sorted(PACKAGE.rglob("*.py"))


@cache
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
    parts = path.relative_to(ROOT).parts[1 if path.is_relative_to(PACKAGE) else 0 :]
    return parts[0] if len(parts) > 1 else ""


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_room_knows_only_what_the_map_says(path):
    room = room_of(path)
    if not room:
        return
    assert room in ROOMS, f"{room} is not on the map"
    for name in imports(path):
        parts = name.split(".")
        if parts[0] == "memworker" and len(parts) > 1:
            allowed = ROOMS[room] | BESIDE | {room, "__version__"}
            # Adapters and commands use the package's own face.
            public = room in ("integrations", "cli") and parts[1] in face("")
            assert parts[1] in allowed or public, f"{path.name} imports {name}; {room} may not"


def test_the_map_has_every_room_and_every_module_beside_them():
    rooms = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert rooms == set(ROOMS)
    assert {path.stem for path in PACKAGE.glob("*.py")} == BESIDE | {"__init__", "__main__"}


@pytest.mark.parametrize("path", sorted(BESIDE))
def test_what_everything_may_import_imports_no_room(path):
    for name in imports(PACKAGE / f"{path}.py"):
        parts = name.split(".")
        assert parts[0] != "memworker" or parts[1] in BESIDE, f"{path}.py imports {name}"


@cache
def face(room: str) -> dict[str, str]:
    """Return the names on a room's face, each with the module that it comes from."""
    folder = PACKAGE / room
    stub = folder / "__init__.pyi"
    tree = ast.parse((stub if stub.exists() else folder / "__init__.py").read_text())
    froms = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    return {alias.name: node.module or "" for node in froms for alias in node.names}


def crossings(paths: Iterable[Path]) -> Iterator[tuple[Path, str, str]]:
    """Yield each name that a module imports from another room: who, from where, what."""
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("memworker."):
                room = node.module.split(".")[1]
                if room in ROOMS and room != room_of(path) and room_of(path):
                    yield from ((path, node.module, alias.name) for alias in node.names)


USERS = [*MODULES, *(ROOT / "bench").rglob("*.py"), *(ROOT / "tests").rglob("*.py")]
CROSSINGS = list(crossings(USERS))


def test_rooms_are_entered_by_their_face():
    # Each adapter is a face of its own, for its framework may be missing.
    past = [
        f"{path.relative_to(ROOT)}: {name} from {module}"
        for path, module, name in CROSSINGS
        if not path.is_relative_to(ROOT / "tests")
        and not module.startswith("memworker.integrations")
        and (module.count(".") > 1 or name not in face(module.split(".")[1]))
    ]
    assert not past


_PRIVATE = re.compile("_[^_]")


def test_what_a_module_keeps_to_itself_is_used_by_no_other():
    past = []
    for path in MODULES:
        tree = ast.parse(path.read_text())
        froms = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
        ours = [node for node in froms if (node.module or "").startswith("memworker")]
        names = {alias.asname or alias.name for node in ours for alias in node.names}
        past += [
            f"{path.name}: {name}" for name in names if name.startswith("_") and name[1] != "_"
        ]
        modules = {name for name in names if name.islower()}
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                if node.value.id in modules and _PRIVATE.match(node.attr):
                    past.append(f"{path.name}:{node.lineno}: {node.value.id}.{node.attr}")
    assert not past


@pytest.mark.parametrize("room", sorted(ROOMS))
def test_what_stands_on_a_face_is_there_and_wanted(room):
    wanted = {name for _, module, name in CROSSINGS if module == f"memworker.{room}"}
    wanted |= {name for name, module in face("").items() if module == room}
    loaded = import_module(f"memworker.{room}")
    for name in face(room):
        assert hasattr(loaded, name), f"memworker.{room} has no {name}"
    assert set(face(room)) <= wanted, "nobody outside uses these"


# At once, in an order that the seed decides: with 5 a room was met half made.
@pytest.mark.parametrize(("eager", "seed"), [("0", "0"), ("1", "0"), ("1", "5")])
def test_names_are_loaded_at_first_use_or_at_once(eager, seed):
    code = "import memworker; print(memworker.ingest.__module__, memworker.Table.__name__)"
    command = [sys.executable, "-c", code]
    environment = {**os.environ, "EAGER_IMPORT": eager, "PYTHONHASHSEED": seed}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "memworker.ingestion.job Table\n"


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


@pytest.mark.parametrize("room", sorted(ROOMS))
def test_the_map_lists_the_modules_of_a_room_and_no_others(room):
    section = PAGE[PAGE.index(f"\n### {room}/\n") :].split("\n### ")[1]
    rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    # The command line's are named in prose.
    listed = re.findall(r"`([a-z_0-9]+)`", " ".join(rows) or section)
    there = [path.stem for path in (PACKAGE / room).rglob("*.py") if path.stem != "__init__"]
    assert sorted(listed) == sorted(there)


@pytest.mark.parametrize("code", ["import memworker; dir(memworker)", "import memworker.cli.app"])
def test_the_package_and_its_command_line_are_light_until_something_is_used(code):
    heavy = ("lancedb", "pyarrow", "numpy", "onnx", "tokenizers", "multiprocess", "uvicorn")
    code = f"import sys\n{code}\nprint([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


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
    assert int(counts["class names defined more than once"]) == 0
    # What two loaders of a model are: its files and its costs.
    assert int(counts["passages of 5 lines that stand twice"]) <= 1
    # Adapters, which get no model ready before they are used; a server that answers meanwhile;
    # tools that try again after a failure.
    assert int(counts["modules that open a pool later by themselves"]) <= 3


def test_defaults_stand_in_one_place():
    written = [path for path in MODULES if '= "all-MiniLM-L6-v2"\n' in path.read_text()]
    assert written == [PACKAGE / "models" / "spec.py"]


def test_public_names_are_pinned():
    import memworker

    assert set(memworker.__all__) == {
        *("AsyncEmbeddingPool", "AsyncMemory", "Auto", "Chunking", "Memory"),
        *(
            "DEFAULT_MODEL",
            "EmbeddingPool",
            "IngestPlan",
            "IngestReport",
            "Table",
            "__version__",
            "errors",
            "ingest",
        ),
        *("VectorSpace", "records", "table_names", "parse_where", "verify_table", "repair_table"),
        *("SyncReport", "export_table", "plan_ingest", "sync_folder"),
        *("Stop", "embed_to_file", "list_runs", "reembed", "tune", "compare_precision"),
        *("examine_machine", "show_table"),
        *("Ranked", "Reranker"),
        *("list_models", "pull_model", "verify_model"),
    }
    for name in memworker.__all__:
        assert getattr(memworker, name) is not None
