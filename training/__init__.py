"""What the main job calls: configs, engine, run folder, planning, and the step itself.

A name is loaded when it is first used: reading a command needs no torch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
