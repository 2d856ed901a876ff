"""What `scripts/torture.py` does to runs, and what it expects of them."""
