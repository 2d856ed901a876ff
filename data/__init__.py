"""Documents in, token batches out: sources, tokenizers, lanes, packing, and the fixed validation set.

The way of a token: `open_data` (opening.py) opens the source (sources/resolve.py) and holds the validation
set out of it; a `Corpus` turns its documents into tokens (corpus.py, tokenizer/); a `Lane` cuts them into
blocks (lanes.py, packing.py); a `LaneLoader` hands the blocks of a rank's lanes to the training loop
(loader.py), where `inputs_and_targets` (packing.py) makes of each what the model and the loss see.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
