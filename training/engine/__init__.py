"""The DeepSpeed engine: ranks, optimizer, compilation, checkpoints."""
