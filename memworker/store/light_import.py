"""Importing LanceDB without the parts of a REST client that it never uses by itself.

``lancedb`` imports ``lance_namespace``, and that a generated client for servers of tables. Its
API classes check their arguments by pydantic, whose making takes half of the whole import: 0.6 s
of a core in each process. While LanceDB is imported stand-ins are in their place; afterwards the
real ones are imported as soon as somebody asks for one, wherever that is.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

_CLIENT = "lance_namespace_urllib3_client"
_API = f"{_CLIENT}.api"


@contextmanager
def without_rest_client() -> Iterator[None]:
    """Import in this context what would import the client's API; later it can be had all the same.

    Does nothing where the client is not installed, or was imported before.
    """
    modules = [] if _CLIENT in sys.modules else _api_modules()
    stand_ins = {name: _StandIn(name) for name in modules if name not in sys.modules}
    sys.modules.update(stand_ins)
    try:
        yield
    finally:
        for name, stand_in in stand_ins.items():
            if sys.modules.get(name) is stand_in:
                del sys.modules[name]
        client = sys.modules.get(_CLIENT)
        if client is not None and stand_ins:
            _ask_later(client)


def _api_modules() -> list[str]:
    spec = find_spec(_CLIENT)
    if spec is None or spec.origin is None:
        return []
    files = sorted((Path(spec.origin).parent / "api").glob("*_api.py"))
    return [_API, *(f"{_API}.{file.stem}" for file in files)] if files else []


def _ask_later(client: ModuleType) -> None:
    """Take the stand-ins' classes out of the client; it imports the real ones when it is asked."""
    origins = {
        name: value.__module__ for name, value in vars(client).items() if _is_stand_in(value)
    }
    for name in origins:
        delattr(client, name)

    def ask(name: str) -> Any:
        if name not in origins:
            raise AttributeError(f"module {_CLIENT!r} has no attribute {name!r}")
        return getattr(import_module(origins[name]), name)

    client.__getattr__ = ask  # type: ignore[method-assign]


def _is_stand_in(value: object) -> bool:
    return isinstance(value, type) and getattr(value, "stands_in", False) is True


class _StandIn(ModuleType):
    """A module all of whose names are classes that make instances of the real ones."""

    __path__: list[str] = []

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        module = self.__name__

        def make(_cls: type, *given: Any, **named: Any) -> Any:
            # By whoever imported it in another thread meanwhile.
            return getattr(import_module(module), name)(*given, **named)

        return type(name, (), {"__module__": module, "__new__": make, "stands_in": True})
