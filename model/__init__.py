"""GPT-2 with its three plug points (norm, block, topology), and the catalogue of designs for them.

It imports no other directory of NormLab. A name imported from here is loaded when it is first asked for, so
that configs, variants and the designs of a file come without torch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
