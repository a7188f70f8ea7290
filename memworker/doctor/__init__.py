"""What this machine has and allows, and what to do about what is wrong: `memworker doctor`."""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
