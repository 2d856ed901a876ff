"""Tokenizers: GPT-2's byte pairs without a download, plain bytes, any of tiktoken's, a tokenizer.json.

A document is its tokens and one `eot`, which stands nowhere else: text that looks like a special token is
ordinary text.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
