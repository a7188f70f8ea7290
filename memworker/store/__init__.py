"""The LanceDB table of records: what is written once, found again, and never twice."""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
