"""Turn a stream of texts into searchable vectors in LanceDB.

The names stand in `__init__.pyi`, each with the room that it comes from, and are loaded at
first use: a worker process imports this package too and must not pay for LanceDB, and a caller
of the pool must not pay for the store.
"""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"

_loading: set[int] = set()


def __getattr__(name: str) -> Any:
    # Not before a name is asked for: `python -m memworker` gets here while packages are still
    # looked for in the working directory.
    import threading

    import lazy_loader

    thread = threading.get_ident()
    if thread in _loading:
        # With EAGER_IMPORT all names are loaded now. The modules that this runs ask for others
        # of ours, which Python finds without this: another round would meet half-made rooms.
        raise AttributeError(f"module {__name__!r} has no attribute {name!r} yet")
    _loading.add(thread)
    try:
        load, names, public = lazy_loader.attach_stub(__name__, __file__)
    finally:
        _loading.discard(thread)
    globals().update(__getattr__=load, __dir__=names, __all__=[*public, "__version__"])
    return globals()["__all__"] if name == "__all__" else load(name)


def __dir__() -> list[str]:
    return list(__getattr__("__all__"))
