"""Turn a stream of texts into searchable vectors in LanceDB.

Each room's names stand in its `__init__.pyi`, and are loaded on first use: a worker process
imports this package too and must not pay for LanceDB, and a caller of the pool must not pay
for the store.
"""

import lazy_loader as lazy

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
__all__ += ["__version__"]
