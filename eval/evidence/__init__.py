"""From results to verdicts: intervals, comparisons, charts."""
