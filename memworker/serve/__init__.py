"""The pool over HTTP: OpenAI's embeddings interface, and text-embeddings-inference's."""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
