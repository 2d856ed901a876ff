"""What a difference between designs is worth: over seeds and text, over several designs, and over many looks."""
