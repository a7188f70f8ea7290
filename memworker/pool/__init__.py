"""Worker processes that turn texts into vectors.

Names are loaded on first use: a worker imports this package too, and has no
use for the parent's side of it.
"""

import lazy_loader as lazy

from memworker.pool.pickling import import_dill

# Before any module of this room imports multiprocess, which brings dill along.
import_dill()

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
