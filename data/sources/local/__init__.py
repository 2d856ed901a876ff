"""Files here: which of a folder or glob are read, the split of each, and the numbers of a .bin file."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
