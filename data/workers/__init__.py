"""Processes that make sequences ahead of the training loop, and start again where they stood."""
