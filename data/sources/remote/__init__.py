"""Files elsewhere: parts of them, what is kept of their footers, and the hub that has them."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
