"""What the loop in `train.py` calls: configuration, engine, schedule, checkpoints, run folder, tracking."""
