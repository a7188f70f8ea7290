"""Readers, and the job that takes their rows through the pool into the store."""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
