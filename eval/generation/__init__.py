"""What a model writes where a task asks for text, lm-eval's `generate_until`."""
