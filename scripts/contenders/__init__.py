"""What `bench_engine.py`, `bench_scaling.py` and `bench_eval.py` measure side by side, and how."""
