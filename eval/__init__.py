"""Evaluation: validation loss, lm-eval jobs on a run's checkpoints, statistics, scorecard and report page.

What is named here is what the main job calls. A name is loaded when it is first used.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
