"""Validation loss in slices: by position in the block, by token frequency and by document length."""
