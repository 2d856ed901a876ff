"""Documents in, token batches out: sources, tokenizers, lanes, packing, and the fixed validation set."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
