"""GPT-2 and its plug points. It imports torch and no other directory of NormLab.

What is imported from here is loaded when it is first asked for: configs come without torch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
