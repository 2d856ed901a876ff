"""What survives a stop: checkpoints, complete or absent, verified when read."""
