"""Long texts to chunks: where they are cut, by the model's own tokens, in a process of its own."""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
