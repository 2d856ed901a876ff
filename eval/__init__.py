"""Evaluation: validation loss, lm-eval jobs on a run's checkpoints, statistics, scorecard and report page."""
