"""Where documents come from: the embedded sample, the hub, parquet, JSON lines and token files."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
