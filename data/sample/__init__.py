"""The embedded sample: English prose made from the docstrings of the installed packages, no download."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
