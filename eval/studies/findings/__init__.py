"""What a study found: blow-ups, verdicts, costs, speed-ups, projections, and how they are printed."""
