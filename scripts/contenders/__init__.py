"""What `scripts/bench_engine.py` measures side by side, and how."""
