"""What watches a rank from outside its loop: stop requests, deadlines, other ranks, and how the run ended."""
