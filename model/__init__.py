"""GPT-2 with its three plug points (norm, block, topology), and the catalogue of designs for them.

It imports no other directory of NormLab. A name imported from here is loaded when it is first asked for, so
that configs, variants and the designs of a file come without torch.
"""

import os

import lazy_loader

# The threads of OpenMP, which torch computes with on a CPU, sleep while they wait for work, unless the user
# has set this. By default they spin: where anything else needs the cores, the thread that all others wait for
# is often not running, and a step takes many times as long. OpenMP reads this once, when torch is loaded, and
# every command of NormLab comes by here before that.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
