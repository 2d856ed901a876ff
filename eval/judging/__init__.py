"""One candidate from check to verdict beside the baseline; `scripts/judge.py` is its command."""
