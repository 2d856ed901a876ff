"""Evaluations of runs: which checkpoints, when, on which ranks, and no task twice at once."""
