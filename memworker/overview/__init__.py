"""A look at what a table holds: counts, lengths, and a page with a map: `memworker table show`."""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
