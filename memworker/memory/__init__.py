"""Memories of agents in one LanceDB table: added, searched, updated, deleted, with their history.

Names are loaded on first use: the coroutines' face has no part in a script without any.
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
