"""Where documents come from: parquet, JSON lines, token files, the hub."""
