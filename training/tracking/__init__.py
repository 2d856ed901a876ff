"""Weights & Biases: a view of the run that never holds it."""
