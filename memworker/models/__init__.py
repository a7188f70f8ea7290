"""Models: names to verified files and to the ONNX graph that worker processes run."""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
