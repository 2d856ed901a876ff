"""Where the time of a start, a step and a run goes."""
